"""The documents hold together: links lead somewhere, tables are whole, and what they name is in the code."""

import ast
import csv
import importlib
import json
import re
from functools import cache
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from meddelinea.training.config import RunConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("weights/*/README.md")])
TABLES = sorted((ROOT / "docs" / "history").glob("*.csv"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """What GitHub calls a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_documents_are_found() -> None:
    assert {"README.md", "docs/results.md", "docs/history/README.md"} <= {name(path) for path in DOCUMENTS}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        goal = (path.parent / file).resolve() if file else path
        assert goal.exists(), f"{target}: there is no {goal}"
        assert not anchor or anchor in anchors(goal), f"{target}: {goal.name} has no such heading"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_files_named_in_a_document_exist(path: Path) -> None:
    named = re.findall(r"(?<![\w/.-])((?:src|tests|recipes|benchmarks|examples|docs)/[\w./-]*\w)", path.read_text())
    assert [file for file in named if not (ROOT / file).exists() and "RECIPE" not in file] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_names_that_a_document_imports_exist(path: Path) -> None:
    for block in re.findall(r"^```python$(.*?)^```$", path.read_text(), flags=re.MULTILINE | re.DOTALL):
        for statement in ast.walk(ast.parse(block)):
            if isinstance(statement, ast.ImportFrom):
                module = importlib.import_module(str(statement.module))
                assert [alias.name for alias in statement.names if not hasattr(module, alias.name)] == []


def test_the_readme_fits_the_first_minute() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 100
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("command", ["demo", "tests"])
def test_the_readme_marks_a_command_for_programs(command: str) -> None:
    """One line that makes its own environment: `.ci/run` evaluates the second."""
    pattern = rf"^<!-- command: {command} -->\n```sh\npython3 -m venv .+\n```$"
    assert re.search(pattern, (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_of_the_history_is_whole_and_linked(path: Path) -> None:
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file))
    assert len(set(header)) == len(header)
    assert {len(row) for row in rows} == {len(header)}
    assert f"({path.name})" in (path.parent / f"{path.stem[:7]}.md").read_text()


def dotted_names() -> list[str]:
    """Symbols of the code and settings of run files in the tables of docs/paper_map.md."""
    found = re.findall(r"`([A-Za-z_]+(?:\.\w+)+)[`:(]", (ROOT / "docs" / "paper_map.md").read_text())
    return sorted(set(found))


@cache
def settings() -> set[str]:
    """Every word that a run file may use as a key."""
    schema = json.dumps(TypeAdapter(RunConfig).json_schema())
    return set(re.findall(r'"(\w+)": {', schema))


@pytest.mark.parametrize("dotted", dotted_names())
def test_a_name_in_the_paper_map_is_in_the_code(dotted: str) -> None:
    if set(dotted.split(".")) <= settings():
        return
    room, *attributes = dotted.split(".")
    value = importlib.import_module(f"meddelinea.{room}.{attributes.pop(0)}")
    for attribute in attributes:
        value = getattr(value, attribute)
