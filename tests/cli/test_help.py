"""What `--help` shows: sentences, as wide as the terminal, of every command and option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from meddelinea.cli.main import app, main


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each command with the words that call it."""
    top = typer.main.get_command(app)
    yield (), top
    for name, command in top.commands.items():
        yield (name,), command
        for inner_name, inner in getattr(command, "commands", {}).items():
            yield (name, inner_name), inner


def shown(words: tuple[str, ...], width: int, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    patch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_help_is_as_wide_as_the_terminal(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow, wide = (shown(words, width, monkeypatch, capsys) for width in (80, 140))
    assert max(map(len, narrow.splitlines())) <= 80
    assert max(map(len, wide.splitlines())) <= 140
    assert narrow.split() == wide.split()  # nothing is cut off
    assert len(wide.splitlines()) <= len(narrow.splitlines())


def test_help_uses_more_than_80_columns_where_there_are_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 100 < max(map(len, shown(("predict",), 120, monkeypatch, capsys).splitlines())) <= 120


def test_every_command_and_option_is_explained_in_a_sentence() -> None:
    for words, command in commands():
        first = command.help.split("\n\n")[0]
        texts = [first, *(option.help for option in command.params)]
        for text in texts:
            assert text, words
            assert text[0].isupper() or text.split()[0].strip(",") in ("euler_ancestral", "nifti", "small"), text
            assert text.endswith("."), text
            assert "default" not in text, text  # is shown in its own place
