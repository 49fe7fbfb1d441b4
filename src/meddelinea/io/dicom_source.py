"""The DICOM series that a result refers to: its images' identifiers, and where each slice lies.

A segmentation or a structure set is about images. A PACS finds them by their identifiers, a viewer lays the result over
them by patient coordinates; so a series that has not the former, or whose slices cannot be told in the latter, is
refused before any work.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.valuerep import DS

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.io.dicom import read_frames, series_affine
from meddelinea.io.dicom_frames import Frame, decoding
from meddelinea.io.volumes import dicom_place, may_be_dicom
from meddelinea.volume import Affine, Volume

#: How far the last slice may lie aside of the normal through the first. Readers stack slices along the normal, so this
#: is how far they would misplace one.
MAX_DRIFT_MM = 0.1

# Without these nothing can refer to an image. Anonymisers empty them.
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
# Results carry these too, empty where the series has not got them.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)


@dataclass(frozen=True, eq=False)
class DicomSource:
    """A series that a result can refer to.

    Parameters
    ----------
    path
        What the user named: a folder, a file or a zip.
    frames
        Its slices in the order of the volume's last axis.
    images
        The header of each file by its path, without pixels.
    """

    path: Path
    frames: list[Frame]
    images: dict[Path, Any]

    @property
    def affine(self) -> Affine:
        """(4, 4) affine of the volume that `read_volume` gives for the series."""
        return series_affine(self.frames)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows and slices."""
        rows, columns = self.frames[0].shape
        return int(columns), int(rows), len(self.frames)

    @property
    def slice_step_mm(self) -> NDArray[np.float64]:
        """(3,) from one slice to the next, LPS; along the normal unless the gantry was tilted."""
        step: NDArray[np.float64] = self.frames[-1].position_mm - self.frames[0].position_mm
        return step / (len(self.frames) - 1)

    def planes(self, mask: Volume, labels: Mapping[str, int]) -> NDArray[Any]:
        """(slices, rows, columns) voxels of a mask on the grid of the series, rows from the top as DICOM stores them.

        Raises
        ------
        InputRefusedError
            If the mask lies on another grid.
        UsageError
            If it holds an id without a name.
        """
        aligned = mask.onto(self.affine, self.shape)
        if aligned is None or aligned.array.size != mask.array.size:
            raise InputRefusedError(
                f"{self.path}: the mask of {mask.array.shape} voxels does not lie on the grid of this series "
                f"({self.shape}); expected the mask of the very series"
            )
        planes = np.ascontiguousarray(aligned.slices()[:, ::-1])
        present = set().union(*(np.unique(plane).tolist() for plane in planes))
        unnamed = sorted(present - {0, *labels.values()})
        if unnamed:
            raise UsageError(f"the mask holds ids {unnamed} without a name; expected only {sorted(labels.values())}")
        return planes

    def volume(self, planes: NDArray[Any]) -> Volume:
        """The inverse of `planes`."""
        return Volume.from_slices(planes[:, ::-1], self.affine)


def read_source(path: Path) -> DicomSource:
    """Headers of the one CT or MR series in a folder, file or zip, if a result can refer to it.

    Raises
    ------
    InputRefusedError
        If `path` is no DICOM series, `read_volume` would refuse it, or an identifier is missing or that of two images.
    """
    if not path.exists():
        raise InputRefusedError(f"{path}: no such file or folder; check the path")
    if not may_be_dicom(path):
        raise InputRefusedError(
            f"{path}: not DICOM; DICOM-SEG and RTSTRUCT refer to the images of a DICOM series; "
            "give the series (folder or zip), or write nifti or nrrd"
        )
    with dicom_place(path) as place:
        _, frames = read_frames(place)
        images: dict[Path, Any] = {}
        for frame in frames:
            if frame.path not in images:
                with decoding(frame.path):
                    images[frame.path] = pydicom.dcmread(frame.path, stop_before_pixels=True)
        _check_identifiers(images)
    source = DicomSource(path, frames, images)
    for header in images.values():
        _complete(header, frames[0], float(np.linalg.norm(source.slice_step_mm)))
    return source


def require_upright(source: DicomSource) -> None:
    """Refuse a series that was acquired with a tilted gantry, as its slices do not stack along their normal.

    Raises
    ------
    InputRefusedError
        If the last slice lies more than `MAX_DRIFT_MM` aside of the normal through the first.
    """
    step, normal = source.slice_step_mm, source.frames[0].normal
    aside_mm = float(np.linalg.norm(step - (step @ normal) * normal)) * (len(source.frames) - 1)
    if aside_mm > MAX_DRIFT_MM:
        degrees = np.rad2deg(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
        raise InputRefusedError(
            f"{source.path}: the gantry was tilted by {degrees:.2f} degrees; viewers stack the slices of a DICOM-SEG "
            f"straight and would misplace organs by up to {aside_mm:.1f} mm; write rtstruct or nifti"
        )


@contextmanager
def referring(source: DicomSource, kind: str) -> Iterator[None]:
    """Turn whatever a header's odd value leads to while a `kind` of file is written into a refusal.

    Warnings are kept in: they quote patients' names, and what the file must hold is read back anyway.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pydicom|highdicom")
        try:
            yield
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputRefusedError(
                f"{source.path}: the headers of this series do not allow {kind} ({reason}); write nifti"
            ) from error


def _complete(header: Any, frame: Frame, slice_mm: float) -> None:
    """Give a header, in memory, what results must carry over from it: empty, or plain, where it has nothing."""
    for keyword in _MAY_BE_EMPTY:
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    if not header.get("SpecificCharacterSet"):
        header.pop("SpecificCharacterSet", None)
    measures = header
    if header.get("SharedFunctionalGroupsSequence"):
        shared = header.SharedFunctionalGroupsSequence[0]
        if not shared.get("PixelMeasuresSequence"):
            shared.PixelMeasuresSequence = [Dataset()]
            shared.PixelMeasuresSequence[0].PixelSpacing = frame.pixel_spacing_mm.tolist()
        measures = shared.PixelMeasuresSequence[0]
    if not measures.get("SliceThickness"):
        measures.SliceThickness = DS(slice_mm, auto_format=True)
    # Of two distant slices nothing else tells how many lie between them. What scanners say here can be another thing.
    measures.SpacingBetweenSlices = DS(slice_mm, auto_format=True)


def _check_identifiers(images: dict[Path, Any]) -> None:
    """Every image can be named, and all are of one series."""
    first_path, first = next(iter(images.items()))
    seen: dict[str, Path] = {}
    for path, header in images.items():
        missing = [keyword for keyword in _IDENTIFIERS if not header.get(keyword)]
        if missing:
            raise InputRefusedError(
                f"{path}: no {', '.join(missing)} (anonymised?), so nothing can refer to this image; "
                "export the series again with its identifiers, or write nifti"
            )
        for keyword in _IDENTIFIERS[2:]:
            if header[keyword].value != first[keyword].value:
                raise InputRefusedError(
                    f"{path}: {keyword} differs from that of {first_path.name}; expected one series; write nifti"
                )
        other = seen.setdefault(str(header.SOPInstanceUID), path)
        if other != path:
            raise InputRefusedError(
                f"{path}: has the SOPInstanceUID of {other.name}, so a reference would mean either; write nifti"
            )
