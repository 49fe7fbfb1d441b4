"""What a clinician asks of a mask: is the organ there, how large is it, how dense, and is it cut by the scan's edge?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.errors import InputRefusedError
from meddelinea.volume import Volume, apply_affine

#: The sides of a volume in RAS order: (first, last) index of each axis.
SIDES = (("left", "right"), ("back", "front"), ("feet", "head"))


@dataclass(frozen=True, kw_only=True)
class OrganStatistics:
    """Measurements of one organ in one scan.

    Parameters
    ----------
    found
        False where the mask holds no voxel of it; the measurements are then 0 or None.
    voxels
        Voxels of the mask.
    volume_ml
        Their volume in millilitres.
    mean_intensity, sd_intensity
        Mean and standard deviation of the scan's values inside (Hounsfield units for a CT).
    extent_mm
        Size of the bounding box along the scan's own axes, in millimetres, in the order of those that lie closest to
        left-right, back-front and feet-head.
    centroid_mm
        Centre of mass in patient coordinates, RAS millimetres.
    touches_edge
        Sides of the scan that the organ reaches, such as `("head",)`. It may go on outside, so its volume is then a
        lower bound.
    """

    found: bool
    voxels: int
    volume_ml: float
    mean_intensity: float | None
    sd_intensity: float | None
    extent_mm: tuple[float, float, float] | None
    centroid_mm: tuple[float, float, float] | None
    touches_edge: tuple[str, ...]


NOT_FOUND = OrganStatistics(
    found=False,
    voxels=0,
    volume_ml=0.0,
    mean_intensity=None,
    sd_intensity=None,
    extent_mm=None,
    centroid_mm=None,
    touches_edge=(),
)


def organ_statistics(image: Volume, mask: Volume, labels: Mapping[str, int]) -> dict[str, OrganStatistics]:
    """Measure every organ of `labels`, those that were not found included.

    Parameters
    ----------
    image
        The scan, whose grey values are averaged inside each organ.
    mask
        Label ids on the scan's grid.
    labels
        Organ name -> id.

    Returns
    -------
    dict
        Organ name -> measurements, in the order of `labels`.

    Raises
    ------
    InputRefusedError
        If the two shapes differ.
    """
    if image.array.shape != mask.array.shape:
        raise InputRefusedError(f"the mask is {mask.array.shape} voxels, the scan {image.array.shape}; expected equal")
    image, mask = image.reorient("RAS"), mask.reorient("RAS")
    boxes = ndimage.find_objects(mask.array)
    return {name: _measure(image, mask, index, boxes) for name, index in labels.items()}


def _measure(image: Volume, mask: Volume, index: int, boxes: Sequence[tuple[slice, ...] | None]) -> OrganStatistics:
    """Measurements of label `index`, read inside its bounding box only."""
    box = boxes[index - 1] if index <= len(boxes) else None
    if box is None:
        return NOT_FOUND
    inside, values = mask.array[box] == index, image.array[box]
    voxels = int(np.count_nonzero(inside))
    mean = sum(float(taken.sum()) for taken in _by_slice(values, inside)) / voxels
    spread = sum(float(np.square(taken - mean).sum()) for taken in _by_slice(values, inside))
    start = np.array([side.start for side in box])
    size = np.array([side.stop - side.start for side in box])
    others = ((1, 2), (0, 2), (0, 1))
    centre = start + [np.arange(n) @ inside.sum(axis=rest) / voxels for n, rest in zip(size, others, strict=True)]
    centroid = apply_affine(mask.affine, centre)
    extent = size * np.array(mask.spacing_mm)
    edges = [
        name
        for side, length, (first, last) in zip(box, mask.array.shape, SIDES, strict=True)
        for name, reached in ((first, side.start == 0), (last, side.stop == length))
        if reached
    ]
    return OrganStatistics(
        found=True,
        voxels=voxels,
        volume_ml=voxels * mask.voxel_ml,
        mean_intensity=mean,
        sd_intensity=float(np.sqrt(spread / voxels)),
        extent_mm=(float(extent[0]), float(extent[1]), float(extent[2])),
        centroid_mm=(float(centroid[0]), float(centroid[1]), float(centroid[2])),
        touches_edge=tuple(edges),
    )


def _by_slice(values: NDArray[Any], inside: NDArray[np.bool_]) -> Iterator[NDArray[np.float64]]:
    """The values inside, a slice at a time: all those of an organ that fills a long scan would take gigabytes."""
    for k in range(inside.shape[2]):
        yield values[:, :, k][inside[:, :, k]].astype(np.float64)
