"""Options that several commands share."""

from pathlib import Path

import pytest

from meddelinea.cli.options import names
from meddelinea.errors import UsageError
from support.cli import Run


@pytest.mark.parametrize(
    ("typed", "read"),
    [(None, None), ("a", ("a",)), ("a, b c ,d", ("a", "b c", "d")), (",a,,b,", ("a", "b")), ("", None), (" ,", None)],
)
def test_a_list_with_commas_drops_empty_entries_and_holds_a_name(
    typed: str | None, read: tuple[str, ...] | None
) -> None:
    if typed is not None and read is None:
        with pytest.raises(UsageError, match="contains no name"):
            names(typed, "cases")
    else:
        assert names(typed, "cases") == read


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("predict", "-i", "a.nii", "-o", "b.nii", "--organs"), "--organs"),
        (("prepare", "src", "store", "--format", "btcv", "--organs"), "--organs"),
        (("evaluate", "a.nii", "b.nii", "--organs"), "--organs"),
        (("adapt", "src", "out", "--organs"), "--organs"),
        (("adapt", "src", "out", "--cases"), "--cases"),
        (("benchmark", "robustness", "src", "out", "--format", "btcv", "--cases"), "--cases"),
        (("benchmark", "few-shot", "src", "out", "--format", "btcv", "--k"), "--k"),
    ],
)
def test_a_list_of_nothing_is_a_usage_error_that_names_its_option(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], flag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words, ",")
    assert (code, out) == (2, "")
    assert err == f"error: ',' contains no name; expected one or more, separated by commas ({flag})\n"
    assert list(tmp_path.iterdir()) == []
