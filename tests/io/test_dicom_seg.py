"""DICOM-SEG: what is written lies where the scan has it for two other readers, and what others wrote is read."""

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from meddelinea.errors import UsageError
from meddelinea.io.dicom_seg import read_dicom_seg, write_dicom_seg
from meddelinea.io.dicom_source import read_source
from meddelinea.io.volumes import read_volume
from meddelinea.labels import canonical_name
from meddelinea.volume import Volume
from support.dicom_segs import KINDS, LPS_TO_RAS, assert_in_place, organs_by_dcmqi, organs_by_highdicom, places, written
from support.dicom_series import (
    COLUMNS,
    LABELS,
    OBLIQUE,
    ROWS,
    SLICES,
    foreign,
    mask_in,
    refused,
    write_ct,
)
from support.orientations import ORIENTATIONS


@pytest.mark.parametrize(
    "turn", [None, pytest.param(OBLIQUE, marks=pytest.mark.slow)], ids=["straight", "oblique"]
)  # dcmqi's default run has the oblique ones
@pytest.mark.parametrize("number", range(48), ids=ORIENTATIONS)
def test_every_orientation_is_read_by_highdicom_where_it_was(
    tmp_path: Path, number: int, turn: Rotation | None
) -> None:
    orientation, kind = ORIENTATIONS[number], KINDS[number % 3]
    organs = organs_by_highdicom(written(tmp_path, orientation, turn, kind, axes=ORIENTATIONS[-1 - number]))
    assert set(organs) == set(LABELS)
    assert not organs["gallbladder"][0].any()
    assert_in_place(organs, orientation, turn)


@pytest.mark.parametrize(
    ("number", "turn", "kind"),
    [
        pytest.param(
            number,
            turn,
            kind,
            id=f"{ORIENTATIONS[number]}-{'oblique' if turn else 'straight'}-{kind}",
            marks=() if turn and kind == KINDS[number % 3] else pytest.mark.slow,
        )
        for number in range(48)
        for turn in (None, OBLIQUE)
        for kind in KINDS
    ],
)
def test_every_orientation_is_read_by_dcmqi_where_it_was(
    tmp_path: Path, number: int, turn: Rotation | None, kind: str
) -> None:
    orientation = ORIENTATIONS[number]
    path = written(tmp_path, orientation, turn, kind)
    assert_in_place(organs_by_dcmqi(path, tmp_path / "dcmqi"), orientation, turn)


@pytest.mark.parametrize("kind", KINDS)
def test_our_reader_gives_the_mask_on_the_grid_of_the_scan(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, "LPS", OBLIQUE, kind)
    scan = read_volume(tmp_path / "ct")
    read, labels = read_dicom_seg(path)
    assert set(labels) == set(LABELS)
    mask, _ = mask_in("LPS", OBLIQUE)
    expected = mask.onto(scan.affine, scan.array.shape)
    assert expected is not None
    on_scan = read.onto(scan.affine, scan.array.shape)
    assert on_scan is not None
    assert read.spacing_mm == pytest.approx(scan.spacing_mm)
    assert np.sign(read.affine[:3, :3]).tolist() == np.sign(scan.affine[:3, :3]).tolist()
    for name, index in LABELS.items():
        np.testing.assert_array_equal(on_scan.array == labels[name], expected.array == index)


