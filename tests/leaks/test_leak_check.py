"""`meddelinea leak-check`: what it finds, skips, reports and returns."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from meddelinea.cli.main import main
from meddelinea.data.fingerprint import fingerprint, sketch
from meddelinea.data.mixing import COLLECTIONS, mixing_warnings
from meddelinea.data.prepare import prepare_store
from meddelinea.data.preprocess import Preprocessing
from meddelinea.errors import InputRefusedError, LeakFoundError, PartialFailureError, WeightsMissingError
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.leaks.find import KnownScan, find_leaks, is_label_map, known_scans
from meddelinea.volume import Volume
from support.changed_copies import TRANSFORMATIONS, cropped, mirrored, offset, scaled, windowed

Run = Callable[..., tuple[int, str, str]]
COMBINED = "crop, 8 bits, thick, mirrored"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `meddelinea leak-check WORDS...`: exit code, stdout, stderr."""
    monkeypatch.setattr("logging.disable", lambda level: None)  # process-wide, so it would outlive the test

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main(["leak-check", *(str(word) for word in words)])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return call


@pytest.fixture(scope="module")
def trained(data: Path) -> Volume:
    """A training case of the shipped model."""
    return read_volume(data / "btcv" / "img" / "img0027.nii.gz")


@pytest.fixture(scope="module")
def unseen(data: Path) -> Volume:
    """A scan that it was not trained on."""
    return read_volume(data / "btcv" / "img" / "img0022.nii.gz")


def model_with(folder: Path, **cases: list[dict[str, str]]) -> Path:
    """FAKE: as much of a model's folder as a leak check reads."""
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    (folder / "training_cases.json").write_text(json.dumps({"train": [], "validation": [], **cases}))
    return folder


def entry(name: str, volume: Volume, *, sketched: bool = True) -> dict[str, str]:
    case = {"name": name, "dataset": "btcv", "fingerprint": fingerprint(volume)}
    return {**case, "sketch": sketch(volume)} if sketched else case


def test_planted_copies_are_found_and_all_else_is_named(
    run: Run, data: Path, trained: Volume, unseen: Volume, tmp_path: Path
) -> None:
    images, labels = tmp_path / "test" / "img", tmp_path / "test" / "label"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    write_volume(trained.reorient("SPR"), images / "exact.nrrd")
    write_volume(TRANSFORMATIONS[COMBINED](trained), images / "robust.nii.gz")
    write_volume(cropped(unseen, (0.7, 0.7, 0.5)), images / "unseen.nii.gz")
    shutil.copy(data / "btcv" / "label" / "label0022.nii.gz", labels)
    (tmp_path / "test" / "README.md").write_text("# test\n")
    (images / "damaged.nii.gz").write_bytes((labels / "label0022.nii.gz").read_bytes()[:999])

    code, out, err = run(tmp_path / "test", "--against", "small")
    assert code == LeakFoundError.exit_code == 6
    assert "leak: img/exact.nrrd is img0027 (btcv; train, small): exact" in out
    assert "leak: img/robust.nii.gz is img0027 (btcv; train, small): robust, likeness 0." in out
    assert out.count("leak: ") == 2
    assert "skipped: label/label0022.nii.gz: a mask" in out
    assert "skipped: README.md" in out
    assert out.splitlines()[-1] == "2 of 3 test cases were used for training"
    assert "failed: img/damaged.nii.gz" in err
    assert err.splitlines()[-1] == "error: 2 of 3 test cases leak; remove them from the test set"

    code, out, err = run(tmp_path / "test", "--against", "small", "--json")
    answer = json.loads(out)
    assert code == 6
    assert answer["tested"] == ["img/exact.nrrd", "img/robust.nii.gz", "img/unseen.nii.gz"]
    assert [(leak["case"], leak["kind"], leak["known"]["name"]) for leak in answer["leaks"]] == [
        ("img/exact.nrrd", "exact", "img0027"),
        ("img/robust.nii.gz", "robust", "img0027"),
    ]
    assert answer["leaks"][0]["known"].keys() == {"source", "role", "name", "dataset", "fingerprint"}
    assert list(answer["failed"]) == ["img/damaged.nii.gz"]

    for path in images.glob("*.nrrd"):
        path.unlink()
    (images / "robust.nii.gz").unlink()
    code, out, err = run(tmp_path / "test", "--against", "small")
    assert code == PartialFailureError.exit_code
    assert "0 of 1 test cases were used for training" in out
    (images / "damaged.nii.gz").unlink()
    assert run(tmp_path / "test", "--against", "small")[::2] == (0, "")


def test_a_model_without_sketches_finds_exact_copies_and_says_so(run: Run, unseen: Volume, tmp_path: Path) -> None:
    scan = cropped(unseen, (0.6, 0.6, 0.6))
    model = model_with(tmp_path / "old", validation=[entry("one", scan, sketched=False)])
    (tmp_path / "test").mkdir()
    write_volume(mirrored(scan, 0), tmp_path / "test" / "a.nii.gz")
    code, out, err = run(tmp_path / "test", "--against", model)
    assert code == 0
    assert "1 of 1 cases have no sketch" in err
    write_volume(scan, tmp_path / "test" / "b.nii.gz")
    code, out, err = run(tmp_path / "test", "--against", model, "--against", "small")
    assert code == 6
    assert "0 of 2 test cases were used for training" in out
    assert "1 of 2 test cases were used for validation" in out


