"""The outlines of a binary image as closed polygons, and back.

Coordinates are pixels: (column, row) with the centre of the first pixel at (0, 0).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

Polygon = NDArray[np.float64]


def outlines(inside: NDArray[np.bool_]) -> list[Polygon]:
    """Polygons around the pixels that are inside, halfway to their neighbours.

    A hole is joined to what is around it by a channel of no width (a "keyhole"), so each polygon is one closed line
    and means the same under every fill rule.

    Parameters
    ----------
    inside
        (rows, columns) of the binary image.

    Returns
    -------
    list of (points, 2) arrays
        The first point is not repeated at the end.
    """
    padded = np.pad(inside, 1).astype(np.float64)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    polygons = []
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        rings = [_corners(ring[:-1] - 1.0) for ring in np.split(points, offsets[1:-1])]
        polygons.append(_keyholed(rings[0], rings[1:]))
    return polygons


def fill(polygons: Iterable[Polygon], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(rows, columns) of pixels whose centre lies inside an odd number of polygons."""
    rows, columns = shape
    crossings = np.zeros((rows, columns + 1), np.int64)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        first, last = (np.clip(np.ceil(y), 0, rows).astype(int) for y in (low, high))
        edges = np.repeat(np.arange(len(polygon)), last - first)  # an edge for each row that it crosses
        row = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)]).astype(int)
        slope = (end - start)[edges, 0] / (end - start)[edges, 1]
        column = start[edges, 0] + (row - start[edges, 1]) * slope
        np.add.at(crossings, (row, np.clip(np.ceil(column), 0, columns).astype(int)), 1)
    filled: NDArray[np.bool_] = crossings[:, :-1].cumsum(axis=1) % 2 == 1
    return filled


def _corners(ring: Polygon) -> Polygon:
    """The points of a ring at which it turns: the same line with about half of them."""
    back, ahead = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    corners: Polygon = ring[back[:, 0] * ahead[:, 1] != back[:, 1] * ahead[:, 0]]
    return corners


def _keyholed(outer: Polygon, holes: list[Polygon]) -> Polygon:
    """One ring: from each hole's leftmost point a channel runs left to the ring, holes from left to right.

    Whatever a channel meets first is the ring or a hole that begins further left, which the ring has by then.
    """
    ring = outer
    for hole in sorted(holes, key=lambda hole: float(hole[:, 0].min())):
        entry = int(hole[:, 0].argmin())
        x, y = hole[entry]
        start, end = ring, np.roll(ring, -1, axis=0)
        crosses = (np.minimum(start[:, 1], end[:, 1]) <= y) & (y < np.maximum(start[:, 1], end[:, 1]))
        edges = np.flatnonzero(crosses)
        at = start[edges, 0] + (y - start[edges, 1]) * (end - start)[edges, 0] / (end - start)[edges, 1]
        left = int(np.where(at < x, at, -np.inf).argmax())
        foot = np.array([[at[left], y]])
        around = np.roll(hole, -entry, axis=0)
        after = int(edges[left]) + 1
        ring = np.concatenate([ring[:after], foot, around, around[:1], foot, ring[after:]])
    return ring
