"""A corrected mask: which are read and by which names, what they change, and what is kept to learn from."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest

from meddelinea.data.case import read_case
from meddelinea.data.datasets import find_cases
from meddelinea.errors import InputRefusedError
from meddelinea.io.dicom_seg import read_dicom_seg
from meddelinea.io.volumes import read_scan, read_volume, write_volume
from meddelinea.scan import Scan
from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.correcting import compare, correct_mask, dicom_order, names_in_order, read_correction
from meddelinea.serving.job import JobOutcome, JobRequest
from meddelinea.serving.limits import Limits
from meddelinea.volume import Volume
from support.dicom_series import write_ct

LABELS = {"liver": 1, "spleen": 2}
AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


def ids() -> np.ndarray:
    array = np.zeros((5, 6, 7), np.uint8)
    array[1:3, 1:4, 2:5], array[3:5, 4:6, 5:7] = 1, 2
    return array


def a_scan() -> Scan:
    values = np.random.default_rng(0).integers(-100, 100, (5, 6, 7)).astype(np.int16)
    return Scan(volume=Volume(values, AFFINE), modality="CT", name="scan")


def read(sent: Path, **request: object) -> tuple[np.ndarray, dict[str, int]]:
    wanted = JobRequest(kind="correction", **request)  # type: ignore[arg-type]
    mask, labels = read_correction(sent, a_scan(), wanted, labels_before=LABELS, limits=Limits())
    assert np.allclose(mask.affine, AFFINE)
    return mask.array, labels


@pytest.mark.parametrize("name", ["correction.nii.gz", "correction.nrrd", "correction.mha"])
@pytest.mark.parametrize("orientation", ["LAS", "RPS", "SAL"])
def test_a_mask_is_read_in_any_format_and_order_of_axes(tmp_path: Path, name: str, orientation: str) -> None:
    write_volume(Volume(ids(), AFFINE).reorient(orientation), tmp_path / name)
    array, labels = read(tmp_path / name)
    assert np.array_equal(array, ids())
    assert labels == LABELS


def test_raw_voxels_lie_as_dicom_orders_them(tmp_path: Path) -> None:
    sent = tmp_path / "correction.bin"
    sent.write_bytes(Volume(ids(), AFFINE).reorient(dicom_order("LAS")).array.tobytes(order="F"))
    assert np.array_equal(read(sent)[0], ids())
    sent.write_bytes(bytes(209))
    with pytest.raises(InputRefusedError, match="209 bytes; expected 210"):
        read(sent)


def test_a_segmentation_of_slicers_brings_its_names(tmp_path: Path) -> None:
    sent = tmp_path / "correction.nrrd"
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([2.0, -2.0, 3.0]),
        "space origin": np.zeros(3),
        "Segment0_Name": "Liver", "Segment0_LabelValue": "1", "Segment0_Layer": "0",
        "Segment1_Name": "Spleen", "Segment1_LabelValue": "2", "Segment1_Layer": "0",
    }  # fmt: skip
    nrrd.write(str(sent), ids(), header)
    array, labels = read(sent, label_info=[{"name": "kidney", "idx": 1}])
    assert labels == {"liver": 1, "spleen": 2}
    assert np.array_equal(array, ids())


def test_what_is_no_mask_of_the_scan_is_refused(tmp_path: Path) -> None:
    def refused(array: np.ndarray, affine: np.ndarray, reason: str, **request: object) -> None:
        nib.save(nib.Nifti1Image(array, affine), tmp_path / "correction.nii")
        with pytest.raises(InputRefusedError, match=reason):
            read(tmp_path / "correction.nii", **request)

    moved = AFFINE.copy()
    moved[0, 3] = 1.0
    refused(ids(), moved, "does not lie on the grid of its scan")
    refused(np.pad(ids(), 1), AFFINE, "7 x 8 x 9 voxels")
    refused(ids().astype(np.float32) / 2, AFFINE, "whole numbers")
    refused(ids().astype(np.int16) - 1, AFFINE, "expected 0 to 255|ids -1")
    refused(ids() * 3, AFFINE, "ids 3, 6 without a name")
    refused(ids(), AFFINE, "expected ids from 1 to 255", labels={"liver": 1, "spleen": 2, "aorta": 256})


def test_names_are_taken_in_order_where_numbers_were_counted_over_other_segments_too() -> None:
    def names(*idx: int, ids: set[int]) -> dict[str, int]:
        organs = ("liver", "spleen", "aorta")
        return names_in_order([{"name": n, "idx": i} for n, i in zip(organs, idx, strict=False)], ids)

    assert names(1, 2, ids={2}) == {"liver": 1, "spleen": 2}
    assert names(2, 1, ids={1}) == {"liver": 2, "spleen": 1}
    assert names(2, 3, ids={1, 2}) == {"liver": 1, "spleen": 2}  # Slicer's, which counted the background too
    assert names(6, 8, ids={6}) == {"liver": 6, "spleen": 8}
    with pytest.raises(InputRefusedError, match="send all segments"):
        names(2, 3, ids={2})  # is it the liver or the spleen?
    with pytest.raises(InputRefusedError, match="send all segments"):
        names(2, 3, ids={1, 3})
    for entries in ([{"idx": 1}], [{"name": "liver", "idx": "1"}], [{"name": "liver"}, {"name": "liver"}]):
        with pytest.raises(InputRefusedError, match="label_info"):
            names_in_order(entries, {1})


def test_a_change_is_counted_by_organ_whatever_its_ids() -> None:
    before, now = ids(), ids()
    now[1, 1, 2] = 0
    now[0, 0, :2] = 2
    renumbered = np.array([0, 7, 9], np.uint8)[before]
    changes = compare(Volume(now, AFFINE), LABELS, Volume(renumbered, AFFINE), {"liver": 7, "spleen": 9})
    assert changes["liver"] == {
        "added_voxels": 0, "removed_voxels": 1, "added_ml": 0.0, "removed_ml": pytest.approx(0.012),
        "dice": pytest.approx(2 * 17 / (17 + 18)),
    }  # fmt: skip
    assert changes["spleen"]["added_voxels"] == 2
    assert changes["spleen"]["added_ml"] == pytest.approx(0.024)


def test_corrected_scans_are_a_dataset_that_the_command_line_reads(tmp_path: Path) -> None:
    kept, scan = CorrectedScans(tmp_path / "corrected"), a_scan()
    mask = Volume(np.array([0, 7, 9], np.uint8)[ids()], AFFINE)
    kept.add(scan, mask, {"liver": 7, "spleen": 9}, fingerprint="a" * 64, job="1" * 32)
    kept.add(scan, mask, {"liver": 7, "spleen": 9}, fingerprint="b" * 64, job="2" * 32)
    (dataset,) = kept.all()
    assert (dataset.modality, dataset.organs) == ("CT", ("liver", "spleen"))
    found = find_cases("nnunet", kept.path(dataset.name))
    assert not found.broken
    assert (
        tuple(case.name for case in found.cases)
        == dataset.cases
        == ("a" * 12 + "-" + "1" * 12, "b" * 12 + "-" + "2" * 12)
    )
    labelled = read_case(found.cases[0], ("spleen", "liver"))
    assert labelled.scan.modality == "CT"
    assert np.array_equal(labelled.mask.array, np.array([0, 2, 1], np.uint8)[ids()])
    assert np.array_equal(labelled.scan.volume.array, scan.volume.array)


def test_a_later_correction_replaces_that_of_the_same_scan_and_other_organs_are_another_dataset(tmp_path: Path) -> None:
    kept, scan, mask = CorrectedScans(tmp_path), a_scan(), Volume(ids(), AFFINE)
    for job in ("1", "2"):
        kept.add(scan, mask, LABELS, fingerprint="a" * 64, job=job * 32)
    (dataset,) = kept.all()
    assert dataset.cases == ("a" * 12 + "-" + "2" * 12,)
    kept.add(scan, mask, {"liver": 1, "aorta": 2}, fingerprint="a" * 64, job="3" * 32)
    assert {each.organs for each in kept.all()} == {("liver", "spleen"), ("liver", "aorta")}
    kept.remove("1" * 32)  # which a later one has replaced
    assert dataset.cases in {each.cases for each in kept.all()}
    kept.remove("2" * 32)
    assert () in {each.cases for each in kept.all()}
    with pytest.raises(InputRefusedError, match="no such dataset"):
        kept.path("../Dataset001_CT")


def test_a_corrected_series_is_a_result_of_its_own_in_every_format(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "ct", spacing_mm=(6.0, 7.0, 9.0))
    parent, job = tmp_path / "parent", tmp_path / ("f" * 32)
    parent.mkdir(), job.mkdir()
    upload = Path(shutil.make_archive(str(parent / "upload"), "zip", series))
    scan = read_scan(upload)
    before = np.zeros(scan.volume.shape, np.uint8)
    before[2:8, 2:8, 2:6] = 1
    write_volume(Volume(before, scan.volume.affine), parent / "mask.nii.gz")
    (parent / "mask.json").write_text(json.dumps({"labels": LABELS}))
    write_volume(Volume(before, scan.volume.affine), parent / "uncertainty.nii.gz")
    untouched = {path.name: path.read_bytes() for path in parent.iterdir()}
    os.link(upload, job / "upload.zip")
    after = before.copy()
    after[8, 2:8, 2:6], after[2, 2, 2] = 2, 0
    write_volume(Volume(after, scan.volume.affine).reorient("RAS"), job / "correction.nrrd")
    request = JobRequest(kind="correction", model="small", modality="CT", parent="p" * 32, comment="the dome")
    kept = CorrectedScans(tmp_path / "corrected")
    outcome = correct_mask(job, job / "upload.zip", request, parent=parent, kept=kept, limits=Limits())
    assert isinstance(outcome, JobOutcome)
    assert (outcome.state, outcome.message) == ("done", "")
    assert {kind: outcome.changes["spleen"][kind] for kind in ("added_voxels", "removed_voxels")} == {
        "added_voxels": 24,
        "removed_voxels": 0,
    }
    assert outcome.changes["liver"]["removed_voxels"] == 1
    kinds = {"mask", "labels", "statistics", "report", "scan", "uncertainty", "dicom_seg"}
    assert {file.kind for file in outcome.files} == kinds
    assert all((job / file.name).is_file() for file in outcome.files)
    assert np.array_equal(read_volume(job / "mask.nii.gz").array, after)
    assert json.loads((job / "mask.json").read_text())["correction"]["comment"] == "the dome"
    assert {path.name: path.read_bytes() for path in parent.iterdir()} == untouched
    assert not (job / "correction.nrrd").exists()
    written, _ = read_dicom_seg(job / "segmentation.dcm")
    there = written.onto(scan.volume.affine, scan.volume.shape)
    assert there is not None
    assert np.array_equal(there.array > 0, after > 0)
    segments = pydicom.dcmread(job / "segmentation.dcm").SegmentSequence
    assert {segment.SegmentAlgorithmType for segment in segments if segment.SegmentLabel != "Background"} == {
        "SEMIAUTOMATIC"
    }
    assert len(kept.all()[0].cases) == 1


def test_a_refusal_names_no_folder_of_the_server(tmp_path: Path) -> None:
    series = write_ct(tmp_path / "ct")
    job = tmp_path / ("f" * 32)
    job.mkdir()
    upload = Path(shutil.make_archive(str(job / "upload"), "zip", series))
    (job / "correction.nrrd").write_bytes(b"NRRD0004\ntype: short\n\n")
    kept, parent = CorrectedScans(tmp_path / "corrected"), tmp_path / "gone"
    outcome = correct_mask(job, upload, JobRequest(kind="correction"), parent=parent, kept=kept, limits=Limits())
    assert isinstance(outcome, JobOutcome)
    assert outcome.state == "refused"
    assert "deleted" in outcome.message
    parent.mkdir()
    write_volume(Volume(np.zeros((1, 1, 1), np.uint8), AFFINE), parent / "mask.nii.gz")
    (parent / "mask.json").write_text(json.dumps({"labels": LABELS}))
    outcome = correct_mask(job, upload, JobRequest(kind="correction"), parent=parent, kept=kept, limits=Limits())
    assert isinstance(outcome, JobOutcome)
    assert outcome.state == "refused"
    assert str(tmp_path) not in outcome.message
    assert kept.all() == []
