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
from meddelinea.errors import PartialFailureError

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
    beside_paper: Annotated[bool, Option("--beside-paper", help="Show the paper's own figures as well.")] = False,
    train: Annotated[
        bool, Option("--train/--no-train", help="Train and test what is missing, or leave it out.")
    ] = True,
    methods: Annotated[str | None, Option(metavar="NAME,NAME", help="Train and test these only.")] = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Hide the progress bar.")] = False,
) -> None:
    """Make the tables of the paper.

    What a table needs is trained and tested; what is finished is kept, so the command can be stopped and repeated.
    Tables are written to OUT/tables as Markdown, CSV and JSON. What is missing is named under them.
    """
    with reporting(hidden=quiet) as report:
        from meddelinea.benchmark.paper import make_tables
        from meddelinea.benchmark.paper_file import read_paper_bench
        from meddelinea.benchmark.paper_tables import TABLES

        bench = read_paper_bench(bench_file)
        chosen = names(methods, "methods")
        numbers = tuple(TABLES) if table is None else (table,)
        made, reasons = make_tables(
            bench, output, numbers, train=train, methods=chosen, beside_paper=beside_paper, progress=report
        )
    console = Console(highlight=False)
    for each in made:
        _print(each, console)
    failed = {line for each in made for line in each.failed}
    if reasons or failed:
        raise PartialFailureError(
            f"{len(reasons)} results are missing and {len(failed)} tests of cases failed; see under the tables"
        )


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
