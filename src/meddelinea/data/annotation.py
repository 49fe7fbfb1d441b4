"""How datasets keep the labels of a scan on disk, and how each becomes organ ids on the scan's grid.

Where the masks of several organs overlap, a voxel goes to the smallest of them: a vessel in the liver stays a vessel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.io.volumes import read_volume
from meddelinea.labels import renumber
from meddelinea.scan import Scan
from meddelinea.volume import Volume

#: How far a mask's voxel may lie from the scan's, as a fraction of the smallest voxel size: headers are rounded.
HEADER_TOLERANCE = 0.1
#: How far a label in a floating-point file may be from a whole number: scale factors are rounded, too.
ID_TOLERANCE = 0.01

#: Ids 1..L of the organs asked for, and what a person should know of them, a line each.
Reading = tuple[NDArray[np.uint8], tuple[str, ...]]


@dataclass(frozen=True)
class LabelMap:
    """One file of organ ids, and what the ids mean."""

    path: Path  # the file, which lies on the scan's grid
    #: Canonical name -> its ids. An id may belong to several regions, such as the kidney and the tumour in it.
    regions: Mapping[str, tuple[int, ...]]

    @classmethod
    def numbered(cls, path: Path, numbering: Mapping[int, str]) -> LabelMap:
        """A file whose ids stand for one organ each: id -> canonical name."""
        return cls(path, {organ: (index,) for index, organ in numbering.items()})

    @property
    def organs(self) -> tuple[str, ...]:
        """Canonical names that may occur, in the order of the regions."""
        return tuple(self.regions)

    def read(self, scan: Scan, organs: tuple[str, ...]) -> Reading:
        """Ids of `organs` on the grid of `scan`; an id of several regions goes to that of the fewest ids among them.

        Raises
        ------
        InputRefusedError
            If the file cannot be read, lies on another grid, or holds an id without a meaning.
        """

        def precedence(name: str) -> tuple[bool, int]:
            return name not in organs, len(self.regions[name])

        numbering = {
            index: min((name for name, ids in self.regions.items() if index in ids), key=precedence)
            for index in sorted({index for ids in self.regions.values() for index in ids})
        }
        ids = _ids_on_grid(self.path, scan)
        try:
            return renumber(ids, numbering, organs), ()
        except UsageError as error:
            raise InputRefusedError(f"{self.path}: {error}; correct the file or its numbering") from error


@dataclass(frozen=True)
class OrganMasks:
    """A binary mask file for each organ: canonical name -> file."""

    files: Mapping[str, Path]

    @property
    def organs(self) -> tuple[str, ...]:
        """Canonical names of the organs that have a file."""
        return tuple(self.files)

    def read(self, scan: Scan, organs: tuple[str, ...]) -> Reading:
        """Ids of `organs` on the grid of `scan`; one mask is in memory at a time.

        Of organs of one size that overlap, the later in `organs` gets the voxels. Each remark counts the voxels that
        an organ shares with the one that held them.

        Raises
        ------
        InputRefusedError
            If a file cannot be read, lies on another grid, or is not binary.
        """
        ids = np.zeros(scan.volume.array.shape, np.uint8)
        sizes = np.full(len(organs) + 1, np.inf)  # in voxels; that of the background lets every organ have it
        remarks = []
        for index, organ in enumerate(organs, start=1):
            if organ not in self.files:
                continue
            mask = _binary_on_grid(self.files[organ], scan)
            sizes[index] = np.count_nonzero(mask)
            yields = sizes >= sizes[index]
            shared = np.bincount(ids[mask], minlength=len(sizes))
            for other in np.flatnonzero(shared[1:]) + 1:
                winner = organ if yields[other] else organs[other - 1]
                remarks.append(
                    f"{organs[other - 1]} and {organ} overlap in {shared[other]} voxels; given to the {winner}"
                )
            ids[mask & yields[ids]] = index
        return ids, tuple(remarks)


@dataclass(frozen=True)
class PngStack:
    """A PNG for each slice of a DICOM series; grey values say the organ."""

    #: Holds the PNGs. In order of their file names they belong to the DICOM files in order of theirs, wherever those
    #: lie in the patient.
    folder: Path
    greys: Mapping[str, tuple[int, int]]  # canonical name -> lowest and highest grey value of it

    @property
    def organs(self) -> tuple[str, ...]:
        """Canonical names that the grey values stand for."""
        return tuple(self.greys)

    def read(self, scan: Scan, organs: tuple[str, ...]) -> Reading:
        """Ids of `organs` on the grid of `scan`, a DICOM series.

        Grey values that stand for nothing are background, and remarked on.

        Raises
        ------
        InputRefusedError
            If the scan is no DICOM series, or there is not one readable PNG of the slices' size for each slice.
        """
        if scan.series is None:
            raise InputRefusedError(f"{scan.place}: not DICOM; expected the series that the PNG masks belong to")
        frames = scan.series.frames
        slices = sorted((frame.path for frame in frames), key=_by_number)
        pictures = sorted((path for path in self.folder.glob("*.png") if path.name[0] != "."), key=_by_number)
        if len(slices) != len(pictures):
            raise InputRefusedError(
                f"{self.folder}: {len(pictures)} PNG masks, but {len(slices)} slices in {scan.place}; expected one "
                "each; fetch the case again"
            )
        picture_of = dict(zip(slices, pictures, strict=True))
        columns, rows, _ = scan.series.shape
        greys = np.stack([_grey_values(picture_of[frame.path], (rows, columns)) for frame in frames])
        table, known = np.zeros(256, np.uint8), np.zeros(256, np.bool_)
        known[0] = True
        for name, (lowest, highest) in self.greys.items():
            known[lowest : highest + 1] = True
            if name in organs:
                table[lowest : highest + 1] = organs.index(name) + 1
        foreign = ~known[greys]
        remarks: tuple[str, ...] = ()
        if foreign.any():
            found = ", ".join(map(str, np.unique(greys[foreign])))
            remarks = (f"{np.count_nonzero(foreign)} voxels of grey {found}, which stands for no organ: background",)
        upright = table[greys][:, ::-1]  # rows from the bottom, as those of the scan
        return Volume.from_slices(upright, scan.volume.affine).array, remarks


#: Whichever way a case's labels are kept.
Labels = LabelMap | OrganMasks | PngStack


def _on_grid(path: Path, scan: Scan) -> NDArray[Any]:
    """Voxels of a mask file that lies on the scan's grid."""
    mask, grid = read_volume(path), scan.volume
    if mask.array.shape != grid.array.shape:
        raise InputRefusedError(
            f"{path}: shape {mask.array.shape}, but {grid.array.shape} of {scan.place}; expected a mask on the scan's "
            "grid; fetch both again or resample the mask"
        )
    apart_mm = grid.corner_distance_mm(mask.affine)
    allowed_mm = HEADER_TOLERANCE * min(grid.spacing_mm)
    if apart_mm > allowed_mm:
        raise InputRefusedError(
            f"{path}: the affine differs from that of {scan.place} by up to {apart_mm:.2f} mm; expected at most "
            f"{allowed_mm:.2f} mm; find out which of the headers is wrong"
        )
    return mask.array


