"""What all slices of a series must say alike, and what sound series may differ in without a word."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from meddelinea.io.volumes import read_scan, read_volume
from support.dicom_series import enhanced
from support.reading import assert_same, refusal, remarks
from support.real_series import Change, put, write_series


def alternating(keyword: str, *values: object) -> Change:
    return lambda k, dataset: setattr(dataset, keyword, values[k % len(values)])


def as_mr(k: int, dataset: Dataset) -> None:
    dataset.Modality = "MR"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage


@pytest.mark.parametrize(
    "change",
    [
        alternating("PatientName", "Doe^Jane", "DOE^JANE^^^", "Doe^Jane=Doe^Jane"),
        lambda k, dataset: put("FrameOfReferenceUID", generate_uid())(k, dataset),
        lambda k, dataset: put("PatientID", f"hash{k}")(k, dataset),
        alternating("PatientID", "7", ""),
        alternating("GantryDetectorTilt", 0.0, 0.2),
        alternating("RescaleType", "HU", None),
        alternating("KVP", 120, 100),
        put("SpacingBetweenSlices", 1.25, 3),
    ],
    ids=["spelling", "a space each", "a patient each", "some patients", "rounded tilt", "unit", "voltage", "spacing"],
)
def test_what_sound_series_differ_in_is_no_matter(tmp_path: Path, slices: list[Dataset], change: Change) -> None:
    assert remarks(write_series(tmp_path / "series", slices, change)) == []


def test_an_mr_may_scale_each_slice_for_itself(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        as_mr(k, dataset)
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 + k, 0

    folder = write_series(tmp_path / "series", slices, change)
    assert remarks(folder) == []
    expected = np.stack([s.pixel_array[::-1].T * (1 + k) for k, s in enumerate(slices)][::-1], axis=-1)
    np.testing.assert_array_equal(read_volume(folder).array, expected)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("keywords", [["RescaleSlope"], ["RescaleIntercept"], ["RescaleSlope", "RescaleIntercept"]])
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "absent"])
def test_slices_without_the_rescale_that_others_have_are_refused(
    tmp_path: Path, slices: list[Dataset], modality: str, keywords: list[str], empty: bool
) -> None:
    def change(k: int, dataset: Dataset) -> None:
        if modality == "MR":
            as_mr(k, dataset)
        for keyword in keywords if k in (2, 5) else ():
            if empty:
                setattr(dataset, keyword, None)
            else:
                delattr(dataset, keyword)

    message = refusal(write_series(tmp_path / "series", slices, change))
    assert f"{keywords[0]} of frame 1 is absent, but present in 4 of 6 slices" in message
    assert "02.dcm" in message or "05.dcm" in message


def test_slices_stored_in_two_ways_with_one_meaning_are_read_and_remarked_upon(
    tmp_path: Path, slices: list[Dataset]
) -> None:
    """Half are stored with the offset that their intercept takes away, and half as signed Hounsfield units."""
    expected = read_volume(write_series(tmp_path / "plain", slices))

    def change(k: int, dataset: Dataset) -> None:
        if k < 3:
            dataset.PixelData = (dataset.pixel_array.astype(np.int16) - 1024).tobytes()
            dataset.RescaleIntercept, dataset.PixelRepresentation = 0, 1

    scan = read_scan(write_series(tmp_path / "series", slices, change))
    assert_same(scan.volume, (expected.array, expected.affine))
    assert [(found.code, found.level) for found in scan.findings] == [("mixed_coding", "warn")]
    assert "RescaleIntercept, PixelRepresentation" in scan.findings[0].message


def test_frames_of_one_file_are_compared_too(tmp_path: Path, slices: list[Dataset]) -> None:
    for value, said in (("US", "RescaleType of frame 3 is US, but HU in 5 of 6"), (None, "RescaleSlope of frame 3")):
        file = enhanced(slices, [0, 1, 2, 3, 4, 5])
        group = file.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence[0]
        if value:
            group.RescaleType = value
        else:
            del group.RescaleSlope
        file.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
        assert said in refusal(tmp_path / "scan.dcm")


def test_a_thickness_in_words_is_passed_over(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        del dataset.SliceThickness
        dataset.add_new(0x00180050, "LO", "REMOVED")

    scan = read_scan(write_series(tmp_path / "series", slices, change))
    assert [found.code for found in scan.findings] == ["odd_numbers"]
    assert "'REMOVED'" in scan.findings[0].message
    assert "passed over" in scan.findings[0].message
