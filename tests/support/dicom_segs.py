"""DICOM-SEG files of the tiny series, and what other programs read in such files."""

import json
import subprocess
import sys
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
from scipy.spatial.transform import Rotation

from meddelinea.io.dicom_seg import write_dicom_seg
from meddelinea.io.dicom_source import read_source
from support.dicom_series import (
    LABELS,
    SPACING_MM,
    mask_in,
    voxels_of,
    write_ct,
)

KINDS = ("labelmap", "binary", "fractional")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def organs_by_highdicom(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Voxels and RAS affine of each segment, by highdicom alone."""
    file = hd.seg.segread(path)
    organs = {}
    for number in file.segment_numbers:
        volume = file.get_volume(segment_numbers=[number], rtol=0.1)
        organs[file.get_segment_description(number).segment_label] = (
            volume.array[..., 0] > 0,
            LPS_TO_RAS @ volume.affine,
        )
    return organs


def organs_by_dcmqi(path: Path, folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same by dcmqi's reader, a C++ program on DCMTK and ITK that shares no code with highdicom."""
    folder.mkdir()
    program = Path(sys.executable).with_name("segimage2itkimage")
    subprocess.run(
        [program, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"], check=True, capture_output=True
    )
    described = json.loads((folder / "meta.json").read_text())["segmentAttributes"]
    organs = {}
    for k, group in enumerate(described, start=1):
        image = sitk.ReadImage(str(folder / f"{k}.nrrd"))
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
        for segment in group:
            # Of a fractional file it gives the stored shares, each segment in a file of its own.
            inside = array == segment["labelID"] if len(group) > 1 else array > 0
            organs[segment["SegmentLabel"]] = inside, LPS_TO_RAS @ affine
    return organs


def places(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(voxels, 3) patient millimetres of the voxels inside, in an order that does not depend on the axes."""
    points = np.argwhere(array) @ affine[:3, :3].T + affine[:3, 3]
    return points[np.lexsort(points.round(2).T)]


def assert_in_place(organs: dict[str, tuple[np.ndarray, np.ndarray]], orientation: str, turn: Rotation | None) -> None:
    """The same voxels at the same places as geometry says, so Dice 1; and the centroids within 0.1 mm."""
    mask, centroids = mask_in(orientation, turn)
    for name, centroid in centroids.items():
        array, affine = organs[name]
        expected = places(mask.array == LABELS[name], mask.affine)
        assert len(expected) == array.sum() == voxels_of(name)
        np.testing.assert_allclose(places(array, affine), expected, atol=1e-3)
        np.testing.assert_allclose(places(array, affine).mean(axis=0), centroid, atol=0.1)
        assert abs(np.linalg.det(affine[:3, :3])) == pytest.approx(np.prod(SPACING_MM), rel=1e-5)


def written(folder: Path, orientation: str, turn: Rotation | None, kind: str, axes: str = "RAS") -> Path:
    """A series in `folder / "ct"` and its organs, the mask given with other axes than the series has."""
    source = read_source(write_ct(folder / "ct", orientation, turn))
    mask, _ = mask_in(orientation, turn)
    path = folder / f"{kind}.dcm"
    write_dicom_seg(mask.reorient(axes), LABELS, path, source, kind=kind, model="small", parameters={"steps": "4"})
    return path
