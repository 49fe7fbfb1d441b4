"""`meddelinea benchmark paper`: the paper's tables of whatever methods and data are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from meddelinea.cli.options import names
from meddelinea.cli.progress import reporting
from meddelinea.errors import PartialFailureError, UsageError

if TYPE_CHECKING:
    from meddelinea.benchmark.paper_tables import Table as PaperTable

#: The colour of the paper's own figures.
PAPER_STYLE = "magenta"


def paper(
    bench_file: Annotated[Path, Argument(metavar="PAPER.yaml", help="Datasets, methods and settings.")],
    output: Annotated[Path, Argument(metavar="OUT", help="Folder for runs, masks and tables; kept if it exists.")],
    table: Annotated[
        int | None, Option("--table", metavar="N", min=1, max=9, show_default="all", help="Make this table only.")
    ] = None,
    figure: Annotated[
        int | None, Option("--figure", metavar="N", min=1, max=8, help="Draw this figure, and no table.")
    ] = None,
    beside_paper: Annotated[bool, Option("--beside-paper", help="Show the paper's own figures as well.")] = False,
    train: Annotated[
        bool, Option("--train/--no-train", help="Train and test what is missing, or leave it out.")
    ] = True,
    methods: Annotated[str | None, Option(metavar="NAME,NAME", help="Train and test these only.")] = None,
    case: Annotated[str | None, Option(metavar="NAME", help="Test case of a figure.")] = None,
    slice: Annotated[
        int | None, Option(metavar="K", min=0, help="Axial slice of a figure, from the feet at 0.")
    ] = None,
    organ: Annotated[str | None, Option(metavar="NAME", help="Organ that a figure is about.")] = None,
    point: Annotated[
        str | None, Option(metavar="X,Y", help="Column and row of the model's slice, for attention.")
    ] = None,
    block: Annotated[int, Option(metavar="N", min=0, help="Block, for attention; 0: the last.")] = 0,
    errors: Annotated[bool, Option("--errors", help="Show errors in Figure 8.")] = False,
    preset: Annotated[str, Option(metavar="NAME", help="Sizes of Figure 2.")] = "paper",
    formats: Annotated[str, Option("--format", metavar="NAME,NAME", help="Of figures: png, svg, pdf.")] = "png,svg",
    quiet: Annotated[bool, Option("--quiet", "-q", help="Hide the progress bar.")] = False,
) -> None:
    """Make the tables of the paper, or one of its figures.

    What a table needs is trained and tested; what is finished is kept, so the command can be stopped and repeated.
    Tables are written to OUT/tables as Markdown, CSV and JSON, figures to OUT/figures. What is missing is named.
    """
    if figure is not None and table is not None:
        raise UsageError("expected a table or a figure, not both", parameter="figure")
    with reporting(hidden=quiet) as report:
        from meddelinea.benchmark.paper_figures import Choice, make_figure
        from meddelinea.benchmark.paper_file import read_paper_bench
        from meddelinea.labels import canonical_name

        bench = read_paper_bench(bench_file)
        chosen = names(methods, "methods")
        choice = Choice(
            case=case,
            slice=slice,
            point=_point(point),
            organ=None if organ is None else canonical_name(organ),
            block=block,
            errors=errors,
            preset=preset,
            formats=names(formats, "formats") or (),
        )
        if figure is not None:
            drawn = make_figure(bench, output, figure, choice, train=train, methods=chosen, progress=report)
        elif choice != Choice():
            raise UsageError("a choice for a figure, and no figure; name its number", parameter="figure")
        else:
            from meddelinea.benchmark.paper import make_tables
            from meddelinea.benchmark.paper_tables import TABLES

            numbers = tuple(TABLES) if table is None else (table,)
            made, reasons = make_tables(
                bench, output, numbers, train=train, methods=chosen, beside_paper=beside_paper, progress=report
            )
    if figure is not None:
        for line in (*drawn.missing, *map(str, drawn.files)):
            print(line)
        return
    console = Console(highlight=False)
    for each in made:
        _print(each, console)
    failed = {line for each in made for line in each.failed}
    if reasons or failed:
        raise PartialFailureError(
            f"{len(reasons)} results are missing and {len(failed)} tests of cases failed; see under the tables"
        )


def _point(text: str | None) -> tuple[int, int] | None:
    """Column and row, of `X,Y`."""
    if text is None:
        return None
    try:
        column, row = (int(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text}: expected a column and a row, such as 60,80", parameter="point") from error
    return column, row


def _print(table: PaperTable, console: Console) -> None:
    """A table, the paper's rows in a colour of their own, and what there is to say of it."""
    from meddelinea.benchmark.paper_written import cell, remarks, row_name

    console.print(Text(f"Table {table.number}: {table.title}", "bold"))
    for section in table.sections:
        console.print()
        console.print(Text(section.title, "underline"))
        shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # 80 columns
        shown.add_column("")
        for column in table.columns:
            shown.add_column(column.heading.replace(" ", "\n"), justify="right", no_wrap=True, vertical="bottom")
        for row in section.rows:
            cells = (Text(text) for text in (row_name(row), *(cell(row, column) for column in table.columns)))
            shown.add_row(*cells, style=PAPER_STYLE if row.paper else "")
        console.print(shown)
    console.print()
    for line in remarks(table):
        console.print(Text(line))
    console.print()
