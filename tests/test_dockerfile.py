"""The container's recipe copies what exists, installs what pyproject.toml offers, and does not run as root."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """(instruction, rest of the line) of each line; no line is continued."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line and line[0] != "#"]


def of(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def copied() -> list[str]:
    return [source for rest in of("COPY") for source in rest.split()[:-1]]


@pytest.mark.parametrize("source", copied())
def test_what_is_copied_exists_and_is_not_ignored(source: str) -> None:
    assert (ROOT / source).exists()
    assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines()


def test_what_the_package_is_built_from_is_copied() -> None:
    assert {"pyproject.toml", PROJECT["readme"], *PROJECT["license-files"], "src"} <= set(copied())


def test_the_extras_exist() -> None:
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", "\n".join(of("RUN")))
    assert "serve" in extras.split(",")
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


def test_python_and_torch_are_versions_that_the_package_allows() -> None:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    (python,) = re.findall(r"^python:([\d.]+)-slim$", of("FROM")[0])
    (torch,) = re.findall(r"torch==([\d.]+)", "\n".join(of("RUN")))
    (needed,) = [Requirement(line) for line in PROJECT["dependencies"] if Requirement(line).name == "torch"]
    assert python in SpecifierSet(PROJECT["requires-python"])
    assert torch in needed.specifier
    assert f"torch=={torch}" in (ROOT / "README.md").read_text()


def test_the_command_line_runs_as_a_user_of_its_own() -> None:
    (entry,) = of("ENTRYPOINT")
    assert entry.strip('[]"') in PROJECT["scripts"]
    (user,) = of("USER")
    assert any(f"useradd --uid 1000 --create-home {user}" in line for line in of("RUN"))
    order = [name for name, _ in instructions()]
    assert order.index("USER") < order.index("ENTRYPOINT")
