"""A scan or a mask in space: voxels and the affine that places them in the patient. No files here."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import obliquity
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError

Affine = NDArray[np.float64]

#: How far two grids may lie apart and still be the same. Headers round: quaternions and float32 move a corner by
#: micrometres; this is far below any voxel.
GRID_TOLERANCE_MM = 0.05
#: No voxel is larger, and none of a patient lies further from the origin: beyond it single precision, in which headers
#: are kept, is coarser than a tenth of a millimetre.
FURTHEST_MM = 1e6


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels with their place in the patient.

    Parameters
    ----------
    array
        (I, J, K) voxels: Hounsfield units for a CT, arbitrary units for an MR, label ids for a mask.
    affine
        (4, 4) voxel index to patient millimetres, RAS+ (x to the right, y to the front, z to the head), as in NIfTI.

    Raises
    ------
    TypeError
        If one of them is no numpy array.
    InputRefusedError
        If the array is not 3D or empty, or the affine is not an invertible (4, 4) matrix of finite numbers, none of
        them beyond `FURTHEST_MM`.
    """

    array: NDArray[Any]
    affine: Affine

    def __post_init__(self) -> None:
        for name, value in (("array", self.array), ("affine", self.affine)):
            if not isinstance(value, np.ndarray):
                raise TypeError(f"the {name} is a {type(value).__name__}; expected a numpy array")
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise InputRefusedError(
                f"the volume has shape {self.array.shape}; expected 3 dimensions, none of them 0; export it again",
                "not_3d",
            )
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise InputRefusedError(
                f"the affine is {self.affine.tolist()}; expected a 4x4 matrix of finite numbers; repair the header",
                "bad_affine",
            )
        if np.abs(self.affine).max() > FURTHEST_MM:
            raise InputRefusedError(
                f"the affine holds {np.abs(self.affine).max():.3g} mm; expected at most {FURTHEST_MM:.0e} for voxels "
                "and where they lie; repair the header",
                "bad_affine",
            )
        if abs(np.linalg.det(self.affine[:3, :3])) < 1e-9:
            raise InputRefusedError(
                "the affine is singular: two voxel axes point the same way; expected three ways; repair the header",
                "bad_affine",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along I, J and K."""
        i, j, k = self.array.shape
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along I, J and K, in millimetres."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres: of the slanted box that it is where the gantry was tilted."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    def corners_mm(self) -> NDArray[np.float64]:
        """(8, 3) patient positions of the centres of the voxels at the corners, RAS+ millimetres."""
        return apply_affine(self.affine, box_corners((0, 0, 0), [n - 1 for n in self.shape]))

    def slices(self) -> NDArray[Any]:
        """(S, rows, columns) view of the voxels: the slices along K, each with J downwards and I to the right."""
        return self.array.transpose(2, 1, 0)

    @classmethod
    def from_slices(cls, slices: NDArray[Any], affine: Affine) -> Volume:
        """The volume whose `slices()` these are, (S, rows, columns)."""
        return cls(slices.transpose(2, 1, 0), affine)

    @property
    def orientation(self) -> str:
        """Closest anatomical direction of each increasing axis, such as `"RAS"` or `"LPS"`."""
        return "".join(nib.orientations.aff2axcodes(self.affine))

    @property
    def obliqueness_deg(self) -> float:
        """Largest angle between a voxel axis and the patient axis that it is closest to, in degrees."""
        return float(np.rad2deg(obliquity(self.affine).max()))

    def reorient(self, orientation: str) -> Volume:
        """The same voxels with axes permuted and flipped to `orientation`; exact, nothing is interpolated.

        Reorienting back to `self.orientation` restores array and affine.
        """
        target = nib.orientations.axcodes2ornt(tuple(orientation))
        change = nib.orientations.ornt_transform(nib.orientations.io_orientation(self.affine), target)
        affine = self.affine @ nib.orientations.inv_ornt_aff(change, self.array.shape)
        return Volume(nib.orientations.apply_orientation(self.array, change), affine)

    def onto(self, affine: Affine, shape: tuple[int, ...], tolerance_mm: float = GRID_TOLERANCE_MM) -> Volume | None:
        """The same voxels on a grid that holds them, 0 where this volume does not reach; nothing is interpolated.

        Parameters
        ----------
        affine, shape
            The grid. Its axes may be permuted and flipped against this volume's, and it may go on further.
        tolerance_mm
            How far a corner of this volume may lie from its place on the grid.

        Returns
        -------
        Volume or None
            None where some voxel of this volume would lie outside, or further off than the tolerance.
        """
        step = np.linalg.inv(affine) @ self.affine
        turn, start = np.rint(step[:3, :3]).astype(int), np.rint(step[:3, 3]).astype(int)
        if sorted(map(tuple, abs(turn).tolist())) != [(0, 0, 1), (0, 1, 0), (1, 0, 0)]:
            return None
        exact = np.eye(4)
        exact[:3, :3], exact[:3, 3] = turn, start
        if self.corner_distance_mm(affine @ exact) > tolerance_mm:
            return None
        axes = abs(turn).argmax(axis=1)
        signs = turn.sum(axis=1)
        moved = self.array.transpose(axes)[tuple(slice(None, None, int(sign)) for sign in signs)]
        size = np.array(moved.shape)
        first = start - np.where(signs < 0, size - 1, 0)
        if (first < 0).any() or (first + size > shape).any():
            return None
        if moved.shape != tuple(shape):
            inner, moved = moved, np.zeros(shape, self.array.dtype)
            moved[tuple(slice(low, low + n) for low, n in zip(first, size, strict=True))] = inner
        return Volume(moved, affine)

    def corner_distance_mm(self, affine: Affine) -> float:
        """How far a corner of this volume lies at most from where another affine places it, in millimetres."""
        placed = Volume(self.array, affine)
        return float(np.linalg.norm(placed.corners_mm() - self.corners_mm(), axis=1).max())

    def grid_over(self, other: Volume) -> tuple[Affine, tuple[int, int, int]]:
        """Affine and shape of this volume's grid, continued to where `other` reaches beyond it.

        Whether the voxels of the two coincide is for `onto` to say.
        """
        to_index = np.linalg.inv(self.affine)
        reached = np.rint(apply_affine(to_index, other.corners_mm())).astype(int)
        first = np.minimum(reached.min(axis=0), 0)
        last = np.maximum(reached.max(axis=0), np.array(self.shape) - 1)
        move = np.eye(4)
        move[:3, 3] = first
        i, j, k = (int(n) for n in last - first + 1)
        return self.affine @ move, (i, j, k)


def apply_affine(affine: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., 3) points moved by a (4, 4) affine, such as voxel indices to patient millimetres."""
    moved: NDArray[np.float64] = points @ affine[:3, :3].T + affine[:3, 3]
    return moved


def box_corners(low: Iterable[float], high: Iterable[float]) -> NDArray[np.float64]:
    """(8, 3) corners of a box, from its lowest and its highest index along I, J and K."""
    return np.array(list(itertools.product(*zip(low, high, strict=True))), np.float64)
