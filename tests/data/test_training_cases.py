"""The scans that a model's folder names: read back as they were written, and inherited without repeating one."""

import json
from pathlib import Path

import pytest

from meddelinea.data.training_cases import SeenScan, TrainingCases
from meddelinea.errors import WeightsMissingError

A, B, C = (SeenScan(name, "btcv", f"{number:064x}", "1:1x1x1:") for number, name in enumerate("abc"))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    cases = TrainingCases(train=(A, C), validation=(B,), test=())
    cases.write(tmp_path)
    assert TrainingCases.read(tmp_path) == cases
    document = json.loads((tmp_path / "training_cases.json").read_text())
    assert [case["name"] for case in document["train"]] == ["a", "c"]


def test_a_file_of_an_older_version_has_no_sketches_and_no_test_cases(tmp_path: Path) -> None:
    case = {"name": "a", "dataset": "btcv", "fingerprint": "0"}
    (tmp_path / "training_cases.json").write_text(json.dumps({"train": [case], "validation": []}))
    assert TrainingCases.read(tmp_path) == TrainingCases((SeenScan("a", "btcv", "0", None),), ())


def test_a_scan_is_inherited_once_and_keeps_its_own_name() -> None:
    renamed = SeenScan("z", "amos", A.fingerprint, A.sketch)
    cases = TrainingCases(train=(A,), validation=()).after((renamed, B, C, B))
    assert cases.train == (A, B, C)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"train": [{}], "validation": []}', '{"train": 3}'])
def test_a_file_of_another_form_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "training_cases.json").write_text(content)
    with pytest.raises(WeightsMissingError, match=r"training_cases\.json: does not name the training cases") as caught:
        TrainingCases.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError, match="install or train the model again"):
        TrainingCases.read(tmp_path)
