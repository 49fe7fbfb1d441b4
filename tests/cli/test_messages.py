"""Flags are the command line's: a message of the library names parameters, for it may reach who called a function."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import meddelinea

ROOT = Path(meddelinea.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z]")
#: A command of another program, which names its own flags.
FOREIGN = ("ray start --head",)


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and value of each string in a module that is no docstring."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def flagged(source: str) -> list[int]:
    """Lines of the strings that name a flag."""
    return [
        line
        for line, text in texts(ast.parse(source))
        if FLAG.search(text) and not any(command in text for command in FOREIGN)
    ]


def test_the_search_finds_a_flag_in_a_message_and_nothing_else() -> None:
    assert flagged('raise E(f"{x}: leave --modality {y} out")') == [1]
    assert flagged('"""`predict --json` does it."""\nx = "a -- b, ---, a--b"\ny = "run: ray start --head"') == []


def test_no_message_below_the_command_line_names_a_flag() -> None:
    modules = [path for path in sorted(ROOT.rglob("*.py")) if path.parent.name != "cli"]
    found = {str(path.relative_to(ROOT)): flagged(path.read_text(encoding="utf-8")) for path in modules}
    assert len(modules) > 100
    assert {path: lines for path, lines in found.items() if lines} == {}
