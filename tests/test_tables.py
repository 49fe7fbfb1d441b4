"""Tables that spreadsheets open: names stay names."""

import csv
from pathlib import Path

import pytest

from meddelinea.tables import escaped, unescaped, write_table

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "'=1", "''=1", "\uff1d1", '=HYPERLINK("a")')


@pytest.mark.parametrize("cell", FORMULAS)
def test_what_begins_like_a_formula_is_escaped_and_read_back(cell: str) -> None:
    assert escaped(cell) == f"'{cell}"
    assert unescaped(escaped(cell)) == cell


@pytest.mark.parametrize("cell", ["", "a=1", "scan 1", "'quoted'", "1-2", "'", "it's -1"])
def test_other_cells_are_left_as_they_are(cell: str) -> None:
    assert escaped(cell) == unescaped(cell) == cell


def test_a_table_holds_names_as_text_and_numbers_as_numbers(tmp_path: Path) -> None:
    rows = [{"case": "=cmd", "ml": -1.5}, {"case": 'a,"b"\n', "ml": None}, {"case": "\udcff", "ml": 2}]
    write_table(("case", "ml"), rows, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["case", "ml"],
            ["'=cmd", "-1.5"],
            ['a,"b"\n', ""],
            ["\\udcff", "2"],
        ]
