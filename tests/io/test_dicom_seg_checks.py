"""A DICOM-SEG that contradicts itself is refused by what is wrong, and never read with a slice or an organ less."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from meddelinea.io.dicom_seg import read_dicom_seg
from support.dicom_segs import written
from support.dicom_series import refused

Change = Callable[[Dataset], None]


def put(keyword: str, value: Any) -> Change:
    return lambda file: setattr(file, keyword, value)


def less(keyword: str) -> Change:
    return lambda file: setattr(file, keyword, file[keyword].value - 1)


def moved(position: list[float | str]) -> Change:
    def change(file: Dataset) -> None:
        place = file.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
        place["ImagePositionPatient"] = DataElement(0x00200032, "DS", position, validation_mode=config.IGNORE)

    return change


def group_gone(file: Dataset) -> None:
    del file.PerFrameFunctionalGroupsSequence[2]


def groups_gone(file: Dataset) -> None:
    del file.PerFrameFunctionalGroupsSequence


def frame_twice(file: Dataset) -> None:
    groups = file.PerFrameFunctionalGroupsSequence
    groups[3].PlanePositionSequence = groups[2].PlanePositionSequence
    if "SegmentIdentificationSequence" in groups[2]:
        groups[3].SegmentIdentificationSequence = groups[2].SegmentIdentificationSequence


def of_segment(number: int | list[int]) -> Change:
    def change(file: Dataset) -> None:
        file.PerFrameFunctionalGroupsSequence[2].SegmentIdentificationSequence[0].ReferencedSegmentNumber = number

    return change


def numbers_twice(file: Dataset) -> None:
    file.SegmentSequence[-1].SegmentNumber = file.SegmentSequence[-2].SegmentNumber


def strange_voxel(file: Dataset) -> None:
    pixels = np.frombuffer(file.PixelData, np.uint8).copy()
    pixels[500] = 77
    file.PixelData = pixels.tobytes()


def spacing(value: list[float]) -> Change:
    def change(file: Dataset) -> None:
        file.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = value

    return change


ANY = ("labelmap", "binary", "fractional")


@pytest.mark.parametrize(
    ("kinds", "change", "said"),
    [
        (ANY, lambda file: file.pop("NumberOfFrames"), "NumberOfFrames is None, but"),
        (ANY, less("NumberOfFrames"), "frames are described"),
        (ANY, group_gone, "frames are described"),
        (ANY, groups_gone, "no frame is described"),
        (ANY, moved([0, 0, -1e30]), "ImagePositionPatient of frame 3"),
        (ANY, moved([0, 0, 9e5]), "expected"),
        (ANY, moved(["nan", 0, 0]), "ImagePositionPatient of frame 3"),
        (ANY, frame_twice, "lie at one place"),
        (ANY, less("Rows"), "of PixelData; expected"),
        (ANY, less("Columns"), "of PixelData; expected"),
        (ANY, put("Rows", 13), "expected"),
        (ANY, numbers_twice, "expected each once"),
        (ANY, put("SegmentationType", "OTHER"), "SegmentationType is 'OTHER'"),
        (ANY, put("BitsAllocated", 32), "BitsAllocated 32"),
        (ANY, spacing([0, 0]), "PixelSpacing is [0.0, 0.0]"),
        (ANY, spacing([-1, 1]), "PixelSpacing is [-1.0, 1.0]"),
        (("binary", "fractional"), of_segment(9), "frame 3 is of segment 9"),
        (("binary", "fractional"), of_segment([1, 2]), "frame 3 is of segment [1, 2]"),
        (("labelmap",), strange_voxel, "segments [77], which are not described"),
        (("fractional",), put("MaximumFractionalValue", 0), "MaximumFractionalValue is 0"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, kinds: tuple[str, ...], change: Change, said: str) -> None:
    for kind in kinds:
        path = written(tmp_path / kind, "LPS", None, kind)
        file = pydicom.dcmread(path)
        change(file)
        file.save_as(path)
        message = refused(lambda: read_dicom_seg(path), tmp_path)  # noqa: B023
        assert said in message
        assert str(path) in message


@pytest.mark.parametrize("kind", ANY)
def test_a_file_that_ends_early_or_goes_on_is_refused(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, "LPS", None, kind)
    file = pydicom.dcmread(path)
    whole = file.PixelData
    for pixels in (whole[:-24], whole + whole[:200]):
        file.PixelData = pixels
        file.save_as(path)
        refused(lambda: read_dicom_seg(path), tmp_path)


@pytest.mark.parametrize("kind", ANY)
def test_a_deflated_file_is_read_as_the_plain_one(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, "LPS", None, kind)
    expected, labels = read_dicom_seg(path)
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    file.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    read, read_labels = read_dicom_seg(tmp_path / "deflated.dcm")
    np.testing.assert_array_equal(read.array, expected.array)
    assert read_labels == labels
