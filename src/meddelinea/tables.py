"""Tables as CSV files that spreadsheets open: a name that begins like a formula is no formula."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meddelinea.files import whole

#: With these, wide forms among them, a spreadsheet takes a cell for a formula, whatever the file says.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as UTF-8 CSV with a head, whole or not at all; words are `escaped`, numbers are not.

    Raises
    ------
    InputRefusedError
        If the folder is missing, not writable or full.
    """
    with whole(path) as part, part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        for row in rows:
            table.writerow({name: escaped(cell) if isinstance(cell, str) else cell for name, cell in row.items()})


def escaped(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: behind an apostrophe where it begins like one."""
    return f"'{cell}" if _like_formula(cell) else cell


def unescaped(cell: str) -> str:
    """What `escaped` was given; other cells as they are."""
    return cell[1:] if cell.startswith("'") and _like_formula(cell[1:]) else cell


def _like_formula(cell: str) -> bool:
    """Apostrophes and spaces before it count for nothing, so that what is escaped can be escaped again."""
    return cell.lstrip("' ").startswith(_FORMULA)
