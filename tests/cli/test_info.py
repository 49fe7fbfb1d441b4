"""`meddelinea info`: a description of a model and of the presets."""

import json
from pathlib import Path

import pytest

from meddelinea.errors import WeightsMissingError
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
