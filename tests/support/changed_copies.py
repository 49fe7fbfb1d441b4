"""Copies of a scan as they turn up in other people's datasets: what a leak check has to see through."""

from collections.abc import Callable

import nibabel as nib
import numpy as np

from meddelinea.data.resample import block_mean, resample_linear
from meddelinea.volume import Volume

Sides = tuple[float, float, float]
MIDDLE: Sides = (0.5, 0.5, 0.5)


def cropped(volume: Volume, share: Sides, place: Sides = MIDDLE) -> Volume:
    """A share of each axis, at a place from 0 (first) to 1 (last)."""
    sizes = [max(2, round(n * s)) for n, s in zip(volume.array.shape, share, strict=True)]
    starts = [round((n - m) * p) for n, m, p in zip(volume.array.shape, sizes, place, strict=True)]
    box = tuple(slice(a, a + m) for a, m in zip(starts, sizes, strict=True))
    affine = volume.affine @ nib.affines.from_matvec(np.eye(3), starts)
    return Volume(np.ascontiguousarray(volume.array[box]), affine)


def resampled(volume: Volume, spacing_mm: Sides, *, averaged: bool = True) -> Volume:
    """On another grid from the same corner, rounded as files are; without averaging, voxels between are left out."""
    source = volume
    if averaged:
        i, j, k = (max(1, int(s / old + 0.05)) for s, old in zip(spacing_mm, volume.spacing_mm, strict=True))
        source = block_mean(volume, (i, j, k))
    scale = np.array(spacing_mm) / source.spacing_mm
    i, j, k = (max(1, int((n - 1) / s + 1e-6) + 1) for n, s in zip(source.array.shape, scale, strict=True))
    affine = source.affine @ np.diag([*scale, 1.0])
    there = resample_linear(source, affine, (i, j, k), outside=float(volume.array.min()))
    return Volume(np.rint(there.array).astype(np.int16), affine)


def scaled(volume: Volume, plane: float, slice_mm: float | None = None, *, averaged: bool = True) -> Volume:
    """`resampled` by a factor in plane and to a slice thickness."""
    x, y, z = volume.spacing_mm
    return resampled(volume, (x * plane, y * plane, slice_mm or z), averaged=averaged)


def windowed(volume: Volume, low: float, high: float) -> Volume:
    """Clipped and stretched to 0..255, 8 bits."""
    share = (np.clip(volume.array.astype(np.float32), low, high) - low) / (high - low)
    return Volume(np.rint(255 * share).astype(np.uint8), volume.affine)


def mirrored(volume: Volume, *axes: int) -> Volume:
    """Voxels flipped under an unchanged header: the patient's left is on the right."""
    return Volume(np.ascontiguousarray(np.flip(volume.array, axes)), volume.affine)


def noisy(volume: Volume, amount: float) -> Volume:
    """With noise, as floating-point numbers."""
    noise = np.random.default_rng(0).normal(0, amount, volume.array.shape)
    return Volume((volume.array + noise).astype(np.float32), volume.affine)


def offset(volume: Volume) -> Volume:
    """Unsigned, as DICOM stores it."""
    return Volume((volume.array.astype(np.int32) + 1024).clip(0).astype(np.uint16), volume.affine)


#: Transformations of a CT of the abdomen by name.
TRANSFORMATIONS: dict[str, Callable[[Volume], Volume]] = {
    "finer in plane": lambda v: scaled(v, 0.8),
    "coarser in plane": lambda v: scaled(v, 2.0),
    "slices of 5 mm": lambda v: scaled(v, 1.0, 5.0),
    "slices of 8 mm": lambda v: scaled(v, 1.0, 8.0),
    "one slice each 8 mm": lambda v: scaled(v, 1.0, 8.0, averaged=False),
    "1.5 mm in all directions": lambda v: resampled(v, (1.5, 1.5, 1.5)),
    "the middle 40 %": lambda v: cropped(v, (0.4, 0.4, 0.4)),
    "the lower 40 % of the slices": lambda v: cropped(v, (1, 1, 0.4), (0, 0, 0.1)),
    "half of each slice": lambda v: cropped(v, (0.5, 0.5, 1), (0.3, 0.6, 0)),
    "8 bits": lambda v: windowed(v, -100, 200),
    "8 bits, narrow": lambda v: windowed(v, -50, 150),
    "unsigned": offset,
    "mirrored": lambda v: mirrored(v, 0),
    "upside down": lambda v: mirrored(v, 1, 2),
    "point reflection": lambda v: mirrored(v, 0, 1, 2),
    "noise": lambda v: noisy(v, 15),
    "other axes": lambda v: v.reorient("SPR"),
    "crop, 8 bits, thick, mirrored": lambda v: mirrored(
        windowed(scaled(cropped(v, (0.4, 0.4, 0.4), (0.45, 0.5, 0.55)), 1, 8), -100, 200), 0, 2
    ),
    "crop, coarse, one slice each 8 mm, noise, turned": lambda v: noisy(
        scaled(cropped(v, (0.45, 0.4, 0.4), (0.6, 0.45, 0.3)), 2, 8, averaged=False), 8
    ).reorient("AIL"),
    "crop, coarse, thick, 8 bits, upside down": lambda v: mirrored(
        windowed(scaled(cropped(v, (0.4, 0.4, 0.45), (0.35, 0.6, 0.62)), 1.7, 7), -160, 240), 1
    ),
}


def random_copy(volume: Volume, rng: np.random.Generator) -> Volume:
    """A combination: a crop to 40..100 % an axis, other spacing, and mostly a window, mirroring, noise, other axes."""
    fifth, half = (0.5, 99.5), bool(rng.integers(2))
    low, high = np.percentile(volume.array[::2, ::2, ::2], fifth)
    share, place = rng.uniform(0.4, 1.0, 3), rng.uniform(0.3, 0.7, 3)
    copy = cropped(volume, tuple(share), tuple(place))
    slice_mm = max(float(rng.uniform(2, 8)), 0.8 * volume.spacing_mm[2])
    copy = scaled(copy, float(rng.uniform(0.8, 2.0)), slice_mm, averaged=half)
    copy = mirrored(copy, *(axis for axis in range(3) if rng.integers(2)))
    if rng.integers(2):
        copy = noisy(copy, 0.02 * float(high - low))
    if rng.integers(2):
        copy = windowed(copy, low + rng.uniform(0, 0.2) * (high - low), high - rng.uniform(0, 0.2) * (high - low))
    return copy.reorient(str(rng.choice(["LAS", "RAS", "LPS", "SPR", "AIL"])))
