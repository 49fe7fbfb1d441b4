"""Moving voxels from one grid to another through their affines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.volume import Affine, Volume, apply_affine, box_corners

Shape = tuple[int, int, int]

#: Voxels of the target that labels are told apart in at a time: 32 slices of 512 x 512.
SLAB_VOXELS = 1 << 23


def block_mean(volume: Volume, factors: Shape) -> Volume:
    """Average blocks of `factors` voxels: what a thicker slice or a larger pixel would have measured.

    Used before sampling on a coarser grid, so that noise is averaged and not picked up. A last, incomplete block is
    filled by repeating the last voxel. Returns float32, or `volume` itself where all factors are 1.
    """
    if factors == (1, 1, 1):
        return volume
    i, j, k = (-(-n // f) for n, f in zip(volume.array.shape, factors, strict=True))
    mean = np.empty((i, j, k), np.float32)
    for index in range(k):  # a slab at a time: a second copy of a long CT would not fit everywhere
        slab = volume.array[:, :, index * factors[2] : (index + 1) * factors[2]]
        slab = np.pad(slab, [(0, -n % f) for n, f in zip(slab.shape, factors, strict=True)], mode="edge")
        blocks = slab.reshape(i, factors[0], j, factors[1], factors[2])
        mean[:, :, index] = blocks.mean(axis=(1, 3, 4), dtype=np.float64)
    coarse = np.eye(4)
    coarse[:3, :3] = np.diag(factors)
    coarse[:3, 3] = [(f - 1) / 2 for f in factors]
    return Volume(mean, volume.affine @ coarse)


def resample_linear(volume: Volume, affine: Affine, shape: Shape, outside: float) -> Volume:
    """Trilinear interpolation of `volume` at the voxel centres of another grid, float32.

    Parameters
    ----------
    affine, shape
        The grid: (4, 4) voxel index to RAS+ millimetres, and its size.
    outside
        Value beyond the outermost voxel centres of `volume`.
    """
    to_source = np.linalg.inv(volume.affine) @ affine
    array = ndimage.affine_transform(
        volume.array, *_axis_aligned(to_source), output_shape=shape, output=np.float32, order=1, cval=outside
    )
    return Volume(array, affine)


def resample_labels(mask: Volume, affine: Affine, shape: Shape, out: NDArray[np.uint8] | None = None) -> Volume:
    """A label volume on another grid, uint8: each voxel takes the label with the largest interpolated share.

    Each label is interpolated as a mask of its own inside its bounding box only, and a running maximum is kept, a slab
    of the target at a time: memory grows neither with the number of labels nor, but for the result, with the target.
    Outside the source's grid is background (0). With `out`, of that shape, the result is written to it.
    """
    result = np.empty(shape, np.uint8) if out is None else out
    to_source: Affine = np.linalg.inv(mask.affine) @ affine
    if shape == mask.array.shape and np.allclose(to_source, np.eye(4), atol=1e-6):
        result[:] = mask.array
        return Volume(result, affine)
    organs = [
        _PlacedOrgan(mask, label, box, affine, shape)
        for label, box in enumerate(ndimage.find_objects(mask.array), start=1)
        if box is not None
    ]
    thickness = max(1, SLAB_VOXELS // (shape[0] * shape[1]))
    for first in range(0, shape[2], thickness):
        last = min(first + thickness, shape[2])
        result[:, :, first:last] = _slab_labels(organs, (shape[0], shape[1], last - first), first)
    return Volume(result, affine)


def _slab_labels(organs: list[_PlacedOrgan], shape: Shape, first: int) -> NDArray[np.uint8]:
    """Labels of the target's slices from `first` on, as many as `shape` has: the largest share wins."""
    labels = np.zeros(shape, np.uint8)
    best = np.zeros(shape, np.float32)
    organs_share = np.zeros(shape, np.float32)
    for organ in organs:
        covered = organ.covered(first, first + shape[2])
        if covered is None:
            continue
        there = (*covered[:2], slice(covered[2].start - first, covered[2].stop - first))
        share = organ.share(covered)
        organs_share[there] += share
        wins = share > best[there]
        best[there][wins] = share[wins]
        labels[there][wins] = organ.label
    labels[best < 1.0 - organs_share] = 0
    return labels


class _PlacedOrgan:
    """One label of a mask, and where it lies on another grid."""

    def __init__(self, mask: Volume, label: int, box: tuple[slice, ...], affine: Affine, shape: Shape) -> None:
        self.label = label
        self._mask, self._box = mask, box
        # One voxel of margin, so that the interpolated edge falls to zero inside the crop.
        low, high = np.array([s.start - 1 for s in box]), np.array([s.stop + 1 for s in box])
        self._target = _covered(np.linalg.inv(affine) @ mask.affine, low, high, shape)
        if self._target is None:
            return
        shift, move = np.eye(4), np.eye(4)
        shift[:3, 3] = -low
        move[:3, 3] = [s.start for s in self._target]
        self._matrix, self._offset = _axis_aligned(shift @ np.linalg.inv(mask.affine) @ affine @ move)

    def covered(self, first: int, last: int) -> tuple[slice, slice, slice] | None:
        """The box of the target's slices `first` to `last` (excluded) that it reaches into; None where none."""
        if self._target is None:
            return None
        i, j, k = self._target
        start, stop = max(first, k.start), min(last, k.stop)
        return (i, j, slice(start, stop)) if start < stop else None

    def share(self, covered: tuple[slice, slice, slice]) -> NDArray[np.float32]:
        """Its interpolated share, 0 to 1, of each voxel of `covered`."""
        assert self._target is not None
        further = np.array([0.0, 0.0, covered[2].start - self._target[2].start])
        along = self._matrix * further if self._matrix.ndim == 1 else self._matrix @ further
        crop = np.pad((self._mask.array[self._box] == self.label).view(np.uint8), 1)
        share: NDArray[np.float32] = ndimage.affine_transform(
            crop,
            self._matrix,
            self._offset + along,
            output_shape=tuple(s.stop - s.start for s in covered),
            output=np.float32,
            order=1,
        )
        return share


def _axis_aligned(matrix: Affine) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Matrix and offset for scipy; a pure scaling as its diagonal, which scipy resamples several times faster.

    Rounded to a millionth of a voxel: the product of two affines misses whole numbers by 1e-14, and a first or last
    slice that far beyond the source would be taken for outside.
    """
    linear, offset = np.round(matrix[:3, :3], 9), np.round(matrix[:3, 3], 6)
    diagonal = np.diagonal(linear)
    if np.array_equal(linear, np.diag(diagonal)):
        return diagonal.copy(), offset
    return linear, offset


def _covered(
    to_target: Affine, low: NDArray[np.int64], high: NDArray[np.int64], shape: Shape
) -> tuple[slice, slice, slice] | None:
    """The box of the target grid that a box of the source grid reaches into; None where it misses it."""
    reached = apply_affine(to_target, box_corners(low, high))
    start = np.clip(np.floor(reached.min(axis=0)), 0, shape).astype(int)
    stop = np.clip(np.ceil(reached.max(axis=0)) + 1, 0, shape).astype(int)
    if (stop <= start).any():
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return i, j, k
