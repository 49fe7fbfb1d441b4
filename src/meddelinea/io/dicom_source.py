"""The DICOM series that a result refers to: its images' identifiers, and where each slice lies.

A segmentation or a structure set is about images. A PACS finds them by their identifiers, a viewer lays the result over
them by patient coordinates; so a series that has not the former, or whose slices cannot be told in the latter, is
refused before any work.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError, UsageError, reason_of
from meddelinea.findings import Finding
from meddelinea.io.dicom import read_series, series_affine
from meddelinea.io.dicom_carried import mend_headers
from meddelinea.io.volumes import may_be_dicom
from meddelinea.scan import DicomSeries, Scan
from meddelinea.volume import Volume

#: How far the last slice may lie aside of the normal through the first. Readers stack slices along the normal, so this
#: is how far they would misplace one.
MAX_DRIFT_MM = 0.1

# Without these nothing can refer to an image. Anonymisers empty them.
_IDENTIFIERS = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
# What an image may be of: CT and MR, their enhanced and legacy converted forms. A reference states it.
_IMAGE_CLASSES = [f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "2.1", "2.2", "4", "4.1", "4.4")]
_UID = re.compile(r"[0-9.]{1,64}")


def read_source(path: Path) -> DicomSeries:
    """Headers of the one CT or MR series in a folder, file or zip, if a result can refer to it.

    Raises
    ------
    InputRefusedError
        If `path` is no DICOM series, `read_scan` would refuse it, or as `require_identifiers`.
    """
    if not path.exists():
        raise InputRefusedError(f"{path}: no such file or folder; check the path")
    if not may_be_dicom(path):
        raise _not_dicom(str(path))
    series = read_series(path)
    require_identifiers(series)
    return series


def series_of(scan: Scan) -> DicomSeries:
    """The series that a scan was read from.

    Raises
    ------
    InputRefusedError
        If it was read from another kind of file.
    """
    if scan.series is None:
        raise _not_dicom(scan.place)
    return scan.series


def require_identifiers(series: DicomSeries) -> None:
    """Refuse a series with an image that cannot be named, or images of several series.

    Raises
    ------
    InputRefusedError
        If an identifier is missing or is none, is that of two images, or differs from that of the others.
    """
    first_path, first = next(iter(series.headers.items()))
    seen: dict[str, Path] = {}
    for path, header in series.headers.items():
        missing = [keyword for keyword in _IDENTIFIERS if not header.get(keyword)]
        if missing:
            raise InputRefusedError(
                f"{path}: no {', '.join(missing)} (anonymised?), so nothing can refer to this image; "
                "export the series again with its identifiers, or write nifti"
            )
        for keyword in _IDENTIFIERS:
            if not _UID.fullmatch(str(header[keyword].value)):
                raise InputRefusedError(
                    f"{path}: {keyword} is {str(header[keyword].value)[:90]!r}; expected digits and points, 64 at "
                    "most, for a reference to be valid; export the series again with its identifiers, or write nifti"
                )
        if header.SOPClassUID not in _IMAGE_CLASSES:
            raise InputRefusedError(
                f"{path}: SOPClassUID is {header.SOPClassUID}; expected that of a CT or MR image, which a reference "
                "states; export the series again, or write nifti"
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


def require_upright(series: DicomSeries) -> None:
    """Refuse a series that was acquired with a tilted gantry, as its slices do not stack along their normal.

    Raises
    ------
    InputRefusedError
        If the last slice lies more than `MAX_DRIFT_MM` aside of the normal through the first.
    """
    step, normal = series.slice_step_mm, series.frames[0].normal
    aside_mm = float(np.linalg.norm(step - (step @ normal) * normal)) * (len(series.frames) - 1)
    if aside_mm > MAX_DRIFT_MM:
        degrees = np.rad2deg(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
        raise InputRefusedError(
            f"{series.path}: the gantry was tilted by {degrees:.2f} degrees; viewers stack the slices of a DICOM-SEG "
            f"straight and would misplace organs by up to {aside_mm:.1f} mm; write rtstruct or nifti"
        )


def to_planes(mask: Volume, labels: Mapping[str, int], series: DicomSeries) -> NDArray[Any]:
    """(slices, rows, columns) voxels of a mask on the grid of a series, rows from the top as DICOM stores them.

    Raises
    ------
    InputRefusedError
        If the mask lies on another grid.
    UsageError
        If it holds an id without a name.
    """
    aligned = mask.onto(series_affine(series.frames), series.shape)
    if aligned is None or aligned.array.size != mask.array.size:
        raise InputRefusedError(
            f"{series.path}: the mask of {mask.array.shape} voxels does not lie on the grid of this series "
            f"({series.shape}); expected the mask of the very series"
        )
    planes = np.ascontiguousarray(aligned.slices()[:, ::-1])
    present = set().union(*(np.unique(plane).tolist() for plane in planes))
    unnamed = sorted(present - {0, *labels.values()})
    if unnamed:
        raise UsageError(f"the mask holds ids {unnamed} without a name; expected only {sorted(labels.values())}")
    return planes


def from_planes(planes: NDArray[Any], series: DicomSeries) -> Volume:
    """The inverse of `to_planes`."""
    return Volume.from_slices(planes[:, ::-1], series_affine(series.frames))


@contextmanager
def referring(series: DicomSeries, kind: str) -> Iterator[list[Finding]]:
    """Turn whatever a header's odd value leads to while a `kind` of file is written into a refusal.

    What results carry over from the headers is mended before, in memory. Warnings are kept in: they quote patients'
    names, and what the file must hold is read back anyway. It gives the remarks of `mend_headers`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pydicom|highdicom")
        try:
            yield mend_headers(series)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise InputRefusedError(
                f"{series.path}: the headers of this series do not allow {kind} ({reason_of(error)}); write nifti"
            ) from error


def shortest(series: DicomSeries) -> DicomSeries:
    """The first two slices of a series, or all of a multi-frame file: what a rehearsal needs."""
    if len(series.headers) < len(series.frames):
        return series
    frames = series.frames[:2]
    return replace(series, frames=frames, headers={frame.path: series.headers[frame.path] for frame in frames})


def _not_dicom(place: str) -> InputRefusedError:
    return InputRefusedError(
        f"{place}: not DICOM; DICOM-SEG and RTSTRUCT refer to the images of a DICOM series; "
        "give the series (folder or zip), or write nifti or nrrd"
    )