def _ids_on_grid(path: Path, scan: Scan) -> NDArray[np.integer]:
    values = _on_grid(path, scan)
    if values.dtype.kind in "iu":
        ids: NDArray[np.integer] = values
        return ids
    rounded = np.rint(values)
    whole = np.isclose(values, rounded, rtol=0, atol=ID_TOLERANCE)
    if not (np.isfinite(values).all() and whole.all()):
        raise InputRefusedError(
            f"{path}: {values[~whole | ~np.isfinite(values)][0]} is no label id; expected whole numbers; was the mask "
            "resampled? take the original"
        )
    numbers: NDArray[np.integer] = rounded.astype(np.int32)
    return numbers


def _binary_on_grid(path: Path, scan: Scan) -> NDArray[np.bool_]:
    ids = _ids_on_grid(path, scan)
    mask: NDArray[np.bool_] = ids != 0
    found = np.unique(ids[mask])
    if len(found) > 1:
        raise InputRefusedError(
            f"{path}: values {', '.join(map(str, found[:5]))} besides 0; expected the binary mask of one organ"
        )
    return mask


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Sort key of a file name by the numbers in it, so that 10 comes after 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _grey_values(path: Path, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """(rows, columns) 8-bit grey values of a picture."""
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:
        raise InputRefusedError(f"{path}: not a readable picture ({error}); copy it again") from error
    if values.shape != shape:
        raise InputRefusedError(
            f"{path}: {values.shape} rows and columns, but {shape} in the scan; expected a mask of each whole slice"
        )
    return values
