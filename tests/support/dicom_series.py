"""Tiny CT series as files, in any orientation, with organs whose place is known from geometry alone."""

import copy
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from meddelinea.errors import InputRefusedError
from meddelinea.volume import Volume

COLUMNS, ROWS, SLICES = 14, 12, 9
#: Distance of rows, of columns and of slices.
SPACING_MM = (1.1, 0.8, 2.5)
CENTRE_LPS = np.array([-31.0, 112.0, 403.0])
#: A few degrees off the patient's axes, about all three of them.
OBLIQUE = Rotation.from_rotvec([0.21, -0.16, 0.34])
#: Boxes of voxels: (column, row from the top, slice) from and to; they touch the edge, one another, and leave a hole.
BOXES = {"liver": ((0, 1, 2), (7, 9, 8)), "left kidney": ((9, 4, 1), (13, 12, 5)), "spleen": ((7, 1, 6), (12, 4, 9))}
HOLE = ((2, 3, 4), (5, 6, 7))
LABELS = {"liver": 6, "left kidney": 3, "spleen": 1, "gallbladder": 4}

_DIRECTIONS = {"R": (-1, 0, 0), "L": (1, 0, 0), "A": (0, -1, 0), "P": (0, 1, 0), "I": (0, 0, -1), "S": (0, 0, 1)}


def write_ct(
    folder: Path,
    orientation: str = "LPS",
    turn: Rotation | None = None,
    shear_mm: tuple[float, ...] = (0, 0, 0),
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> Path:
    """A series whose columns, rows and files run in the directions of `orientation`, the patient then turned by `turn`.

    Files are numbered along its third letter, so half of the 48 orientations are numbered against the image's normal.
    """
    folder.mkdir(parents=True)
    turn = turn or Rotation.identity()
    along, down, on = (turn.apply(_DIRECTIONS[letter]) for letter in orientation)
    row_mm, column_mm, slice_mm = spacing_mm
    step = on * slice_mm + turn.apply(shear_mm)
    middle = along * column_mm * (COLUMNS - 1) / 2 + down * row_mm * (ROWS - 1) / 2 + step * (SLICES - 1) / 2
    study, series, reference = generate_uid(), generate_uid(), generate_uid()
    values = np.random.default_rng(0).integers(-1000, 200, (SLICES, ROWS, COLUMNS)).astype(np.int16)
    for k in range(SLICES):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = CTImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, reference
        image.Modality = "CT"
        image.PatientName, image.PatientID, image.PatientSex, image.PatientBirthDate = "Doe^Jane", "7", "F", "19700101"
        image.StudyDate, image.StudyTime, image.AccessionNumber, image.StudyID = "20240102", "101112", "A1", "S1"
        image.InstanceNumber = k + 1
        image.ImageOrientationPatient = [f"{cosine:.9f}" for cosine in (*along, *down)]
        image.ImagePositionPatient = [f"{mm:.7f}" for mm in CENTRE_LPS - middle + k * step]
        image.PixelSpacing = [row_mm, column_mm]
        image.SliceThickness = slice_mm
        image.Rows, image.Columns = ROWS, COLUMNS
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        image.PixelData = values[k].tobytes()
        image.save_as(folder / f"{k:02d}.dcm", enforce_file_format=True)
    return folder


def mask_in(orientation: str, turn: Rotation | None = None) -> tuple[Volume, dict[str, np.ndarray]]:
    """The organs of `BOXES` on the grid of such a series, and the centroid of each in RAS millimetres.

    The affine is built from the directions, not read from the files, and axes run column, row from the top, file.
    """
    turn = turn or Rotation.identity()
    array = np.zeros((COLUMNS, ROWS, SLICES), np.uint8)
    for name, box in BOXES.items():
        array[_slices(box)] = LABELS[name]
    array[_slices(HOLE)] = 0
    row_mm, column_mm, slice_mm = SPACING_MM
    axes = np.stack([turn.apply(_DIRECTIONS[letter]) for letter in orientation], axis=1)
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag([column_mm, row_mm, slice_mm])
    middle = (np.array(array.shape) - 1) / 2
    affine[:3, 3] = CENTRE_LPS - affine[:3, :3] @ middle
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    centroids = {}
    for name, box in BOXES.items():
        centre, voxels = _centre(box), _size(box)
        if name == "liver":
            centre = (centre * voxels - _centre(HOLE) * _size(HOLE)) / (voxels - _size(HOLE))
        centroids[name] = affine[:3, :3] @ centre + affine[:3, 3]
    return Volume(array, affine), centroids


def voxels_of(organ: str) -> int:
    return _size(BOXES[organ]) - (_size(HOLE) if organ == "liver" else 0)


def _slices(box: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[slice, ...]:
    return tuple(slice(low, high) for low, high in zip(*box, strict=True))


def _centre(box: tuple[tuple[int, ...], tuple[int, ...]]) -> np.ndarray:
    return (np.array(box[0]) + np.array(box[1]) - 1) / 2


def _size(box: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
    return int(np.prod(np.array(box[1]) - np.array(box[0])))


def rewritten(folder: Path, change: Callable[[Dataset], None]) -> Path:
    """The series of `folder / "ct"` with every header changed."""
    write_ct(folder / "ct")
    for file in (folder / "ct").iterdir():
        image = pydicom.dcmread(file)
        change(image)
        image.save_as(file)
    return folder / "ct"


def enhanced(slices: list[Dataset], order: list[int]) -> Dataset:
    """One multi-frame object of the slices, its frames in `order`."""
    dataset = copy.deepcopy(slices[0])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(dataset, keyword)
    del dataset.RescaleIntercept

    def item(**values: object) -> Sequence:
        inner = Dataset()
        for keyword, value in values.items():
            setattr(inner, keyword, value)
        return Sequence([inner])

    first = slices[0]
    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=first.ImageOrientationPatient)
    shared.PixelMeasuresSequence = item(PixelSpacing=first.PixelSpacing, SliceThickness=2)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for k in order:
        group = Dataset()
        group.PlanePositionSequence = item(ImagePositionPatient=slices[k].ImagePositionPatient)
        group.PixelValueTransformationSequence = item(
            RescaleIntercept=slices[k].RescaleIntercept, RescaleSlope=slices[k].RescaleSlope, RescaleType="HU"
        )
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    dataset.NumberOfFrames = len(order)
    dataset.PixelData = b"".join(slices[k].PixelData for k in order)
    return dataset


def foreign(folder: Path, pixels: np.ndarray, kind: str, names: tuple[str, ...], shear_mm: float = 0) -> Path:
    """A SEG as another user of highdicom writes it."""
    images = [pydicom.dcmread(file) for file in sorted(write_ct(folder / "ct", shear_mm=(0, shear_mm, 0)).iterdir())]
    algorithm = hd.AlgorithmIdentificationSequence("other", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        hd.seg.SegmentDescription(k, name, codes.SCT.AnatomicalStructure, codes.SCT.Organ, "AUTOMATIC", algorithm)
        for k, name in enumerate(names, start=1)
    ]
    uids = (hd.UID(), 1, hd.UID(), 1)
    hd.seg.Segmentation(images, pixels, kind, segments, *uids, "other", "other", "1", "1").save_as(folder / "o.dcm")
    return folder / "o.dcm"


def refused(action: Callable[[], object], folder: Path) -> str:
    """The one line that `action` is refused with; it leaves no file in `folder`."""
    before = sorted(folder.iterdir())
    with pytest.raises(InputRefusedError) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert sorted(folder.iterdir()) == before
    return str(caught.value)
