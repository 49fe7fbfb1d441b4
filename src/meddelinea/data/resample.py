"""Moving voxels from one grid to another through their affines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.volume import Affine, Volume

Shape = tuple[int, int, int]


def block_mean(volume: Volume, factors: Shape) -> Volume:
    """Average blocks of `factors` voxels: what a thicker slice or a larger pixel would have measured.

    Used before sampling on a coarser grid, so that noise is averaged and not picked up. A last, incomplete block is
    filled by repeating the last voxel. Returns float32, or `volume` itself where all factors are 1.
    """
    if factors == (1, 1, 1):
        return volume
    padding = [(0, -n % f) for n, f in zip(volume.array.shape, factors, strict=True)]
    array = np.pad(volume.array, padding, mode="edge")
    i, j, k = (n // f for n, f in zip(array.shape, factors, strict=True))
    mean = np.empty((i, j, k), np.float32)
    for index in range(k):  # a slab at a time: a float copy of a long CT would not fit everywhere
        slab = array[:, :, index * factors[2] : (index + 1) * factors[2]]
        mean[:, :, index] = slab.reshape(i, factors[0], j, factors[1], factors[2]).mean(axis=(1, 3, 4))
    coarse = np.eye(4)
    coarse[:3, :3] = np.diag(factors)
    coarse[:3, 3] = [(f - 1) / 2 for f in factors]
    return Volume(mean, volume.affine @ coarse, volume.modality)


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
    return Volume(array, affine, volume.modality)


def resample_labels(mask: Volume, affine: Affine, shape: Shape) -> Volume:
    """A label volume on another grid, uint8: each voxel takes the label with the largest interpolated share.

    Each label is interpolated as a mask of its own inside its bounding box only, and a running maximum is kept, so that
    memory does not grow with the number of labels. Outside the source's grid is background (0).
    """
    to_source: Affine = np.linalg.inv(mask.affine) @ affine
    if shape == mask.array.shape and np.allclose(to_source, np.eye(4), atol=1e-6):
        return Volume(mask.array.astype(np.uint8), affine)
    result = np.zeros(shape, np.uint8)
    best = np.zeros(shape, np.float32)
    organs_share = np.zeros(shape, np.float32)
    for label, box in enumerate(ndimage.find_objects(mask.array.astype(np.int32)), start=1):
        if box is None:
            continue
        # One voxel of margin, so that the interpolated edge falls to zero inside the crop.
        low = np.array([s.start - 1 for s in box])
        crop = np.pad((mask.array[box] == label).astype(np.float32), 1)
        target = _covered(np.linalg.inv(affine) @ mask.affine, low, low + crop.shape, shape)
        if target is None:
            continue
        move = np.eye(4)
        move[:3, 3] = [s.start for s in target]
        shift = np.eye(4)
        shift[:3, 3] = -low
        share = ndimage.affine_transform(
            crop,
            *_axis_aligned(shift @ to_source @ move),
            output_shape=tuple(s.stop - s.start for s in target),
            order=1,
        )
        organs_share[target] += share
        wins = share > best[target]
        best[target][wins] = share[wins]
        result[target][wins] = label
    result[best < 1.0 - organs_share] = 0
    return Volume(result, affine)


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
) -> tuple[slice, ...] | None:
    """The box of the target grid that a box of the source grid reaches into; None where it misses it."""
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1)
    reached = to_target[:3, :3] @ corners + to_target[:3, 3:]
    start = np.clip(np.floor(reached.min(axis=1)), 0, shape).astype(int)
    stop = np.clip(np.ceil(reached.max(axis=1)) + 1, 0, shape).astype(int)
    if (stop <= start).any():
        return None
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
