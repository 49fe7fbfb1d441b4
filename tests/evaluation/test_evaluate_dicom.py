"""`evaluate` reads DICOM-SEG as prediction or reference, of whatever slices it has."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea.evaluation.compare import evaluate_paths
from meddelinea.io.dicom_seg import write_dicom_seg
from meddelinea.io.dicom_source import read_source
from meddelinea.io.volumes import write_volume
from meddelinea.volume import Volume
from support.cli import Run
from support.dicom_series import LABELS, OBLIQUE, foreign, mask_in, write_ct


def reference(folder: Path) -> tuple[Volume, Path]:
    """The organs as a NIfTI with its names."""
    mask, _ = mask_in("LPS", OBLIQUE)
    write_volume(mask, folder / "r.nii.gz")
    (folder / "r.json").write_text(json.dumps({"labels": LABELS}))
    return mask, folder / "r.nii.gz"


@pytest.mark.parametrize("kind", ["labelmap", "binary", "fractional"])
def test_evaluate_reads_dicom_seg_on_either_side(tmp_path: Path, kind: str) -> None:
    mask, nifti = reference(tmp_path)
    cut = np.where(np.indices(mask.array.shape)[0] < 5, 0, mask.array).astype(np.uint8)
    source = read_source(write_ct(tmp_path / "ct", "LPS", OBLIQUE))
    write_dicom_seg(Volume(cut, mask.affine), LABELS, tmp_path / "p.dcm", source, kind=kind)
    for a, b in (("p.dcm", "r.nii.gz"), ("r.nii.gz", "p.dcm")):
        report = evaluate_paths(tmp_path / a, tmp_path / b)
        assert report.failures == ()
        (case,) = report.cases
        assert "segments of p.dcm" in (case.prediction_names, case.reference_names)
        for score in case.scores:
            ours, theirs = (array == LABELS[score.organ] for array in (cut, mask.array))
            if theirs.any():
                assert score.dice == pytest.approx(2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()))
            else:
                assert np.isnan(score.dice)
    assert nifti.exists()


def test_two_dicom_segs_of_different_slices_are_compared_where_either_is(tmp_path: Path) -> None:
    mask, _ = mask_in("LPS", OBLIQUE)
    source = read_source(write_ct(tmp_path / "ct", "LPS", OBLIQUE))
    boxes = {"p.dcm": np.s_[2:6, 3:9, 0:5], "r.dcm": np.s_[2:6, 3:9, 3:8]}  # 2 of 5 slices are common
    for name, box in boxes.items():
        array = np.zeros_like(mask.array)
        array[box] = 1
        write_dicom_seg(Volume(array, mask.affine), {"liver": 1}, tmp_path / name, source, kind="binary")
    assert pydicom.dcmread(tmp_path / "p.dcm").NumberOfFrames == 5
    (case,) = evaluate_paths(tmp_path / "p.dcm", tmp_path / "r.dcm").cases
    assert case.scores[0].dice == pytest.approx(2 * 2 / (5 + 5))


def test_only_a_dicom_seg_means_background_where_it_does_not_reach(run: Run, tmp_path: Path) -> None:
    mask, _ = mask_in("LPS", OBLIQUE)
    write_volume(Volume(mask.array[:, :, :-1], mask.affine), tmp_path / "r.nii.gz")  # a slice short
    (tmp_path / "r.json").write_text(json.dumps({"labels": LABELS}))
    source = read_source(write_ct(tmp_path / "ct", "LPS", OBLIQUE))
    write_dicom_seg(mask, LABELS, tmp_path / "p.dcm", source)
    code, out, err = run("evaluate", tmp_path / "p.dcm", tmp_path / "r.nii.gz")
    assert (code, out) == (3, "")
    assert "grid" in err


def test_a_dicom_seg_of_another_scan_is_refused(run: Run, tmp_path: Path) -> None:
    reference(tmp_path)
    pixels = np.ones((9, 12, 14), np.uint8)
    code, out, err = run("evaluate", foreign(tmp_path, pixels, "BINARY", ("Liver",)), tmp_path / "r.nii.gz")
    assert (code, out) == (3, "")
    assert "grid" in err
    assert err.count("\n") == 1


def test_evaluate_of_folders_pairs_dicom_seg_with_other_masks(run: Run, tmp_path: Path) -> None:
    mask, _ = mask_in("LPS", OBLIQUE)
    source = read_source(write_ct(tmp_path / "ct", "LPS", OBLIQUE))
    for folder in ("p", "r"):
        (tmp_path / folder).mkdir()
    write_dicom_seg(mask, LABELS, tmp_path / "p" / "case1.dcm", source)
    (tmp_path / "p" / "case2.dcm").write_text("no DICOM")
    for case in ("case1", "case2"):
        write_volume(mask, tmp_path / "r" / f"{case}.nii.gz")
        (tmp_path / "r" / f"{case}.json").write_text(json.dumps({"labels": LABELS}))
    code, out, err = run("evaluate", tmp_path / "p", tmp_path / "r")
    assert code == 4
    assert "1.000" in out
    assert "case2" in err


def test_dcmqis_liver_is_a_reference(data: Path, tmp_path: Path) -> None:
    image = sitk.ReadImage(str(data / "dcmqi" / "liver_seg.nrrd"))
    sitk.WriteImage(sitk.Cast(image, sitk.sitkUInt8), str(tmp_path / "liver.nii.gz"))
    (tmp_path / "liver.json").write_text('{"labels": {"liver": 1}}')
    (case,) = evaluate_paths(tmp_path / "liver.nii.gz", data / "dcmqi" / "liver.dcm").cases
    assert case.scores[0].dice == 1
