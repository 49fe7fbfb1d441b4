"""The versions that CI installs as the lowest are those that pyproject.toml promises."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_ci_installs_the_lowest_version_of_each_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    promised = {}
    for line in project["dependencies"] + [
        line for name in extras if name not in ("test", "dev") for line in extras[name]
    ]:
        wanted = Requirement(line)
        promised[wanted.name.lower()] = next(
            Version(each.version) for each in wanted.specifier if each.operator == ">="
        )
    del promised["torch"]  # .ci/lowest.txt says why

    pinned = {}
    for line in (ROOT / ".ci" / "lowest.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pinned[name.lower()] = Version(version)
    assert pinned == promised
