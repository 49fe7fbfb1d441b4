"""`meddelinea check`: can this scan be segmented?"""

import json
from pathlib import Path

import numpy as np
import pytest

from support.cli import Run, body, save


@pytest.mark.usefixtures("fake_model")
def test_check_accepts_and_refuses(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, err = run("check", scan)
    assert (code, err) == (0, "")
    assert "may be segmented" in out
    code, _, err = run("check", save(np.zeros((9, 9, 9), np.int16), tmp_path / "zero.nii.gz"))
    assert code == 3
    assert err.count("\n") == 1


@pytest.mark.usefixtures("fake_model")
def test_check_heeds_what_the_user_says_of_the_modality(run: Run, scan: Path) -> None:
    assert run("check", scan, "--modality", "CT")[0] == 0
    code, out, _ = run("check", scan, "--modality", "MR", "--json")
    assert (code, [finding["code"] for finding in json.loads(out)["findings"]]) == (3, ["modality"])
    assert run("check", scan, "--modality", "PET")[0] == 2


@pytest.mark.usefixtures("fake_model")
def test_check_json_names_the_reasons(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, _ = run("check", scan, "--json")
    answer = json.loads(out)
    assert (code, answer["accepted"], answer["findings"]) == (0, True, [])
    assert (answer["shape"], answer["spacing_mm"], answer["orientation"]) == ([48, 48, 6], [2, 2, 5], "LPS")
    code, out, err = run("check", save(body() * 0, tmp_path / "zero.nii.gz"), "--json")
    assert (code, err) == (3, "")
    assert [finding["code"] for finding in json.loads(out)["findings"]] == ["constant"]
    code, out, err = run("check", tmp_path / "absent.nii.gz", "--json")
    assert (code, err) == (3, "")
    assert json.loads(out)["findings"][0]["code"] == "not_found"
