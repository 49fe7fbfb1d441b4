"""Are the slices of a DICOM series one regular grid? What fails is refused with its place and the usual distance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.scan import Frame

#: How far a slice may lie from its place on the regular grid, as a fraction of a voxel. Scanners round positions.
PLACE_TOLERANCE = 0.1
#: Slices closer than this lie at the same place, in millimetres.
SAME_PLACE_MM = 1e-3
#: So many gaps of one size in a row are a slice distance of its own; fewer are slices that were lost.
GAPS_OF_A_RANGE = 3


def check_stack(path: Path, frames: list[Frame]) -> None:
    """Sort slices along their normal, and refuse those that are not alike or leave the regular grid.

    Raises
    ------
    InputRefusedError
        If they differ in orientation, size or pixel spacing, or two lie at one place, or one is missing, or they lie
        unevenly.
    """
    _check_same(frames, "orientation", lambda frame: frame.orientation, 1e-3)
    _check_same(frames, "size (rows, columns)", lambda frame: frame.shape, 0)
    _check_same(frames, "pixel spacing in mm", lambda frame: frame.pixel_spacing_mm, 1e-3)
    normal = frames[0].normal
    frames.sort(key=lambda frame: float(frame.position_mm @ normal))
    places_mm = np.array([frame.position_mm @ normal for frame in frames])
    for check in (_check_distinct, _check_one_distance, _check_complete, _check_apart, _check_regular):
        check(path, frames, places_mm)


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


def _check_one_distance(path: Path, frames: list[Frame], places_mm: NDArray[np.float64]) -> None:
    """Sorted slices do not fall into ranges, each with a slice distance of its own."""
    gaps = np.diff(places_mm)
    tolerance = PLACE_TOLERANCE * np.median(gaps)
    starts = np.flatnonzero(abs(np.diff(gaps, prepend=-np.inf)) > tolerance)
    counts = np.diff([*starts, len(gaps)])
    long = counts >= GAPS_OF_A_RANGE
    if not long.any() or np.ptp(gaps[starts[long]]) <= tolerance:
        return
    ranges = ", ".join(
        f"{gaps[start]:.3f} mm apart from {places_mm[start]:.3f} to {places_mm[start + count]:.3f} mm"
        for start, count in zip(starts[long], counts[long], strict=True)
    )
    raise InputRefusedError(
        f"{path}: slices lie {ranges}; expected one distance; move the range with the organs to a folder of its own, "
        "or resample the series",
        "uneven_slices",
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
