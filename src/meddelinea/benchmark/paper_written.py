"""The paper's tables as files: Markdown for people, CSV for spreadsheets, JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meddelinea.benchmark.markdown import table as markdown
from meddelinea.benchmark.paper_rows import Column, Row
from meddelinea.benchmark.paper_tables import Table
from meddelinea.evaluation.summary import plain
from meddelinea.files import write_json, write_text
from meddelinea.tables import write_table


def cell(row: Row, column: Column) -> str:
    """A value as text: nothing where it was not measured, `-` where what was measured has none."""
    value = row.cells.get(column.key)
    if value is None:
        return ""
    return f"{value:,.{column.digits}f}" if math.isfinite(value) else "-"


def row_name(row: Row) -> str:
    """What a row is called."""
    return f"{row.name}, paper" if row.paper else row.name


def table_lines(table: Table) -> list[str]:
    """The table in Markdown, the paper's rows in italics."""
    lines = [f"## Table {table.number}: {table.title}"]
    for section in table.sections:
        rows = (
            (f"*{name}*" if row.paper else name, *(cell(row, c) for c in table.columns))
            for row in section.rows
            if (name := row_name(row))
        )
        lines += ["", f"**{section.title}**", "", *markdown(("", *(c.heading for c in table.columns)), rows)]
    return [*lines, "", *(f"- {line}" for line in remarks(table))]


def remarks(table: Table) -> list[str]:
    """How to read the table, and what it lacks."""
    missing = (f"missing: {line}" for line in table.missing)
    return [*table.notes, *missing, *(f"failed: {line}" for line in table.failed)]


def write_paper_table(table: Table, folder: Path) -> None:
    """Write `table-N.md`, `.csv` and `.json` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"table-{table.number}"
    write_text("\n".join(table_lines(table)) + "\n", path.with_suffix(".md"))
    keys = [column.key for column in table.columns]
    write_table(["table", "section", "name", "source", *keys], _records(table, keys), path.with_suffix(".csv"))
    write_json(plain(vars(table)), path.with_suffix(".json"))


def _records(table: Table, keys: list[str]) -> Iterator[dict[str, Any]]:
    for section in table.sections:
        for row in section.rows:
            about = {"table": table.number, "section": section.title, "name": row.name}
            cells = plain({key: row.cells.get(key) for key in keys})
            yield {**about, "source": "paper" if row.paper else "measured", **cells}
