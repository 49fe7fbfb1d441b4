"""What `predict` leaves beside the mask: files that agree with each other, all of them or none."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meddelinea.cli.main import main
from meddelinea.folders import batch
from meddelinea.io.volumes import write_volume
from meddelinea.segmentation import model as model_module
from meddelinea.volume import Volume
from support.tiny_models import write_model

Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    i, j, k = np.indices((40, 40, 12))
    away = np.hypot(i - 20, j - 20)
    hu = np.where(away < 15, 40 + 60 * np.sin(i / 3) * np.cos(j / 4), np.where(away < 18, -100, -1000)) + k
    write_volume(Volume(hu.astype(np.int16), np.diag([6.0, 6.0, 5.0, 1.0])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.fixture
def predict(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path, scan: Path) -> Predict:
    """Run `meddelinea predict -i SCAN WORDS...` with a tiny random model: exit code, stdout, stderr."""
    monkeypatch.setattr(logging, "disable", lambda level: None)  # process-wide, so it would outlive the test

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["predict", "-i", str(scan), "--model", str(model), *(str(word) for word in words)])
        assert isinstance(stop.value.code, int)
        return stop.value.code, *capsys.readouterr()

    return call


def test_all_outputs_of_one_scan_agree(predict: Predict, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    code, printed, _ = predict(
        *("-o", out / "mask.nii.gz", "--statistics", out / "organs.json", "--preview", out / "preview.png"),
        *("--report", out / "report.html", "--uncertainty", out / "doubt.nii.gz", "--json"),
    )
    assert code == 0
    files = json.loads(printed)["files"]
    assert sorted(files) == ["labels", "mask", "preview", "report", "statistics", "uncertainty"]
    assert sorted(Path(file).name for file in files.values()) == sorted(file.name for file in out.iterdir())
    mask, doubt = (nib.load(out / name) for name in ("mask.nii.gz", "doubt.nii.gz"))
    assert mask.shape == doubt.shape == nib.load(scan).shape
    np.testing.assert_allclose(doubt.affine, mask.affine)
    assert 0 < np.asarray(doubt.dataobj).max() <= 100
    organs = json.loads((out / "organs.json").read_text())["organs"]
    page = (out / "report.html").read_text()
    found = [name for name, organ in organs.items() if organ["found"]]
    assert found
    for name in found:
        assert f"{organs[name]['volume_ml']:.1f}" in page
        assert f"{organs[name]['confidence']['expected_dice']:.2f}" in page


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--report", "report.pdf"), 3, "expected .html"),
        (("--uncertainty", "doubt.png"), 3, "expected .nii.gz or .nii or .nrrd"),
        (("--uncertainty", "mask.nii.gz"), 2, "two outputs share a file"),
        (("--report", "mask.json"), 2, "two outputs share a file"),
        (("--report", "absent/report.html"), 3, "does not exist"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(
    predict: Predict, tmp_path: Path, words: tuple[str, str], code: int, says: str
) -> None:
    met, _, err = predict("-o", tmp_path / "mask.nii.gz", words[0], tmp_path / words[1])
    assert (met, err.count("\n")) == (code, 1)
    assert says in err
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_outputs_of_one_scan_are_refused_of_a_folder(predict: Predict, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for words, says in (
        (("--statistics", tmp_path / "statistics.json"), "apply to one scan"),
        (("--report", tmp_path / "report.html"), "expected a folder"),
    ):
        met, _, err = predict("-i", tmp_path, "-o", tmp_path / "masks", *words)
        assert met == 2
        assert says in err


def count_descriptions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is asked for from now on, each time that a model's folder is read."""
    described: list[object] = []
    read = model_module.read_model_files

    def read_model_files(model: str | Path) -> model_module.ModelFiles:
        described.append(model)
        return read(model)

    monkeypatch.setattr(model_module, "read_model_files", read_model_files)
    monkeypatch.setattr(batch, "read_model_files", read_model_files)
    return described


def test_the_models_folder_is_read_once(predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = count_descriptions(monkeypatch)
    assert predict("-o", tmp_path / "mask.nii.gz", "--quiet")[0] == 0
    assert len(described) == 1


def test_the_models_folder_is_read_once_for_many_scans(
    predict: Predict, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = count_descriptions(monkeypatch)
    assert predict("-i", scan.parent, "-o", tmp_path / "masks", "--quiet")[0] == 0
    assert len(described) == 1  # here; the worker is another process
