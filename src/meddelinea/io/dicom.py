"""DICOM series: a folder of slices, or one enhanced multi-frame file, as one volume.

A series becomes a volume where all of this holds. Each is a small check of its own, in `dicom_frames` for a file and
here for the stack, and what fails it is refused with the values found, the values expected and the remedy.

- The images are one series, of modality CT or MR, and none of them is a localizer or shows an animal:
  https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.3.html#sect_C.7.3.1
- Each slice is grey (MONOCHROME1 or 2) and has an image size: https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.3.html
- Its values are linear in the stored ones (rescale slope and intercept, no lookup table), in a CT as Hounsfield units:
  https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.11.html#sect_C.11.1
- It says where it lies: an image position, an image orientation of two perpendicular unit vectors, and two positive
  pixel spacings: https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html
- In a multi-frame file, each frame says so in its functional groups:
  https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.16.html
- All slices have one orientation, one size and one pixel spacing (`_check_same`).
- There are two or more, and no two lie at the same place (`_check_distinct`).
- None is missing between the first and the last (`_check_complete`), and no two ranges overlap (`_check_apart`).
- They lie evenly on one straight line (`_check_regular`), which need not be the slices' normal: a tilted gantry is
  allowed, and becomes a shear of the affine.

The standard measures in LPS (x to the left, y to the back, z to the head), this library in RAS. Within `io/`, and
nowhere else, an affine changes from one to the other where it is read or written: `LPS_TO_RAS` for DICOM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import iter_pixels

from meddelinea.errors import InputRefusedError
from meddelinea.findings import Finding, warn
from meddelinea.io.archive import unpacked
from meddelinea.io.dicom_frames import decoding, find_headers, list_frames
from meddelinea.scan import DicomSeries, Frame, Modality, Scan
from meddelinea.volume import Affine, Volume

#: How far a slice may lie from its place on the regular grid, as a fraction of a voxel. Scanners round positions.
PLACE_TOLERANCE = 0.1
#: Slices closer than this lie at the same place, in millimetres.
SAME_PLACE_MM = 1e-3
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

    Hidden files and files that are not DICOM (no `DICM` mark) are passed over, as are segmentations, reports, plans,
    doses and secondary captures that lie beside the series.

    Raises
    ------
    InputRefusedError
        If there is not exactly one series, it is neither CT nor MR, a file is broken, or the slices are not one
        complete regular grid.
    """
    with unpacked(path) as place:
        modality, series = _parse(place)
        volume = Volume.from_slices(_stack_slices(series.frames)[:, ::-1], series_affine(series.frames))
    return Scan(
        volume=volume,
        modality=modality,
        name=path.name,
        path=path,
        findings=_find_gaps(series.frames),
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
        _, series = _parse(place)
    return _rename_files(series, path)


def _parse(path: Path) -> tuple[Modality, DicomSeries]:
    """The one series in a folder or file, its slices in order and checked to be one regular grid."""
    modality, headers = find_headers(path)
    frames = [frame for file, header in headers.items() for frame in list_frames(file, header)]
    if len(frames) == 1:
        raise InputRefusedError(
            f"{path}: one slice; expected a 3D volume; give the folder that holds the whole series", "too_few_slices"
        )
    _check_same(frames, "orientation", lambda frame: frame.orientation, 1e-3)
    _check_same(frames, "size (rows, columns)", lambda frame: frame.shape, 0)
    _check_same(frames, "pixel spacing in mm", lambda frame: frame.pixel_spacing_mm, 1e-3)
    normal = frames[0].normal
    frames.sort(key=lambda frame: float(frame.position_mm @ normal))
    places_mm = np.array([frame.position_mm @ normal for frame in frames])
    for check in (_check_distinct, _check_complete, _check_apart, _check_regular):
        check(path, frames, places_mm)
    in_order = {frame.path: headers[frame.path] for frame in frames}
    return modality, DicomSeries(path=path, frames=tuple(frames), headers=in_order)


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


def _check_same(frames: list[Frame], what: str, of: Callable[[Frame], NDArray[Any]], tolerance: float) -> None:
    """All slices share `of(frame)` within `tolerance`."""
    expected = of(frames[0])
    for frame in frames:
        if abs(of(frame) - expected).max() > tolerance:
            raise InputRefusedError(
                f"{frame.path}: {what} {of(frame).tolist()}, but {expected.tolist()} in {frames[0].path.name}; "
                "expected one stack of alike slices; move other images (a localizer?) elsewhere",
                "mixed_slices",
            )


def _check_distinct(path: Path, frames: list[Frame], places_mm: NDArray[np.float64]) -> None:
    """No two sorted slices lie at the same place."""
    starts = np.flatnonzero(np.diff(places_mm, prepend=-np.inf) >= SAME_PLACE_MM)
    counts = np.diff([*starts, len(frames)])
    if len(counts) > 1 and counts[0] > 1 and (counts == counts[0]).all():
        raise InputRefusedError(
            f"{path}: {counts[0]} slices at each of {len(counts)} positions; expected one volume; split phases, echoes "
            "or time points into folders of their own",
            "several_volumes",
        )
    for k in np.flatnonzero(np.diff(places_mm) < SAME_PLACE_MM)[:1]:
        a, b = frames[k], frames[k + 1]
        raise InputRefusedError(
            f"{path}: two slices at {places_mm[k]:.3f} mm: {a.path.name} frame {a.index + 1} and {b.path.name} frame "
            f"{b.index + 1}; expected one slice at each position; remove copies, or split phases and echoes",
            "duplicate_slices",
        )


def _check_complete(path: Path, frames: list[Frame], places_mm: NDArray[np.float64]) -> None:
    """No slice is missing between sorted slices: no gap is a multiple of the usual one."""
    gaps = np.diff(places_mm)
    usual = np.percentile(gaps, 50, method="lower")
    for k in np.flatnonzero(gaps > 1.5 * usual)[:1]:
        raise InputRefusedError(
            f"{path}: about {round(gaps[k] / usual) - 1:d} slice(s) missing between {places_mm[k]:.3f} and "
            f"{places_mm[k + 1]:.3f} mm: a gap of {gaps[k]:.3f} mm, expected {usual:.3f} mm; fetch the whole "
            "series",
            "missing_slices",
        )


def _check_apart(path: Path, frames: list[Frame], places_mm: NDArray[np.float64]) -> None:
    """No two sorted slices lie much closer than the others, as where two scanned ranges meet."""
    gaps = np.diff(places_mm)
    usual = np.percentile(gaps, 50, method="higher")
    for k in np.flatnonzero(gaps < 0.7 * usual)[:1]:
        raise InputRefusedError(
            f"{path}: {frames[k].path.name} and {frames[k + 1].path.name} lie {gaps[k]:.3f} mm apart at "
            f"{places_mm[k]:.3f} mm, but expected {usual:.3f} mm as others do: ranges that overlap; give each a folder",
            "overlapping_slices",
        )


def _check_regular(path: Path, frames: list[Frame], places_mm: NDArray[np.float64]) -> None:
    """Sorted slices lie evenly on one straight line, each within `PLACE_TOLERANCE` of a voxel."""
    positions = np.array([frame.position_mm for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    off = positions - positions[0] - np.arange(len(frames))[:, None] * step
    normal = frames[0].normal
    along = off @ normal
    aside = np.linalg.norm(off - along[:, None] * normal, axis=1)
    gap, pixel = float(step @ normal), float(frames[0].pixel_spacing_mm.min())
    for distances, voxel, what in ((abs(along), gap, "along"), (aside, pixel, "aside of")):
        worst = int(distances.argmax())
        if distances[worst] > PLACE_TOLERANCE * voxel:
            raise InputRefusedError(
                f"{path}: the slice at {places_mm[worst]:.3f} mm ({frames[worst].path.name}) lies "
                f"{distances[worst]:.3f} mm {what} the line from its place on an even grid; expected at most "
                f"{PLACE_TOLERANCE * voxel:.3f} mm (spacing {gap:.3f} mm); resample the series to even spacing first",
                "uneven_slices",
            )


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


def _stack_slices(frames: Sequence[Frame]) -> NDArray[Any]:
    """(slices, rows, columns) values, rows from the top: int16, or float32 once a slice does not fit into int16."""
    rows, columns = frames[0].shape
    voxels: NDArray[Any] = np.empty((len(frames), rows, columns), np.int16)
    by_file: dict[Path, list[tuple[int, Frame]]] = {}
    for k, frame in enumerate(frames):
        by_file.setdefault(frame.path, []).append((k, frame))
    for path, members in by_file.items():
        with decoding(path):
            decoded = iter_pixels(path, indices=[frame.index for _, frame in members])
            for (k, frame), stored in zip(members, decoded, strict=True):
                values = _rescaled(stored, frame)
                if voxels.dtype == np.int16 and not _fits_int16(values):
                    voxels = voxels.astype(np.float32)
                voxels[k] = values
    return voxels


def _rescaled(stored: NDArray[Any], frame: Frame) -> NDArray[Any]:
    """Values of one slice: int64 where slope and intercept keep integers, else float32."""
    if stored.dtype.kind in "iu" and frame.slope == 1 and frame.intercept.is_integer():
        return stored.astype(np.int64) + int(frame.intercept)
    return stored.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept)


def _fits_int16(values: NDArray[Any]) -> bool:
    limits = np.iinfo(np.int16)
    return values.dtype.kind == "i" and bool(values.min() >= limits.min) and bool(values.max() <= limits.max)