def test_a_store_is_checked_like_a_model(run: Run, unseen: Volume, tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
    write_volume(unseen, tmp_path / "pairs" / "images" / "one.nii.gz")
    mask = (unseen.array > 0).astype(np.uint8)
    write_volume(Volume(mask, unseen.affine), tmp_path / "pairs" / "labels" / "one.nii.gz")
    (tmp_path / "pairs" / "labels.json").write_text('{"labels": {"liver": 1}}')
    prepare_store("pairs", tmp_path / "pairs", tmp_path / "store", preprocessing=Preprocessing(size=64, spacing_mm=6.0))
    write_volume(windowed(scaled(unseen, 1.5), -100, 200), tmp_path / "a.nii.gz")
    code, out, _ = run(tmp_path / "a.nii.gz", "--against", tmp_path / "store")
    assert code == 6
    assert "a.nii.gz is one (pairs; stored, " in out
    assert "1 of 1 test cases are in a store" in out


def test_dicom_folders_and_zips_are_scans(data: Path, tmp_path: Path) -> None:
    series = data / "totalsegmentator" / "ct_dicom"
    (tmp_path / "patient").mkdir()
    (tmp_path / "patient" / "series").symlink_to(series)
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for path in series.iterdir():
            archive.write(path, path.name)
    volume = read_volume(series)
    known = [
        KnownScan(source="model", role="train", name="one", dataset="own", fingerprint=fingerprint(volume), sketch=None)
    ]
    report = find_leaks(tmp_path, known)
    assert [(leak.case, leak.kind) for leak in report.leaks] == [("patient/series", "exact"), ("scan.zip", "exact")]
    assert find_leaks(series, known).tested == ("ct_dicom",)


def test_dicom_files_that_hold_no_scan_are_skipped_as_masks_are(data: Path, unseen: Volume, tmp_path: Path) -> None:
    write_volume(cropped(unseen, (0.6, 0.6, 0.6)), tmp_path / "a.nii.gz")
    (tmp_path / "masks").mkdir()
    shutil.copy(data / "dcmqi" / "liver.dcm", tmp_path / "masks")
    report = find_leaks(tmp_path, [])
    assert (report.tested, dict(report.failed)) == (("a.nii.gz",), {})
    assert dict(report.skipped) == {"masks": "DICOM files without a scan"}


def test_masks_are_told_from_scans(data: Path, unseen: Volume) -> None:
    for path in sorted((data / "btcv" / "label").glob("*2*.nii.gz"))[:4]:
        assert is_label_map(read_volume(path).array)
    assert is_label_map(read_volume(data / "totalsegmentator" / "mr_seg.nii.gz").array)
    assert is_label_map(np.zeros((5, 5, 5), np.uint8))
    narrow = windowed(unseen, 0, 80)
    for scan in (unseen, narrow, scaled(narrow, 0.8), offset(unseen), offset(windowed(unseen, -100, 200))):
        assert not is_label_map(scan.array)
    assert not is_label_map(read_volume(data / "chaos_mr" / "img" / "t2spir_01.nii.gz").array)
    assert not is_label_map(np.full((5, 5, 5), np.nan))


def test_a_scan_too_small_for_a_sketch_is_said_to_be(unseen: Volume, tmp_path: Path) -> None:
    write_volume(cropped(unseen, (0.1, 0.1, 0.1)), tmp_path / "tiny.nii.gz")
    assert find_leaks(tmp_path, []).exact_only == ("tiny.nii.gz",)


def test_what_cannot_be_checked_is_refused(run: Run, unseen: Volume, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputRefusedError):
            find_leaks(path, [])
    with pytest.raises(WeightsMissingError):
        known_scans(str(tmp_path / "absent"))
    broken: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"train": [{"name": "one"}]}, WeightsMissingError),
        ({"train": [{"name": "one", "dataset": "d", "fingerprint": "f", "sketch": "?"}]}, InputRefusedError),
    ]
    for number, (cases, error) in enumerate(broken):
        with pytest.raises(error, match="again"):
            known_scans(str(model_with(tmp_path / f"model{number}", **cases)))
    code, out, err = run(tmp_path, "--against", "nothing")
    assert (code, out) == (5, "")
    assert err.count("\n") == 1


def test_mixing_is_warned_of_by_name(run: Run, unseen: Volume, tmp_path: Path) -> None:
    (line,) = mixing_warnings({"abdomenatlas"}, {"btcv"})
    assert line.startswith("trained on abdomenatlas, tested on btcv: abdomenatlas holds cases of btcv")
    assert "README of github.com/MrGiovanni/AbdomenAtlas" in line
    assert "abdomenatlas holds cases of btcv" in mixing_warnings({"btcv"}, {"abdomenatlas"})[0]
    assert "both hold cases of lits" in mixing_warnings({"ct-org"}, {"msd"})[0]
    assert len(mixing_warnings({"abdomenatlas", "totalsegmentator"}, {"amos", "btcv", "abdomenatlas", "cirrmri"})) == 2
    assert mixing_warnings({"btcv"}, {"btcv", "chaos", "amos", "my own"}) == []
    assert all(name not in collection.parts for name, collection in COLLECTIONS.items())

    case = {"name": "BDMAP_1", "dataset": "abdomenatlas", "fingerprint": "0"}
    model = model_with(tmp_path / "model", train=[case])
    nib.save(nib.Nifti1Image(unseen.array[100:140, 100:140, 40:50], unseen.affine), tmp_path / "a.nii.gz")
    code, _, err = run(tmp_path / "a.nii.gz", "--against", model, "--format", "btcv")
    assert code == 0
    assert "warning: trained on abdomenatlas, tested on btcv" in err
    assert "tested on" not in run(tmp_path / "a.nii.gz", "--against", model)[2]
