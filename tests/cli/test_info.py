"""`meddelinea info`: a description of a model and of the presets."""

import json
import sys
from pathlib import Path

import pytest

from meddelinea.errors import WeightsMissingError
from meddelinea.methods.known import METHODS, TABLE_4
from support.cli import Run


@pytest.mark.usefixtures("fake_model")
def test_info_states_counts_organs_licence_and_cases(run: Run) -> None:
    code, out, err = run("info", "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert list(answer["presets"]) == ["small", "paper", "xl"]
    for counts in answer["presets"].values():
        assert counts["total"] > counts["control"] > 0
    assert answer["model"]["organs"] == ["liver", "spleen"]
    assert answer["model"]["licence"] == "apache-2.0"
    assert answer["model"]["training_cases"] == ["img0001"]
    code, out, _ = run("info")
    assert code == 0
    assert f"{answer['presets']['paper']['control']:,}" in out
    assert run("info", "large")[0] == 5


def test_info_fits_a_narrow_terminal_without_cutting_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("info")
    organs = json.loads(run("info", "--json")[1])["model"]["organs"]
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert ", ".join(organs) in " ".join(out.split())
    assert "validation cases none" in " ".join(out.split())


@pytest.mark.usefixtures("fake_model")
def test_info_without_weights_still_shows_the_presets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def model_folder(model: str) -> Path:
        raise WeightsMissingError("no weights here")

    monkeypatch.setattr("meddelinea.segmentation.model.model_folder", model_folder)
    code, out, _ = run("info", "--json")
    assert code == 0
    assert json.loads(out)["model"] == {"missing": "no weights here"}


def test_the_methods_are_listed_with_their_parameters_beside_the_papers(run: Run) -> None:
    code, out, err = run("info", "--methods", "--json")
    assert (code, err) == (0, "")
    listed = json.loads(out)["methods"]
    assert list(listed) == list(METHODS)
    for name, counts in listed.items():
        assert 0 < counts["small"] <= counts["paper"], name
        assert counts["table_4_millions"] == TABLE_4.get(name)
    assert listed["unet"]["paper"] == pytest.approx(33e6, rel=0.01)
    assert listed["meddelinea"]["paper"] == pytest.approx(227e6, rel=0.02)
    code, out, _ = run("info", "--methods")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for name, counts in listed.items():
        (row,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert f"{counts['small']:,}" in row
        assert f"{counts['paper']:,}" in row


def test_methods_and_a_model_are_not_described_at_once(run: Run) -> None:
    code, _, err = run("info", "small", "--methods")
    assert (code, err.count("\n")) == (2, 1)
    assert "leave out MODEL" in err


def test_a_method_whose_package_is_missing_has_an_empty_cell(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)  # as if it were not installed
    code, out, _ = run("info", "--methods", "--json")
    assert code == 0
    listed = json.loads(out)["methods"]
    assert listed["unet"]["paper"] is None
    assert listed["direct"]["paper"] > 0
