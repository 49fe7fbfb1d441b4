"""`meddelinea evaluate`: masks against references."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from meddelinea.cli.options import QuietOption, organ_names
from meddelinea.cli.progress import status
from meddelinea.errors import PartialFailureError
from meddelinea.files import ensure_writable

if TYPE_CHECKING:
    from meddelinea.evaluation.summary import GroupSummary, OrganSummary, Summary

NUMBERING_HELP = (
    "Numbering of masks that nothing beside them names: btcv, chaos-mr, totalsegmentator-v2, or a JSON file."
)


def evaluate(
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION", help="A mask, or a folder of masks.")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="Its reference, or a folder of them.")],
    organs: Annotated[str | None, typer.Option(help="Only these, such as liver,spleen (default: all shared).")] = None,
    prediction_numbering: Annotated[str | None, typer.Option(help=NUMBERING_HELP)] = None,
    reference_numbering: Annotated[str | None, typer.Option(help=NUMBERING_HELP)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a row an organ and case.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Score masks against references, organ by organ in 3D; organs are matched by name."""
    wanted = organ_names(organs)
    for path, suffix in ((json_file, ".json"), (csv_file, ".csv")):
        if path is not None:
            ensure_writable(path, (suffix,))
    with status("measuring", hidden=quiet):
        from meddelinea.evaluation.compare import evaluate_paths
        from meddelinea.evaluation.summary import summarise, write_report_csv, write_report_json

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
    """Means over cases for each organ, then over organs, with the counts of what the means leave out."""
    headers = ("organ", "Dice", "NSD", "HD95 mm", "ASSD mm", "cases", "missed", "invented", "absent")
    table = Table(*headers, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))  # 80 columns
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for organ in summary.organs:
        counts = (organ.cases, organ.missed, organ.false_positive, organ.both_empty)
        table.add_row(organ.organ, *_figures(organ), *map(str, counts))
    table.add_section()
    table.add_row("mean over organs", *_figures(summary.mean_over_organs), str(summary.cases_measured))
    paper = summary.mean_over_paper_organs
    if paper.organs:
        count = len(paper.organs) + len(paper.absent)
        table.add_row(f"mean, {len(paper.organs)} of paper's {count}", *_figures(paper), str(summary.cases_measured))
    Console().print(table)
    if summary.mean_over_organs.infinite_distances:
        left_out = summary.mean_over_organs.infinite_distances
        print(f"distances leave out {left_out} organs that were missed or invented (infinite); Dice counts them as 0")
    for side, names in (("prediction", summary.only_in_prediction), ("reference", summary.only_in_reference)):
        if names:
            print(f"not compared, only in the {side}: {', '.join(names)}")


def _figures(means: OrganSummary | GroupSummary) -> tuple[str, ...]:
    """Dice, NSD, HD95 and ASSD as text; a dash where there is no value."""
    values = ((means.dice, 3), (means.nsd, 3), (means.hd95_mm, 1), (means.assd_mm, 1))
    return tuple("-" if math.isnan(value) else f"{value:.{digits}f}" for value, digits in values)
