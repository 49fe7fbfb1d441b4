"""Tables for a terminal: the organs of a scan, as `predict` and `demo` print them, and plain ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meddelinea.results.sides import LETTERS

if TYPE_CHECKING:
    from meddelinea.results.result import Result
    from meddelinea.results.review import OrganReview
    from meddelinea.results.statistics import OrganStatistics

REVIEW_STYLE = "bold yellow"


def print_result(result: Result, files: Mapping[str, Path]) -> None:
    """Print the organs that were found, those that were not, the files and the time, in 80 columns.

    Parameters
    ----------
    result
        Of the scan. Its findings are not repeated: they are warnings, which were printed.
    files
        What each file is -> where it stands.
    """
    made, measured, reviews = result.segmentation, result.statistics, result.reviews
    found = {name: organ for name, organ in measured.items() if organ.found}
    missing = [name for name, organ in measured.items() if not organ.found]
    console = Console(highlight=False, soft_wrap=True)
    if found:
        level = None if made.calibration is None else made.calibration.level
        console.print(organ_table(found, reviews, level, "HU" if result.scan.modality == "CT" else "mean"))
    for mark, meaning in marks(found, reviews):
        console.print(mark, Text(meaning))
    console.print(Text(f"not found: {', '.join(missing) or 'none'}"))
    for line in places(files.values()):
        console.print(Text(line))
    steps = "" if made.steps is None else f", {made.steps} step{'s' if made.steps > 1 else ''}"
    console.print(Text(f"{made.seconds:.1f} s, model {made.model}{steps}"))


def plain_table(*headings: str) -> Table:
    """A table without borders whose first column holds names and whose others hold numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def organ_table(
    found: Mapping[str, OrganStatistics], reviews: Mapping[str, OrganReview], level: float | None, unit: str
) -> Table:
    """A row for each organ; a column in which no organ has an entry is left out.

    Parameters
    ----------
    found
        Measurements of the organs that were found, by name.
    reviews
        Of each of them.
    level
        Share of the volume intervals that hold the true volume, 0 to 1; None for a model that was not calibrated.
    unit
        Heading of the mean values.
    """
    columns: dict[str, Sequence[Text]] = {
        "organ": [Text(name) for name in found],
        "ml": [Text(f"{organ.volume_ml:,.1f}") for organ in found.values()],
        f"{level or 0.0:.0%} interval": _intervals([reviews[name].interval_ml for name in found]),
        unit: [Text(f"{organ.mean_intensity:.0f}") for organ in found.values()],
        "?": [Text("!" if reviews[name].needs_review else "", REVIEW_STYLE) for name in found],
        "cut": [Text("".join(LETTERS[side] for side in organ.touches_edge)) for organ in found.values()],
    }
    filled = {heading: cells for heading, cells in columns.items() if any(cells)}
    table = plain_table(*filled)
    for row in zip(*filled.values(), strict=True):
        table.add_row(*row)
    return table


def _intervals(spans: Sequence[tuple[float, float] | None]) -> list[Text]:
    """`low - high` in millilitres with both ends aligned; empty where there is no interval."""
    ends = [None if span is None else (f"{span[0]:,.1f}", f"{span[1]:,.1f}") for span in spans]
    low, high = (max((len(end[side]) for end in ends if end), default=0) for side in (0, 1))
    return [Text("" if end is None else f"{end[0]:>{low}} - {end[1]:>{high}}") for end in ends]


def marks(found: Mapping[str, OrganStatistics], reviews: Mapping[str, OrganReview]) -> list[tuple[Text, str]]:
    """The marks that the table has, each with its meaning."""
    lines = []
    remarks = [reviews[name].remark for name in found if reviews[name].needs_review]
    for remark in dict.fromkeys(remarks):
        lines.append((Text("!", REVIEW_STYLE), f"{remark} ({remarks.count(remark)} of {len(found)})"))
    touched = {side for organ in found.values() for side in organ.touches_edge}
    if cut := [side for side in LETTERS if side in touched]:
        letters = ", ".join(LETTERS[side] for side in cut)
        lines.append((Text(letters), f"cut by the scan's edge ({', '.join(cut)}): the volume is a lower bound"))
    return lines


def places(paths: Iterable[Path]) -> list[str]:
    """The files, a line for each folder."""
    names: dict[Path, list[str]] = {}
    for path in paths:
        names.setdefault(path.parent, []).append(path.name)
    return [f"{'written' if folder == Path() else folder}: {' '.join(files)}" for folder, files in names.items()]