@pytest.mark.parametrize("kind", ["binary", "fractional"])
def test_slices_without_an_organ_between_two_with_one_keep_their_room(tmp_path: Path, kind: str) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    mask, _ = mask_in("LPS")
    array = np.zeros_like(mask.array)
    array[3:6, 4:8, [1, 4, 7]] = 1
    path = tmp_path / "m.dcm"
    write_dicom_seg(Volume(array, mask.affine), {"liver": 1}, path, source, kind=kind)
    assert pydicom.dcmread(path).NumberOfFrames == 3
    expected = places(array == 1, mask.affine)
    np.testing.assert_allclose(places(*organs_by_highdicom(path)["liver"]), expected, atol=1e-3)
    np.testing.assert_allclose(places(*organs_by_dcmqi(path, tmp_path / "dcmqi")["liver"]), expected, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_an_organ_of_one_voxel_and_no_organ_at_all_are_written(tmp_path: Path, kind: str) -> None:
    source = read_source(write_ct(tmp_path / "ct", "PSR", OBLIQUE))
    mask, _ = mask_in("PSR", OBLIQUE)
    for voxels in (1, 0):
        array = np.zeros_like(mask.array)
        array[4, 7, 5] = 3 * voxels
        write_dicom_seg(Volume(array, mask.affine), {"liver": 3, "spleen": 7}, tmp_path / "m.dcm", source, kind=kind)
        organs = organs_by_highdicom(tmp_path / "m.dcm")
        assert organs["liver"][0].sum() == voxels
        assert organs["spleen"][0].sum() == 0
        assert read_dicom_seg(tmp_path / "m.dcm")[1] == {"liver": 1, "spleen": 2}


def test_a_mask_of_another_scan_or_with_unnamed_ids_is_refused(tmp_path: Path) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    mask, _ = mask_in("LPS")
    away = mask.affine.copy()
    away[0, 3] += 0.4
    for other in (Volume(mask.array[:, :, 1:], mask.affine), Volume(mask.array, away)):
        said = refused(lambda: write_dicom_seg(other, LABELS, tmp_path / "m.dcm", source), tmp_path)  # noqa: B023
        assert "grid" in said
    with pytest.raises(UsageError, match=r"\[3\]"):
        write_dicom_seg(mask, {"liver": 6, "spleen": 1}, tmp_path / "m.dcm", source)


def test_a_fractional_file_holds_an_organ_from_half_on(tmp_path: Path) -> None:
    shares = np.random.default_rng(3).random((SLICES, ROWS, COLUMNS, 1))
    shares[abs(shares - 0.5) < 0.01] = 0.9  # files store 255 steps
    read, labels = read_dicom_seg(foreign(tmp_path, shares, "FRACTIONAL", ("Liver",)))
    assert labels == {"liver": 1}
    scan = read_volume(tmp_path / "ct")
    on_scan = read.onto(scan.affine, scan.array.shape)
    assert on_scan is not None
    np.testing.assert_array_equal(on_scan.array, shares[:, ::-1, :, 0].transpose(2, 1, 0) >= 0.5)


def test_a_background_that_a_labelmap_describes_is_no_organ(tmp_path: Path) -> None:
    path = written(tmp_path, "LPS", None, "labelmap")
    expected, labels = read_dicom_seg(path)
    file = pydicom.dcmread(path)
    assert file.SegmentSequence[0].SegmentLabel == "Background"
    del file.PixelPaddingValue  # which segment it is, is then known by its number alone
    file.save_as(path)
    read, without_padding = read_dicom_seg(path)
    assert without_padding == labels
    np.testing.assert_array_equal(read.array, expected.array)


def test_what_ids_cannot_hold_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((SLICES, ROWS, COLUMNS, 2), np.uint8)
    pixels[2:6, 3:8, 3:8, 0] = pixels[4:7, 5:9, 5:9, 1] = 1
    path = foreign(tmp_path / "a", pixels, "BINARY", ("Liver", "Lesion"))
    said = refused(lambda: read_dicom_seg(path), tmp_path)
    assert "'liver' and 'lesion' overlap" in said
    path = foreign(tmp_path / "b", pixels, "BINARY", ("Liver", "liver"))
    assert "both named 'liver'" in refused(lambda: read_dicom_seg(path), tmp_path)


def test_a_tilted_file_of_another_program_is_refused(tmp_path: Path) -> None:
    pixels = np.ones((SLICES, ROWS, COLUMNS), np.uint8)
    path = foreign(tmp_path / "slightly", pixels, "BINARY", ("Liver",), shear_mm=0.09)  # 2 degrees
    assert "upright" in refused(lambda: read_dicom_seg(path), tmp_path)
    path = foreign(tmp_path / "clearly", pixels, "BINARY", ("Liver",), shear_mm=0.9)
    assert str(path) in refused(lambda: read_dicom_seg(path), tmp_path)


def test_other_files_are_no_segmentations(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct")
    assert "CT, not a DICOM-SEG" in refused(lambda: read_dicom_seg(tmp_path / "ct" / "00.dcm"), tmp_path)
    path = written(tmp_path / "w", "LPS", None, "labelmap")
    (tmp_path / "cut.dcm").write_bytes(path.read_bytes()[:-400])
    (tmp_path / "text.dcm").write_text("no DICOM")
    for name in ("cut.dcm", "text.dcm"):
        assert name in refused(lambda: read_dicom_seg(tmp_path / name), tmp_path)  # noqa: B023


def test_dcmqis_own_file_is_read_as_dcmqi_converts_it(data: Path) -> None:
    read, labels = read_dicom_seg(data / "dcmqi" / "liver.dcm")
    assert labels == {"liver": 1}
    image = sitk.ReadImage(str(data / "dcmqi" / "liver_seg.nrrd"))
    expected = sitk.GetArrayFromImage(image).transpose(2, 1, 0) > 0
    affine = LPS_TO_RAS @ np.block(
        [
            [np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing()), np.array([image.GetOrigin()]).T],
            [np.array([[0, 0, 0, 1]])],
        ]
    )
    assert expected.sum() > 1000
    assert read.array.sum() == expected.sum()
    np.testing.assert_allclose(places(read.array == 1, read.affine), places(expected, affine), atol=1e-3)
    scan = read_volume(data / "dcmqi" / "ct-3slice")
    assert read.onto(scan.affine, scan.array.shape) is not None


@pytest.mark.slow
def test_a_whole_real_mask_of_many_organs_survives(data: Path, tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    series, study = generate_uid(), generate_uid()
    for file in (data / "totalsegmentator" / "ct_dicom").iterdir():
        image = pydicom.dcmread(file)
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.SeriesInstanceUID, image.StudyInstanceUID = series, study
        image.save_as(tmp_path / "ct" / f"{image.InstanceNumber}.dcm")
    numbering = json.loads((data / "totalsegmentator" / "label_names.json").read_text())["v2_total"]
    mask = read_volume(data / "totalsegmentator" / "ct_dicom_seg_v2.nii.gz")
    labels = {canonical_name(name): int(number) for number, name in numbering.items()}
    source = read_source(tmp_path / "ct")
    mask = Volume(mask.array.astype(np.uint8), mask.affine)
    for kind in KINDS:
        write_dicom_seg(mask, labels, tmp_path / "m.dcm", source, kind=kind)
        organs = organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / kind)
        assert len(organs) > 10
        for name, number in labels.items():
            if name in organs:
                np.testing.assert_allclose(
                    places(*organs[name]), places(mask.array == number, mask.affine), atol=2e-2, err_msg=name
                )
