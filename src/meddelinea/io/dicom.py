"""DICOM series: a folder of slices, or one enhanced multi-frame file, as one volume.

A series becomes a volume where all of this holds. Each is a small check of its own, in `dicom_frames` for a file, in
`dicom_alike` for what the slices mean and in `dicom_stack` for where they lie, and what fails it is refused with the
values found, the values expected and the remedy.

- The images are one series, of modality CT or MR, and none of them is a localizer or shows an animal:
  https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.3.html#sect_C.7.3.1
- Each slice is grey (MONOCHROME1 or 2) and has an image size: https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.3.html
- Its values are linear in the stored ones (rescale slope and intercept, no lookup table), in a CT as Hounsfield units:
  https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.11.html#sect_C.11.1
- It says where it lies: an image position, an image orientation of two perpendicular unit vectors, and two positive
  pixel spacings: https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html
- In a multi-frame file, each frame says so in its functional groups:
  https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.16.html
- All slices agree on what their values mean, on the patient and on the patient's coordinates (`compare_headers`).
- All slices have one orientation, one size and one pixel spacing (`_check_same`).
- There are two or more, no two lie at the same place (`_check_distinct`), and all have one distance from the next
  (`_check_one_distance`).
- None is missing between the first and the last (`_check_complete`), and no two ranges overlap (`_check_apart`).
- They lie evenly on one straight line (`_check_regular`), which need not be the slices' normal: a tilted gantry is
  allowed, and becomes a shear of the affine.

The standard measures in LPS (x to the left, y to the back, z to the head), this library in RAS. Within `io/`, and
nowhere else, an affine changes from one to the other where it is read or written: `LPS_TO_RAS` for DICOM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.findings import Finding, warn
from meddelinea.io.archive import unpacked
from meddelinea.io.dicom_alike import compare_headers, refuse_jumps
from meddelinea.io.dicom_files import read_pixels
from meddelinea.io.dicom_frames import find_headers, list_frames
from meddelinea.io.dicom_stack import check_stack
from meddelinea.io.room import require_room
from meddelinea.scan import DicomSeries, Frame, Modality, Scan
from meddelinea.volume import Affine, Volume

#: Slices that lie further apart than this many times their thickness leave tissue between them unseen.
GAP_IN_THICKNESSES = 1.5

#: From the patient coordinates of DICOM to those of this library; it is its own inverse.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_dicom(path: Path) -> Scan:
    """Read the one CT or MR series of a folder (searched recursively), a zip of one, or an enhanced multi-frame file.

    Voxel axes are column, row counted from the image's bottom, and slice along the normal of the image plane: the order
    that dcm2niix converts to, so that masks lie voxel by voxel on files that it wrote. The rescale slope and intercept
    are applied to each slice. The array is int16 where that holds every value exactly, else float32.
    Pixels that the scanner marks as padding keep their value (far below air in a CT). A tilted gantry gives a sheared
    affine, which places every voxel where it was measured.

    Hidden files, files that are not DICOM and copies of a slice are passed over, as are segmentations, reports, plans,
    doses and secondary captures that lie beside the series. Linked folders are followed.

    Raises
    ------
    InputRefusedError
        If there is not exactly one series, it is neither CT nor MR, a file is broken, or the slices are not one
        complete regular grid.
    """
    with unpacked(path) as place:
        modality, series, findings = _parse(place)
        slices = _stack_slices(series)
        refuse_jumps(series.frames, series.headers, slices, modality)
        volume = Volume.from_slices(slices[:, ::-1], series_affine(series.frames))
    return Scan(
        volume=volume,
        modality=modality,
        name=path.name,
        path=path,
        findings=(*findings, *_find_gaps(series.frames)),
        series=_rename_files(series, path),
    )


def read_series(path: Path) -> DicomSeries:
    """The series that `read_dicom` reads, without its pixels.

    Raises
    ------
    InputRefusedError
        As `read_dicom`, except for pixels that cannot be decoded.
    """
    with unpacked(path) as place:
        _, series, _ = _parse(place)
    return _rename_files(series, path)


def _parse(path: Path) -> tuple[Modality, DicomSeries, list[Finding]]:
    """The one series in a folder or file, its slices in order and checked to be alike and one regular grid."""
    modality, headers, findings = find_headers(path)
    frames = [frame for file, header in headers.items() for frame in list_frames(file, header)]
    if len(frames) == 1:
        raise InputRefusedError(
            f"{path}: one slice; expected a 3D volume; give the folder that holds the whole series", "too_few_slices"
        )
    check_stack(path, frames)
    findings += compare_headers(frames, headers, modality)
    in_order = {frame.path: headers[frame.path] for frame in frames}
    return modality, DicomSeries(path=path, frames=tuple(frames), headers=in_order), findings


def _rename_files(series: DicomSeries, path: Path) -> DicomSeries:
    """A series whose files were unpacked elsewhere, under the names that they have in the zip `path`."""
    if series.path == path:
        return series
    name = {file: path / file.relative_to(series.path) for file in series.headers}
    return DicomSeries(
        path=path,
        frames=tuple(replace(frame, path=name[frame.path]) for frame in series.frames),
        headers={name[file]: header for file, header in series.headers.items()},
    )


def series_affine(frames: Sequence[Frame]) -> Affine:
    """(4, 4) affine of sorted slices, (column, row from the bottom, slice) to RAS millimetres.

    The slice axis is the measured step from slice to slice, not the normal, so a gantry tilt is a shear of the affine.
    """
    first, last = frames[0], frames[-1]
    lps = np.eye(4)
    lps[:3, 0] = first.orientation[:3] * first.pixel_spacing_mm[1]
    down = first.orientation[3:] * first.pixel_spacing_mm[0]
    lps[:3, 1] = -down
    lps[:3, 2] = (last.position_mm - first.position_mm) / (len(frames) - 1)
    lps[:3, 3] = first.position_mm + down * (first.shape[0] - 1)
    return LPS_TO_RAS @ lps


def _find_gaps(frames: Sequence[Frame]) -> tuple[Finding, ...]:
    """A remark where the slices of an even grid do not touch: a sparse scan, or every second slice lost."""
    thickness = [frame.thickness_mm for frame in frames if frame.thickness_mm]
    step_mm = float((frames[1].position_mm - frames[0].position_mm) @ frames[0].normal)
    if not thickness or step_mm <= GAP_IN_THICKNESSES * max(thickness):
        return ()
    return (
        warn(
            "slice_gaps",
            f"slices {max(thickness):g} mm thick lie {step_mm:g} mm apart: what is between them was not scanned, or "
            "slices were lost; fetch the whole series",
        ),
    )


def _stack_slices(series: DicomSeries) -> NDArray[Any]:
    """(slices, rows, columns) values, rows from the top: int16, or float32 once a slice does not fit into int16."""
    voxels: NDArray[Any] | None = None
    by_file: dict[Path, list[tuple[int, Frame]]] = {}
    for k, frame in enumerate(series.frames):
        by_file.setdefault(frame.path, []).append((k, frame))
    for path, members in by_file.items():
        decoded = read_pixels(path, series.headers[path], [frame.index for _, frame in members])
        for (k, frame), stored in zip(members, decoded, strict=True):
            values = _rescaled(stored, frame)
            if voxels is None:  # not before a slice of the size that the header says was there
                require_room(len(series.frames) * stored.size * 2, "its voxels take")
                voxels = np.empty((len(series.frames), *stored.shape), np.int16)
            if voxels.dtype == np.int16 and not _fits_int16(values):
                require_room(voxels.size * 4, "its voxels take")
                voxels = voxels.astype(np.float32)
            voxels[k] = values
    assert voxels is not None  # a series has slices
    return voxels


def _rescaled(stored: NDArray[Any], frame: Frame) -> NDArray[Any]:
    """Values of one slice: int64 where slope and intercept keep integers, else float32."""
    slope = 1.0 if frame.slope is None else frame.slope
    intercept = 0.0 if frame.intercept is None else frame.intercept
    if stored.dtype.kind in "iu" and slope == 1 and intercept.is_integer():
        return stored.astype(np.int64) + int(intercept)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def _fits_int16(values: NDArray[Any]) -> bool:
    limits = np.iinfo(np.int16)
    return values.dtype.kind == "i" and bool(values.min() >= limits.min) and bool(values.max() <= limits.max)
