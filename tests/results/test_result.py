"""`meddelinea.segment`: the mask of the command line, from a path, an image of nibabel's or a Volume."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from diffusers.utils.logging import enable_progress_bar, is_progress_bar_enabled

import meddelinea
from meddelinea import load_model, segment
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.io.dicom_seg import read_dicom_seg
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.segmentation.confidence import uncertainty_percent
from meddelinea.segmentation.model import Model
from meddelinea.segmentation.predict import segment as segment_scan
from meddelinea.volume import Volume
from support.dicom_series import write_ct
from support.scans import as_ct
from support.tiny_models import ORGANS, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_model(tmp_path_factory.mktemp("model")), "cpu")


@pytest.fixture(scope="module")
def scan() -> Volume:
    """An ellipsoid of soft tissue with fat around it, in air."""
    i, j, k = np.indices((48, 40, 16))
    away = ((i - 24) / 20) ** 2 + ((j - 20) / 16) ** 2
    hu = np.where(away < 0.7, 40 + 60 * np.sin(i / 3) * np.cos(j / 4), np.where(away < 1, -100, -1000))
    return Volume((hu + k).astype(np.int16), np.array([[-6.0, 0, 0, 90], [0, 6, 0, -80], [0, 0, 5, 3], [0, 0, 0, 1]]))


@pytest.fixture(scope="module")
def path(scan: Volume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_volume(scan, path)
    return path


def test_every_kind_of_scan_gives_the_same_mask(model: Model, scan: Volume, path: Path) -> None:
    expected = segment_scan(model, as_ct(read_volume(path))).mask
    assert len(np.unique(expected.array)) > 1
    in_memory = nib.Nifti1Image(scan.array, scan.affine)
    as_float = nib.Nifti1Image(scan.array.astype(np.float64), scan.affine)
    for given in (path, str(path), scan, nib.load(path), in_memory, as_float):
        result = segment(given, model)
        assert np.array_equal(result.mask.array, expected.array)
        np.testing.assert_allclose(result.mask.affine, scan.affine)
        assert list(result.statistics) == list(result.labels) == list(ORGANS)
    assert segment(path, model).name == "scan.nii.gz"


def test_results_are_saved_and_handed_on(model: Model, path: Path, tmp_path: Path) -> None:
    result = segment(path, model, organs=["Liver"], seed=3)
    assert (result.labels, result.segmentation.seed) == ({"liver": 2}, 3)
    result.save(tmp_path / "mask.nii.gz")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mask.json", "mask.nii.gz"]
    saved, handed = nib.load(tmp_path / "mask.nii.gz"), result.to_nibabel()
    assert np.array_equal(np.asarray(saved.dataobj), result.mask.array)
    assert np.array_equal(np.asarray(handed.dataobj), result.mask.array)
    np.testing.assert_allclose(handed.affine, saved.affine)
    made = result.segmentation.uncertainty
    assert made is not None
    assert np.array_equal(result.uncertainty.array, uncertainty_percent(made, result.scan.volume).array)


def test_what_would_give_a_wrong_mask_is_refused_with_its_reason(model: Model, scan: Volume) -> None:
    rescaled = nib.Nifti1Image(((scan.array + 1000) / 2000).astype(np.float32), scan.affine)
    with pytest.raises(InputRefusedError, match=r"the scan: .*rescaled") as refusal:
        segment(rescaled, model)
    assert [finding.code for finding in refusal.value.findings if finding.level == "refuse"] == ["rescaled"]
    with pytest.raises(InputRefusedError, match="expected one 3D volume"):
        segment(nib.Nifti1Image(np.zeros((8, 8, 8, 2), np.int16), np.eye(4)), model)
    with pytest.raises(UsageError, match="the file says CT; leave modality MR out") as conflict:
        segment(as_ct(scan), model, modality="MR")
    assert conflict.value.parameter == "modality"
    with pytest.raises(InputRefusedError, match="no such file"):
        segment("nowhere.nii.gz", model)


def test_the_package_names_its_front_door_and_loads_nothing_for_it() -> None:
    assert all(hasattr(meddelinea, name) for name in meddelinea.__all__)
    with pytest.raises(AttributeError, match="no attribute 'segmet'"):
        meddelinea.segmet  # noqa: B018
    code = "import sys, meddelinea; print(sorted({'torch', 'numpy', 'nibabel'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_model_is_loaded_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_model(tmp_path)
    enable_progress_bar()  # as diffusers has it at first
    capfd.readouterr()
    load_model(folder, "cpu")
    assert capfd.readouterr() == ("", "")
    assert is_progress_bar_enabled()


def test_what_the_reader_and_the_checks_find_reaches_the_result(model: Model, scan: Volume, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.clip(scan.array, -125, 275), None)
    image.header.set_zooms(scan.spacing_mm)
    image.to_filename(tmp_path / "scan.nii")
    codes = [finding.code for finding in segment(tmp_path / "scan.nii", model).findings]
    assert codes[0] == "no_geometry"  # of the header, said by its reader
    assert "windowed" in codes[1:]


def test_a_mask_and_its_sidecar_are_replaced_together_or_not_at_all(
    model: Model, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, sidecar = tmp_path / "mask.nii.gz", tmp_path / "mask.json"
    segment(path, model, seed=1).save(mask)
    before = mask.read_bytes(), sidecar.read_bytes()
    other = segment(path, model, seed=2)
    with monkeypatch.context() as patch:
        patch.setattr("meddelinea.results.files.write_json", lambda document, path: refuse())
        with pytest.raises(InputRefusedError, match=re.escape(f"{mask}: cannot be written")):
            other.save(mask)
    assert (mask.read_bytes(), sidecar.read_bytes()) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mask.json", "mask.nii.gz"]
    other.save(mask)
    assert json.loads(sidecar.read_text())["seed"] == 2
    assert mask.read_bytes() != before[0]


def refuse() -> str:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_scan_that_was_read_as_dicom_is_saved_as_dicom(model: Model, tmp_path: Path) -> None:
    folder = write_ct(tmp_path / "ct", spacing_mm=(6.0, 7.0, 9.0))
    result = segment(folder, model)
    shutil.rmtree(folder)  # the result does not need it any more
    result.save(tmp_path / "mask.dcm")
    read, labels = read_dicom_seg(tmp_path / "mask.dcm")
    on_scan = read.onto(result.mask.affine, result.mask.shape)
    assert on_scan is not None
    for organ, number in labels.items():
        assert np.array_equal(on_scan.array == number, result.mask.array == result.labels[organ])
