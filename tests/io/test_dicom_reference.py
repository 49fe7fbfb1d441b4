"""The images that a DICOM-SEG refers to: each frame the one at its place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from meddelinea.io.dicom import series_affine
from meddelinea.io.dicom_seg import read_dicom_seg, write_dicom_seg
from meddelinea.io.dicom_source import read_source
from meddelinea.io.volumes import read_scan, read_volume, write_volume
from meddelinea.volume import Volume
from support.dicom_segs import KINDS, assert_in_place, organs_by_dcmqi, organs_by_highdicom, places, written
from support.dicom_series import (
    LABELS,
    OBLIQUE,
    SPACING_MM,
    enhanced,
    mask_in,
    refused,
    rewritten,
    write_ct,
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_frame_refers_to_the_image_at_its_place(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, "LPI", OBLIQUE, kind)
    images = [pydicom.dcmread(file) for file in (tmp_path / "ct").iterdir()]
    by_uid = {image.SOPInstanceUID: image for image in images}
    file = pydicom.dcmread(path)
    series = file.ReferencedSeriesSequence[0]
    assert series.SeriesInstanceUID == images[0].SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence} == set(by_uid)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "PatientName", "AccessionNumber"):
        assert file[keyword].value == images[0][keyword].value
    for frame in file.PerFrameFunctionalGroupsSequence:
        referred = by_uid[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        np.testing.assert_allclose(
            np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float),
            np.array(referred.ImagePositionPatient, float),
            atol=1e-5,
        )


def test_a_tilted_gantry_is_refused_with_its_angle_and_rounded_positions_are_not(tmp_path: Path) -> None:
    mask, _ = mask_in("LPS", OBLIQUE)
    step_mm = SPACING_MM[2]
    for degrees in (15.0, 0.5):  # highdicom's own reader lets half a degree pass, and misplaces the last slice
        tilted = read_source(
            write_ct(tmp_path / str(degrees), "LPS", OBLIQUE, (0, step_mm * np.tan(np.deg2rad(degrees)), 0))
        )
        lying = Volume(mask.array[:, ::-1], series_affine(tilted.frames))
        said = refused(lambda: write_dicom_seg(lying, LABELS, tmp_path / "m.dcm", tilted), tmp_path)  # noqa: B023
        assert f"{degrees:.2f} degrees" in said
        assert "rtstruct" in said
    rounded = read_source(write_ct(tmp_path / "rounded", "LPS", OBLIQUE, (0, 0.01, 0)))
    write_dicom_seg(Volume(mask.array[:, ::-1], series_affine(rounded.frames)), LABELS, tmp_path / "m.dcm", rounded)


def test_positions_that_a_scanner_rounded_are_kept(tmp_path: Path) -> None:
    def change(image: Dataset) -> None:
        image.ImagePositionPatient[2] = round(float(image.ImagePositionPatient[2]) * 1.01, 1)

    source = read_source(rewritten(tmp_path, change))
    mask, _ = mask_in("LPS")
    mask = Volume(mask.array[:, ::-1], series_affine(source.frames))
    write_dicom_seg(mask, LABELS, tmp_path / "m.dcm", source)
    for organs in (organs_by_highdicom(tmp_path / "m.dcm"), organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / "dcmqi")):
        for name in ("liver", "left kidney", "spleen"):
            expected = places(mask.array == LABELS[name], mask.affine)
            np.testing.assert_allclose(places(*organs[name]), expected, atol=0.06)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image: image.__setattr__("SOPInstanceUID", ""), "SOPInstanceUID"),
        (lambda image: image.__delattr__("FrameOfReferenceUID"), "FrameOfReferenceUID"),
        (lambda image: image.__setattr__("SOPInstanceUID", "1.2.3"), "either"),
        (lambda image: image.__setattr__("StudyInstanceUID", generate_uid()), "StudyInstanceUID differs"),
        (lambda image: image.__setattr__("SeriesInstanceUID", generate_uid()), "SeriesInstanceUID differs"),
    ],
    ids=["no image uid", "no frame of reference", "one image uid", "several studies", "a series each"],
)
def test_images_that_nothing_can_refer_to_are_refused(
    tmp_path: Path, change: Callable[[Dataset], None], said: str
) -> None:
    folder = rewritten(tmp_path, change)
    read_volume(folder)  # it can be segmented all the same
    assert said in refused(lambda: read_source(folder), tmp_path)


def test_what_anonymisers_and_scanners_leave_out_is_left_empty(tmp_path: Path) -> None:
    def change(image: Dataset) -> None:
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyDate", "StudyTime", "StudyID"):
            delattr(image, keyword)
        del image.AccessionNumber, image.SliceThickness
        image.PatientSex = "U"

    source = read_source(rewritten(tmp_path, change))
    mask, _ = mask_in("LPS")
    write_dicom_seg(mask, LABELS, tmp_path / "m.dcm", source)
    file = pydicom.dcmread(tmp_path / "m.dcm")
    assert (file.PatientSex, file.PatientID, file.StudyID) == ("", "", "")
    assert_in_place(organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / "dcmqi"), "LPS", None)


def test_names_in_another_alphabet_stay_as_they_are(tmp_path: Path) -> None:
    def change(image: Dataset) -> None:
        image.SpecificCharacterSet = "ISO_IR 100"
        image.PatientName = "Müller^Jörg"

    source = read_source(rewritten(tmp_path, change))
    write_dicom_seg(mask_in("LPS")[0], LABELS, tmp_path / "m.dcm", source)
    assert pydicom.dcmread(tmp_path / "m.dcm").PatientName == "Müller^Jörg"


def test_only_a_dicom_series_can_be_referred_to(tmp_path: Path) -> None:
    write_volume(mask_in("LPS")[0], tmp_path / "scan.nii.gz")
    write_ct(tmp_path / "ct")
    for path, said in (("scan.nii.gz", "DICOM series"), ("none", "no such"), ("ct/00.dcm", "one slice")):
        assert said in refused(lambda: read_source(tmp_path / path), tmp_path)  # noqa: B023


def test_a_zip_is_referred_to_like_its_folder(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", "AIL", OBLIQUE)
    shutil.make_archive(str(tmp_path / "ct"), "zip", tmp_path / "ct")
    mask, _ = mask_in("AIL", OBLIQUE)
    write_dicom_seg(mask, LABELS, tmp_path / "m.dcm", read_source(tmp_path / "ct.zip"))
    assert_in_place(organs_by_highdicom(tmp_path / "m.dcm"), "AIL", OBLIQUE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_multi_frame_scan_is_referred_to_frame_by_frame(tmp_path: Path, kind: str) -> None:
    write_ct(tmp_path / "ct", "LPS", OBLIQUE)
    order = [3, 0, 8, 1, 7, 2, 6, 4, 5]
    images = [pydicom.dcmread(file) for file in sorted((tmp_path / "ct").iterdir())]
    enhanced(images, order).save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    mask, _ = mask_in("LPS", OBLIQUE)
    write_dicom_seg(mask, LABELS, tmp_path / "m.dcm", read_source(tmp_path / "enhanced.dcm"), kind=kind)
    assert_in_place(organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / "dcmqi"), "LPS", OBLIQUE)
    for frame in pydicom.dcmread(tmp_path / "m.dcm").PerFrameFunctionalGroupsSequence:
        number = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        np.testing.assert_allclose(
            np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float),
            np.array(images[order[number - 1]].ImagePositionPatient, float),
            atol=1e-5,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_series_is_referred_to_and_read_by_dcmqi(data: Path, tmp_path: Path, kind: str) -> None:
    source = read_source(data / "dcmqi" / "ct-3slice")
    liver, _ = read_dicom_seg(data / "dcmqi" / "liver.dcm")
    write_dicom_seg(liver, {"liver": 1}, tmp_path / "m.dcm", source, kind=kind)
    array, affine = organs_by_dcmqi(tmp_path / "m.dcm", tmp_path / "dcmqi")["liver"]
    np.testing.assert_allclose(places(array, affine), places(liver.array, liver.affine), atol=1e-3)


def test_a_series_that_was_stripped_of_its_identifiers_is_refused(data: Path, tmp_path: Path) -> None:
    said = refused(lambda: read_source(data / "totalsegmentator" / "ct_dicom"), tmp_path)
    assert "SOPInstanceUID" in said


def test_a_scan_keeps_the_headers_of_its_series_without_pixels(tmp_path: Path) -> None:
    folder = write_ct(tmp_path / "ct", "PIR", OBLIQUE)
    scan = read_scan(folder)
    assert scan.series is not None
    assert {path.name for path in scan.series.headers} == {path.name for path in folder.iterdir()}
    assert list(scan.series.headers) == [frame.path for frame in scan.series.frames]  # in the order of the slices
    assert not any("PixelData" in header for header in scan.series.headers.values())
    assert scan.series.shape == scan.volume.shape
    np.testing.assert_array_equal(series_affine(scan.series.frames), scan.volume.affine)
