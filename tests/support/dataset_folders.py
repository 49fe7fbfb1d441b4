"""Datasets in the layouts that they are published in, written from real scans: each organ must come back where it was.

The masks that go in are known by name from the source's own table; the ids that a layout stores them under are typed
from what its publisher says, in the tests of that layout.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset

from meddelinea.data.case import Case, FoundCases, read_case
from meddelinea.io.volumes import write_volume
from meddelinea.scan import Modality
from meddelinea.volume import Volume

# What TotalSegmentator calls the organs of these tests.
TOTALSEGMENTATOR = {
    "spleen": "spleen",
    "kidney_right": "right kidney",
    "kidney_left": "left kidney",
    "gallbladder": "gallbladder",
    "liver": "liver",
    "stomach": "stomach",
    "aorta": "aorta",
    "inferior_vena_cava": "inferior vena cava",
    "portal_vein_and_splenic_vein": "portal and splenic vein",
    "pancreas": "pancreas",
    "adrenal_gland_right": "right adrenal gland",
    "adrenal_gland_left": "left adrenal gland",
    "duodenum": "duodenum",
    "colon": "colon",
    "urinary_bladder": "urinary bladder",
    "femur_right": "right femur",
    "femur_left": "left femur",
    "lung_lower_lobe_left": "left lung lower lobe",
}
ATLAS_IDS = {
    "aorta": 1,
    "gallbladder": 2,
    "left kidney": 3,
    "right kidney": 4,
    "liver": 5,
    "pancreas": 6,
    "inferior vena cava": 7,
    "spleen": 8,
    "stomach": 9,
    "left adrenal gland": 10,
    "right adrenal gland": 11,
    "urinary bladder": 12,
    "colon": 14,
    "duodenum": 15,
    "left femur": 17,
    "right femur": 18,
    "portal and splenic vein": 23,
}
ATLAS_FILES = {
    "aorta": "aorta",
    "gallbladder": "gall_bladder",
    "left kidney": "kidney_left",
    "right kidney": "kidney_right",
    "liver": "liver",
    "pancreas": "pancreas",
    "inferior vena cava": "postcava",
    "spleen": "spleen",
    "stomach": "stomach",
}
KIDNEYS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}


@dataclass(frozen=True)
class Subject:
    """A real scan and where its organs are, by canonical name."""

    scan: Volume
    organs: Mapping[str, np.ndarray]

    def labels(self, ids: Mapping[str, int]) -> Volume:
        """One volume of ids."""
        array = np.zeros(self.scan.array.shape, np.uint8)
        for organ, index in ids.items():
            array[self.organs[organ]] = index
        return Volume(array, self.scan.affine)

    def mask(self, organ: str) -> Volume:
        """One organ as 0 and 1."""
        return Volume(self.organs[organ].astype(np.uint8), self.scan.affine)


def every_other(volume: Volume, step: tuple[int, int, int]) -> Volume:
    """A smaller volume of the same place."""
    i, j, k = step
    return Volume(volume.array[::i, ::j, ::k].copy(), volume.affine @ np.diag([i, j, k, 1.0]))


def put(volume: Volume, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(volume, path)
    return path


def known(found: FoundCases) -> dict[str, tuple[str, Modality]]:
    """Patient and modality by case."""
    assert list(found.cases) == sorted(found.cases, key=lambda case: case.name)
    return {case.name: (case.patient, case.modality) for case in found.cases}


def check(case: Case, subject: Subject, organs: tuple[str, ...]) -> tuple[str, ...]:
    """A case reads as the subject, organ for organ, whichever order they are asked for; returns the remarks."""
    remarks: tuple[str, ...] = ()
    for wanted in (organs, organs[::-1]):
        read = read_case(case, wanted)
        np.testing.assert_array_equal(read.volume.array, subject.scan.array)
        np.testing.assert_allclose(read.volume.affine, subject.scan.affine, atol=1e-3)
        assert read.scan.modality == case.modality
        assert read.mask.array.dtype == np.uint8
        for index, organ in enumerate(wanted, start=1):
            np.testing.assert_array_equal(read.mask.array == index, subject.organs[organ], err_msg=organ)
        assert read.mask.array.max() == len(wanted)
        remarks = read.remarks
    read = read_case(case, organs)
    side = {organ: to_the_right(read.mask, index) for index, organ in enumerate(organs, start=1)}
    for right, left in (("liver", "spleen"), ("right kidney", "left kidney"), ("right femur", "left femur")):
        if right in side and left in side:
            assert side[right] > side[left]
    return remarks


def to_the_right(mask: Volume, index: int) -> float:
    """Millimetres from the patient's middle line of the scanner to the centre of an organ, positive on the right."""
    centre = np.argwhere(mask.array == index).mean(axis=0)
    return float(nib.affines.apply_affine(mask.affine, centre)[0])


def put_atlas_case(folder: Path, subject: Subject, *, masks: bool = True, combined: bool = True) -> None:
    put(subject.scan, folder / "ct.nii.gz")
    if masks:
        for organ, name in ATLAS_FILES.items():
            put(subject.mask(organ), folder / "segmentations" / f"{name}.nii.gz")
    if combined:
        put(subject.labels(ATLAS_IDS), folder / "combined_labels.nii.gz")


def put_pair(root: Path, images: str, labels: str, subject: Subject, ids: Mapping[str, int]) -> None:
    put(subject.scan, root / images)
    put(subject.labels(ids), root / labels)


def describe(root: Path, **entries: object) -> None:
    (root / "dataset.json").write_text(json.dumps(entries))


def write_dicom(folder: Path, subject: Subject, modality: Modality, names: list[str]) -> None:
    """The subject, whose axes run to the left, front and head, as DICOM slices from the feet under these file names."""
    assert subject.scan.orientation == "LAS"
    folder.mkdir(parents=True)
    ras_to_lps = np.diag([-1.0, -1.0, 1.0])
    array, affine, spacing = subject.scan.array, subject.scan.affine, subject.scan.spacing_mm
    series = pydicom.uid.generate_uid()
    for k, name in enumerate(names):
        meta = FileMetaDataset()
        storage = pydicom.uid.CTImageStorage if modality == "CT" else pydicom.uid.MRImageStorage
        meta.MediaStorageSOPClassUID = storage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.Modality = series, modality
        dataset.Rows, dataset.Columns = array.shape[1], array.shape[0]
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        along = ras_to_lps @ affine[:3, 0] / spacing[0], -ras_to_lps @ affine[:3, 1] / spacing[1]
        dataset.ImageOrientationPatient = [f"{value:.9f}" for value in np.concatenate(along)]
        first = nib.affines.apply_affine(affine, (0, array.shape[1] - 1, k))
        dataset.ImagePositionPatient = [f"{value:.7f}" for value in ras_to_lps @ first]
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.PixelData = np.ascontiguousarray(array[:, ::-1, k].T.astype(np.int16)).tobytes()
        dataset.save_as(folder / name, enforce_file_format=True)
