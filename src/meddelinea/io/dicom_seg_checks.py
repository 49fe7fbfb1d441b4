"""Is a DICOM-SEG whole? What it says of its frames is compared with what it holds, before any of it is decoded.

A reader that trusts one of two contradicting values loses slices or whole organs without a word.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.io.dicom_files import read_pixels
from meddelinea.io.dicom_frames import require_frame_count, require_near
from meddelinea.io.dicom_stack import PLACE_TOLERANCE, SAME_PLACE_MM

#: Bits that each type of segmentation stores a voxel in.
_BITS = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
#: A stack of more voxels than this is no scan: 1024 x 1024 x 2048. A frame far from the others would make one.
MOST_VOXELS = 2**31


def require_whole(path: Path, header: Any, numbers: Collection[int]) -> None:
    """Refuse a DICOM-SEG whose header contradicts itself.

    Parameters
    ----------
    path, header
        The file and its header.
    numbers
        Of the segments that it describes.

    Raises
    ------
    InputRefusedError
        If a size is not what its type of segmentation or its number of frames asks for, a frame is of a segment that is
        not described or lies where none can, or two frames are of one segment and place.
    """
    kind = str(header.get("SegmentationType") or "")
    bits = header.get("BitsAllocated")
    if bits not in _BITS.get(kind, ()):
        raise _refused(
            path, f"SegmentationType is '{kind}' with BitsAllocated {bits}", "BINARY, FRACTIONAL or LABELMAP"
        )
    if kind == "FRACTIONAL" and not int(header.get("MaximumFractionalValue") or 0) > 0:
        raise _refused(path, f"MaximumFractionalValue is {header.get('MaximumFractionalValue')}", "a positive number")
    if not header.get("PerFrameFunctionalGroupsSequence"):
        raise _refused(path, "no frame is described", "functional groups for each")
    require_frame_count(path, header)
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    seen: dict[tuple[Any, ...], int] = {}
    positions_mm = []
    for k, own in enumerate(header.PerFrameFunctionalGroupsSequence):
        position_mm = np.array(_group(own, shared, "PlanePositionSequence").ImagePositionPatient, np.float64)
        if position_mm.shape != (3,) or not np.isfinite(position_mm).all():
            raise _refused(path, f"ImagePositionPatient of frame {k + 1} is {position_mm.tolist()}", "three numbers")
        require_near(path, k, position_mm)
        positions_mm.append(position_mm)
        of: tuple[int, ...] = ()
        if kind != "LABELMAP":
            identified = _group(own, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber
            of = tuple(int(number) for number in np.atleast_1d(identified))
            if len(of) != 1 or of[0] not in numbers:
                raise _refused(path, f"frame {k + 1} is of segment {identified}", f"one of {sorted(numbers)}")
        other = seen.setdefault((*of, *np.rint(position_mm / SAME_PLACE_MM).tolist()), k)
        if other != k:
            raise _refused(path, f"frames {other + 1} and {k + 1} lie at one place", "one frame of a segment at each")
    _require_stack(path, header, shared, np.array(positions_mm))


def require_described(path: Path, header: Any) -> None:
    """Refuse a labelmap with a number that no segment describes: highdicom would leave its voxels out.

    Raises
    ------
    InputRefusedError
        If there is one.
    """
    known = {0, header.get("PixelPaddingValue"), *(int(segment.SegmentNumber) for segment in header.SegmentSequence)}
    frames = range(len(header.PerFrameFunctionalGroupsSequence))
    found: set[int] = set().union(*(np.unique(frame).tolist() for frame in read_pixels(path, header, frames)))
    if found - known:
        raise _refused(path, f"voxels of segments {sorted(found - known)}, which are not described", "a description")


def require_places(path: Path, header: Any, affine: NDArray[np.float64]) -> None:
    """Refuse a frame that lies elsewhere than where the affine, which highdicom stacks along the normal, has its slice.

    Raises
    ------
    InputRefusedError
        If one lies more than `PLACE_TOLERANCE` voxels off.
    """
    to_index = np.linalg.inv(affine)
    shared = (header.get("SharedFunctionalGroupsSequence") or [{}])[0]
    for k, own in enumerate(header.PerFrameFunctionalGroupsSequence, start=1):
        place = _group(own, shared, "PlanePositionSequence").ImagePositionPatient
        slice_, row, column = (to_index @ [*map(float, place), 1.0])[:3]
        off = max(abs(slice_ - round(slice_)), abs(row), abs(column))
        if off > PLACE_TOLERANCE:
            raise InputRefusedError(
                f"{path}: frame {k} lies {off:.2f} voxels from its place on an even, upright stack (a tilted gantry?); "
                f"expected at most {PLACE_TOLERANCE:g}; resample the segmentation"
            )


def _require_stack(path: Path, header: Any, shared: Any, positions_mm: Any) -> None:
    """The frames, and the room between them, are not more than a scan can be."""
    measures = _group(header.PerFrameFunctionalGroupsSequence[0], shared, "PixelMeasuresSequence")
    spacing_mm = np.array(measures.PixelSpacing, np.float64)
    if spacing_mm.shape != (2,) or not (spacing_mm > 0).all():
        raise _refused(path, f"PixelSpacing is {spacing_mm.tolist()}", "two positive numbers")
    apart_mm = np.linalg.norm(positions_mm - positions_mm[0], axis=1)
    gaps_mm = np.diff(np.unique(np.rint(apart_mm / SAME_PLACE_MM))) * SAME_PLACE_MM
    slices = 1 + (apart_mm.max() / gaps_mm.min() if gaps_mm.size else 0)
    voxels = int(header.Rows) * int(header.Columns) * slices
    if voxels > MOST_VOXELS:
        raise _refused(
            path,
            f"its frames span {apart_mm.max():g} mm with {gaps_mm.min() if gaps_mm.size else 0:g} mm between the "
            f"closest, so {voxels:.3g} voxels",
            f"{MOST_VOXELS} at most",
        )


def _group(own: Any, shared: Any, name: str) -> Any:
    """The functional group of a frame, its own or that of all."""
    return (own if name in own else shared)[name].value[0]


def _refused(path: Path, found: str, expected: str) -> InputRefusedError:
    return InputRefusedError(f"{path}: {found}; expected {expected}; export the segmentation again", "broken_header")
