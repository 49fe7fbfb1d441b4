"""What `predict` leaves beside the mask: files that agree with each other, all of them or none."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea import files, segment
from meddelinea.cli.main import main
from meddelinea.errors import InputRefusedError
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
        *("--report", out / "report.html", "--uncertainty", out / "doubt.nii.gz"),
        *("--surfaces", out / "organs.glb", "--json"),
    )
    assert code == 0
    files = json.loads(printed)["files"]
    assert sorted(files) == ["labels", "mask", "preview", "report", "statistics", "surfaces", "uncertainty"]
    assert (out / "organs.glb").read_bytes()[:4] == b"glTF"
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


def test_mask_and_uncertainty_open_where_the_scan_does_though_its_sform_is_sheared(
    predict: Predict, scan: Path, tmp_path: Path
) -> None:
    """SimpleITK places a scan by its qform and refuses a sheared sform that has none beside it."""
    image = nib.load(scan)
    affine, sheared = image.affine, (np.eye(4) + np.eye(4, k=1) * [0, 0.002, 0.0015, 0]) @ image.affine
    image.set_sform(sheared, 1)
    image.set_qform(affine, 1)
    nib.save(image, scan)
    assert predict("-o", tmp_path / "mask.nii.gz", "--uncertainty", tmp_path / "doubt.nii.gz")[0] == 0
    there = sitk.ReadImage(str(scan))
    for name in ("mask.nii.gz", "doubt.nii.gz"):
        read = sitk.ReadImage(str(tmp_path / name))
        assert (read.GetOrigin(), read.GetDirection()) == (there.GetOrigin(), there.GetDirection())
        np.testing.assert_allclose(nib.load(tmp_path / name).affine, sheared)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--report", "report.pdf"), 3, "expected .html"),
        (("--uncertainty", "doubt.png"), 3, "expected .nii.gz or .nii or .nrrd"),
        (("--surfaces", "organs.obj"), 3, "expected .glb or .stl"),
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


# Files of the input, and files of others


@pytest.mark.parametrize("option", ["-o", "--statistics", "--preview", "--report", "--uncertainty", "--surfaces"])
@pytest.mark.parametrize("how", ["itself", "soft", "hard", "case"])
def test_no_output_takes_the_place_of_a_file_of_the_input(
    predict: Predict, tmp_path: Path, option: str, how: str
) -> None:
    suffixes = {"-o": ".nii", "--statistics": ".json", "--preview": ".png", "--report": ".html", "--surfaces": ".stl"}
    suffix = suffixes.get(option, ".nrrd")
    folder = tmp_path / "dcm"
    folder.mkdir()
    needed = folder / f"needed{suffix}"
    needed.write_bytes(b"a file of the series")
    output = {"itself": needed, "case": folder / f"NEEDED{suffix}"}.get(how, tmp_path / f"{how}{suffix}")
    if how == "soft":
        output.symlink_to(needed)
    elif how == "hard":
        os.link(needed, output)
    words = ["-i", folder, "-o", tmp_path / "m.nii.gz"]
    words[words.index("-o") + 1 :] = [output] if option == "-o" else [tmp_path / "m.nii.gz", option, output]
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code, _, err = predict(*words, "--overwrite")
    assert (code, err.count("\n")) == (2, 1)
    assert "would overwrite the scan" in err
    assert needed.read_bytes() == b"a file of the series"
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_the_data_file_of_a_header_and_a_models_files_are_no_outputs(
    predict: Predict, tmp_path: Path, model: Path
) -> None:
    (tmp_path / "s.nhdr").write_text("NRRD0004\ndata file: m.json\n")
    (tmp_path / "m.json").write_bytes(b"voxels")
    code, out, err = predict("-i", tmp_path / "s.nhdr", "-o", tmp_path / "m.nii.gz", "--json")
    assert (code, "would overwrite the scan" in err) == (2, True)
    assert [finding["code"] for finding in json.loads(out)["findings"]] == ["output_clash"]
    for output in (model / "labels.nii.gz", model / "new.nii.gz"):
        code, _, err = predict("-o", output)
        assert (code, "lies in the model's folder" in err) == (2, True)
    assert (tmp_path / "m.json").read_bytes() == b"voxels"


@pytest.mark.parametrize("content", ["{}", '{"labels": {"bone": 1}}', "[1]", "not JSON", None])
def test_a_file_of_others_beside_the_mask_is_replaced_on_request_only(
    predict: Predict, tmp_path: Path, content: str | None
) -> None:
    if content is None:
        (tmp_path / "m.json").symlink_to("gone")
    else:
        (tmp_path / "m.json").write_text(content)
    code, out, err = predict("-o", tmp_path / "m.nii.gz", "--json")
    assert (code, err.count("\n")) == (3, 1)
    assert "m.json: exists" in err
    assert "(--overwrite)" in err
    assert [finding["code"] for finding in json.loads(out)["findings"]] == ["output_exists"]
    assert not (tmp_path / "m.nii.gz").exists()
    assert content is None or (tmp_path / "m.json").read_text() == content
    assert predict("-o", tmp_path / "m.nii.gz", "--quiet", "--overwrite")[0] == 0
    assert json.loads((tmp_path / "m.json").read_text())["model"]
    assert predict("-o", tmp_path / "m.nii.gz", "--quiet")[0] == 0  # what was written before is ours


def test_results_in_python_are_no_less_careful(scan: Path, tmp_path: Path, model: Path) -> None:
    result = segment(scan, str(model), steps=1, device="cpu")
    with pytest.raises(InputRefusedError, match="would overwrite the scan"):
        result.save(scan)
    (tmp_path / "m.json").write_text("mine")
    with pytest.raises(InputRefusedError, match="exists"):
        result.save(tmp_path / "m.nii.gz")
    result.save(tmp_path / "m.nii.gz", overwrite=True)
    result.save(tmp_path / "m.nii.gz")


# Names as long as a file system has them


@pytest.mark.parametrize("letter", ["x", "é", "心"])
@pytest.mark.parametrize("size", [226, 240, 255])
def test_names_of_any_length_that_a_folder_can_have_work(
    predict: Predict, tmp_path: Path, letter: str, size: int
) -> None:
    def name(suffix: str) -> str:
        room = size - len(suffix)
        width = len(letter.encode())
        return letter * (room // width) + "y" * (room % width) + suffix

    options = {"--statistics": ".json", "--preview": ".png", "--report": ".html", "--uncertainty": ".nrrd"}
    words = [word for option, suffix in options.items() for word in (option, tmp_path / "out" / f"a{name(suffix)[1:]}")]
    (tmp_path / "out").mkdir()
    if letter != "x":
        words = []  # a letter would be cut
    code, _, err = predict("-o", tmp_path / "out" / name(".nii.gz"), *words, "--quiet")
    assert (code, err) == (0, "")
    assert len(list((tmp_path / "out").iterdir())) == (6 if words else 2)


@pytest.mark.parametrize(("suffix", "code"), [(".nii.gz", 3), (".nii", 3), (".dcm", 3)])
def test_a_name_that_is_too_long_is_refused_before_the_work(
    predict: Predict, tmp_path: Path, suffix: str, code: int
) -> None:
    """The sidecar of a mask of 255 bytes can be one byte longer than it."""
    size = 256 if suffix == ".nii.gz" else 255
    met, _, err = predict("-o", tmp_path / ("x" * (size - len(suffix)) + suffix))
    assert (met, err.count("\n")) == (code, 1)
    assert "is too long" in err
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]


# A disk that is full


@pytest.mark.parametrize("option", ["--statistics", "--preview", "--report", "--uncertainty", "--surfaces", "-o"])
@pytest.mark.parametrize("older", [True, False])
def test_all_files_of_a_scan_are_replaced_or_none(
    predict: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, older: bool
) -> None:
    """FAKE: a disk that takes all files but one, whichever is written."""
    names = {"--statistics": "s.json", "--preview": "p.png", "--report": "r.html", "--uncertainty": "u.nii.gz"}
    names["--surfaces"] = "s.stl"
    words = [word for key, name in names.items() for word in (key, tmp_path / name)]
    if older:
        assert predict("-o", tmp_path / "m.nii.gz", *words, "--quiet")[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full, there = names.get(option, "m.nii.gz"), files._replace_all

    def replace_all(parts: tuple[Path, ...], targets: tuple[Path, ...]) -> None:
        parts[[target.name for target in targets].index(full)].unlink()
        there(parts, targets)

    monkeypatch.setattr(files, "_replace_all", replace_all)
    code, _, err = predict("-o", tmp_path / "m.nii.gz", *words, "--seed", 1)
    assert (code, err.count("\n")) == (3, 1)
    assert f"{full}: cannot be written" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
