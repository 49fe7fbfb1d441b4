"""How alike two sketches are: the best correlation of their signs over all translations and mirrorings.

For signs a and b, N(shift) voxels of which are marked in both, the correlation at a shift is r = sum(a b) / N. Chance
alone reaches about 5 / sqrt(N) at the best of the hundred thousands of shifts, so the likeness is

    max over mirrorings and shifts with N >= need of  r - 5 / sqrt(N),

which small overlaps cannot reach by accident. Sums over all shifts are products of Fourier transforms.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from meddelinea.data.fingerprint import Sketch, read_sketch, sketch_shape

#: From this likeness on, two scans are taken for copies of one: the middle between copies and strangers, docs/leaks.md.
COPY_LIKENESS = 0.47
#: Share of the smaller sketch's marks that must overlap: less, and skin on skin would do.
LEAST_OVERLAP = 0.4
#: Marks that must overlap: 0.3 litres.
LEAST_MARKS = 300
CHANCE = 5.0

MIRRORINGS = tuple(product((1, -1), repeat=3))
SketchShape = tuple[int, ...]


def likeness(a: str, b: str) -> float:
    """How much of the correlation of two sketches is beyond chance: 1 for a scan and itself, less a few hundredths.

    Symmetric; the same for any translation and mirroring. 0 where no overlap is large enough or none is alike.

    Raises
    ------
    ValueError
        If a text is not a sketch.
    """
    return float(likenesses(a, [b], floor=0.0)[0])


def likenesses(query: str, known: Sequence[str], *, floor: float = COPY_LIKENESS) -> NDArray[np.float64]:
    """`likeness` of one sketch and each of many, with 0 for those below `floor`, which spares half of the work.

    Raises
    ------
    ValueError
        If a text is not a sketch.
    """
    voxels = read_sketch(query)
    found = np.zeros(len(known))
    by_shape: dict[SketchShape, list[int]] = defaultdict(list)
    for index, text in enumerate(known):
        by_shape[_transform_shape(voxels.shape, sketch_shape(text))].append(index)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for shape, indices in by_shape.items():
            best = partial(_best, _Query(voxels, shape), floor)
            found[indices] = list(threads.map(best, (known[index] for index in indices)))
    return found


class _Query:
    """The transforms of a sketch in its 8 mirrorings, made once for all others that fit the same grid."""

    def __init__(self, voxels: Sketch, shape: SketchShape) -> None:
        self.shape = shape
        self.marks = np.count_nonzero(voxels)
        flips = (voxels[tuple(slice(None, None, step) for step in steps)] for steps in MIRRORINGS)
        self._mirrored = np.stack([np.pad(v, [(0, n - m) for n, m in zip(shape, v.shape, strict=True)]) for v in flips])

    @cached_property
    def signs(self) -> NDArray[np.complex64]:
        return _transform(self._mirrored).conj()

    @cached_property
    def marked(self) -> NDArray[np.complex64]:
        return _transform(np.abs(self._mirrored)).conj()


def _best(query: _Query, floor: float, text: str) -> float:
    other = read_sketch(text)
    need = max(LEAST_MARKS, LEAST_OVERLAP * min(query.marks, np.count_nonzero(other)))
    padded = np.pad(other, [(0, n - m) for n, m in zip(query.shape, other.shape, strict=True)])
    products = fft.irfftn(query.signs * _transform(padded), query.shape, axes=(1, 2, 3))
    # A likeness of `floor` on N >= need voxels takes a sum of at least floor N + 5 sqrt(N): most mirrorings of most
    # strangers never reach it, and need no counts.
    reach = products.max(axis=(1, 2, 3)) >= floor * need + CHANCE * np.sqrt(need) - 0.5
    if not reach.any():
        return 0.0
    counts = fft.irfftn(query.marked[reach] * _transform(np.abs(padded)), query.shape, axes=(1, 2, 3))
    enough = counts >= need - 0.5
    if not enough.any():
        return 0.0
    overlap = counts[enough]
    best = float((products[reach][enough] / overlap - CHANCE / np.sqrt(overlap)).max())
    return best if best >= floor else 0.0


def _transform(voxels: NDArray[np.int8]) -> NDArray[np.complex64]:
    spectrum: NDArray[np.complex64] = fft.rfftn(voxels.astype(np.float32), axes=(-3, -2, -1))
    return spectrum


def _transform_shape(a: SketchShape, b: SketchShape) -> SketchShape:
    """A grid on which no shift wraps around, rounded up so that many pairs share one."""
    return tuple(fft.next_fast_len(-(-(n + m) // 8) * 8, real=True) for n, m in zip(a, b, strict=True))
