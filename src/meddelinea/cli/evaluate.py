"""`meddelinea evaluate`: masks against references."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from meddelinea.cli.options import QuietOption, organ_names
from meddelinea.cli.progress import status
from meddelinea.errors import PartialFailureError
from meddelinea.files import ensure_writable

if TYPE_CHECKING:
    from meddelinea.evaluation.summary import Means, Summary

#: Columns that count the cases of an organ: all, missed by the prediction, invented by it, absent from both sides.
COUNTS = ("cases", "missed", "invented", "absent")


def evaluate(
    prediction: Annotated[Path, Argument(metavar="PREDICTION", help="A mask, or a folder of masks.")],
    reference: Annotated[Path, Argument(metavar="REFERENCE", help="Its reference mask, or a folder of them.")],
    organs: Annotated[
        str | None,
        Option(metavar="NAME,NAME", show_default="all that both sides have", help="Score these organs only."),
    ] = None,
    prediction_numbering: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="Label numbering of predictions without names: btcv, chaos-mr, totalsegmentator-v2, or a JSON file.",
        ),
    ] = None,
    reference_numbering: Annotated[
        str | None, Option(metavar="NAME", help="The same for references without names.")
    ] = None,
    json_file: Annotated[Path | None, Option("--json", metavar="FILE", help="Write all results as JSON.")] = None,
    csv_file: Annotated[
        Path | None, Option("--csv", metavar="FILE", help="Write one row per organ and case as CSV.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Score masks against reference masks, organ by organ in 3D.

    Organs are matched by name.
    """
    wanted = organ_names(organs)
    for path, suffix in ((json_file, ".json"), (csv_file, ".csv")):
        if path is not None:
            ensure_writable(path, (suffix,))
    with status("measuring", hidden=quiet):
        from meddelinea.collisions import require_apart
        from meddelinea.evaluation.compare import evaluate_paths
        from meddelinea.evaluation.pairing import files_read
        from meddelinea.evaluation.summary import summarise, write_report_csv, write_report_json

        sides = ((prediction, prediction_numbering), (reference, reference_numbering))
        needed = [file for path, numbering in sides if path.exists() for file in files_read(path, numbering)]
        outputs = [path for path in (json_file, csv_file) if path is not None]
        require_apart(outputs, {"a mask or its labels": needed})
        report = evaluate_paths(
            prediction,
            reference,
            organs=wanted,
            prediction_numbering=prediction_numbering,
            reference_numbering=reference_numbering,
        )
    if json_file is not None:
        write_report_json(report, json_file)
    if csv_file is not None:
        write_report_csv(report, csv_file)
    if not quiet:
        _print_summary(summarise(report))
        for path in (json_file, csv_file):
            if path is not None:
                print(f"written: {path}")
    for failure in report.failures:
        print(f"failed: {failure.case}: {failure.reason}", file=sys.stderr)
    if report.failures:
        cases = len(report.cases) + len(report.failures)
        raise PartialFailureError(f"{len(report.failures)} of {cases} cases could not be measured")


def _print_summary(summary: Summary) -> None:
    """Means over cases for each organ, then over organs, with what the means leave out.

    Of several cases these are counts; of a single case, a word.
    """
    single = summary.cases_measured == 1
    headers = ("organ", "Dice", "NSD", "HD95 mm", "ASSD mm", *(("",) if single else COUNTS))
    table = Table(*headers, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))  # 80 columns
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for organ in summary.organs:
        counts = (organ.cases, organ.missed, organ.false_positive, organ.both_empty)
        words = [word for word, count in zip(COUNTS[1:], counts[1:], strict=True) if count]
        table.add_row(organ.organ, *_figures(organ), *([", ".join(words)] if single else map(str, counts)))
    table.add_section()
    measured = "" if single else str(summary.cases_measured)
    table.add_row("mean over organs", *_figures(summary.mean_over_organs), measured)
    paper = summary.mean_over_paper_organs
    if paper.organs:
        count = len(paper.organs) + len(paper.absent)
        which = f"{len(paper.organs)} of paper's {count}" if paper.absent else f"the paper's {count}"
        table.add_row(f"mean over {which}", *_figures(paper), measured)
    Console().print(table)
    if left_out := summary.mean_over_organs.infinite_distances:
        print(f"distances leave out organs that were missed or invented ({left_out} infinite); Dice counts them as 0")
    for side, names in (("prediction", summary.only_in_prediction), ("reference", summary.only_in_reference)):
        if names:
            print(f"not compared, only in the {side}: {', '.join(names)}")


def _figures(means: Means) -> tuple[str, ...]:
    """Dice, NSD, HD95 and ASSD as text; a dash where there is no value."""
    values = ((means.dice, 3), (means.nsd, 3), (means.hd95_mm, 1), (means.assd_mm, 1))
    return tuple("-" if math.isnan(value) else f"{value:.{digits}f}" for value, digits in values)
