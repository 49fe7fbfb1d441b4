"""Commands with a model of the Hugging Face hub, against a stand-in: what they say of it, and what a mask says."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli import Run
from support.hub import Hub, stand_in
from support.tiny_models import write_model

NAME = "clinic/abdomen"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("trained"))
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with stand_in(tmp_path, monkeypatch) as running:
        yield running


def test_predict_says_where_the_model_came_from_and_the_mask_names_its_commit(
    hub: Hub, trained: Path, scan: Path, tmp_path: Path, run: Run
) -> None:
    commit = hub.add(NAME, trained)
    mask = tmp_path / "mask.nii.gz"
    code, _, err = run("predict", "-i", scan, "-o", mask, "--model", NAME)
    assert code == 0, err
    assert err.splitlines()[0] == f"model: {NAME}@{commit} from the Hugging Face hub; licence: cc-by-4.0"
    made = json.loads((tmp_path / "mask.json").read_text())
    assert made["model"] == f"{NAME}@{commit}"

    again = tmp_path / "again.nii.gz"
    assert run("predict", "-i", scan, "-o", again, "--model", made["model"], "--quiet") == (0, "", "")
    assert again.read_bytes() == mask.read_bytes()


def test_a_folder_of_scans_is_segmented_by_one_commit(
    hub: Hub, trained: Path, scan: Path, tmp_path: Path, run: Run
) -> None:
    commit = hub.add(NAME, trained)
    code, _, err = run("predict", "-i", scan.parent, "-o", tmp_path / "masks", "--model", NAME)
    assert code == 0, err
    assert f"model: {NAME}@{commit} from the Hugging Face hub" in err
    assert json.loads((tmp_path / "masks" / "scan.json").read_text())["model"] == f"{NAME}@{commit}"


def test_a_folder_of_that_name_is_used_and_said_to_be(hub: Hub, trained: Path, run: Run, scan: Path) -> None:
    hub.add(NAME, trained)
    shutil.copytree(trained, NAME)
    code, _, err = run("check", scan, "--model", NAME)
    assert code == 0, err
    assert f"model: abdomen from the folder {NAME}, not the Hugging Face hub; licence: cc-by-4.0" in err
    assert hub.requests == []


def test_info_shows_licence_and_source(hub: Hub, trained: Path, run: Run) -> None:
    commit = hub.add(NAME, trained)
    code, out, err = run("info", NAME, "--json")
    assert (code, err) == (0, "")
    described = json.loads(out)["model"]
    assert described["name"] == f"{NAME}@{commit}"
    assert (described["source"], described["licence"]) == ("Hugging Face hub", "cc-by-4.0")


@pytest.mark.parametrize("command", [("info",), ("check", "scan.nii.gz", "--model")])
def test_a_model_that_cannot_be_had_is_one_line_and_exit_code_5(
    hub: Hub, trained: Path, run: Run, command: tuple[str, ...]
) -> None:
    hub.add("clinic/gated", trained, gated=True)
    for name, reason in (("clinic/absent", "no such repository"), ("clinic/gated", "access is granted by its owner")):
        code, out, err = run(*command, name)
        assert (code, out) == (5, "")
        assert err.startswith(f"error: {name}: ")
        assert reason in err
        assert err.count("\n") == 1
