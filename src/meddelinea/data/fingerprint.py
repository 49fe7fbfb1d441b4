"""What a scan is known by again without its voxels: an exact fingerprint, and a sketch that survives being copied.

The fingerprint is the same for the same grey values in any file. The sketch is a few kilobytes that
`data.likeness.likeness` compares: a copy that was resampled, cropped, windowed or mirrored still looks like its source.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.data.preprocess import ORIENTATION
from meddelinea.data.resample import block_mean
from meddelinea.volume import Volume

#: Edge of a sketch's voxels. Two voxels of half that edge are smoothed first, so that the sampling loses nothing.
SKETCH_MM = 10.0
#: Gaussian widths between which structure is kept. Finer detail is lost by 8 mm slices, coarser is alike in all people.
BAND_MM = 5.0, 9.0
#: Share of a body's voxels whose sign is too near to zero to survive interpolation, and is left out.
WEAK_SHARE = 0.3
#: Written first, so that a sketch of another making is refused rather than misread.
SKETCH_VERSION = "1"

#: A scan of 2 x 2 x 4 metres; a sketch that claims more is not one.
MOST_VOXELS = 200 * 200 * 400

Sketch = NDArray[np.int8]


def fingerprint(volume: Volume) -> str:
    """SHA-256 of the scan's grey values in canonical orientation, with its shape and spacing.

    The same scan has the same fingerprint in any file format and axis order, rounded to whole units.
    """
    canonical = volume.reorient(ORIENTATION)
    digest = hashlib.sha256(repr((canonical.array.shape, np.round(canonical.spacing_mm, 3).tolist())).encode())
    for index in range(canonical.array.shape[2]):
        values = np.clip(np.rint(canonical.array[:, :, index]), -32768, 32767)
        digest.update(np.ascontiguousarray(values.astype("<i2")).tobytes())
    return digest.hexdigest()


def sketch(volume: Volume) -> str:
    """The scan as signs on a grid of 10 mm: where it is brighter, and where darker, than its surroundings.

    The grid runs along the scan's own axes in canonical orientation and is centred on the scan, wherever that lies in
    the patient. A voxel is +1 or -1 by the sign of a difference of Gaussians (5 and 9 mm), which neither scaling nor
    shifting grey values changes; 0 in air and where the difference is weak. About 7 kilobytes of text for an abdomen.

    Returns
    -------
    str
        `version:IxJxK:data`, in which the data are five voxels a byte, compressed, in base 64; see `read_sketch`.
    """
    grey = _half_grid(volume.reorient(ORIENTATION))
    low, high = np.percentile(grey, (0.5, 99.5))
    grey = np.clip(grey, low, high)  # a metal clip or a streak must not outshine the rest
    fine, coarse = (_pair_mean(ndimage.gaussian_filter(grey, 2 * mm / SKETCH_MM)) for mm in BAND_MM)
    difference = fine - coarse
    strength = np.abs(difference)
    body = fine > low + 0.1 * (high - low)
    marks = np.zeros(fine.shape, np.int8)
    if body.any():
        clear = body & (strength > np.quantile(strength[body], WEAK_SHARE))
        marks[clear] = np.sign(difference[clear])
    return _write_sketch(marks)


def read_sketch(text: str) -> Sketch:
    """The voxels of a sketch, (I, J, K) of -1, 0 and 1, cut to those that are not 0.

    Raises
    ------
    ValueError
        If the text is not a sketch of this version.
    """
    shape = sketch_shape(text)
    count = shape[0] * shape[1] * shape[2]
    try:
        data = text.rpartition(":")[2]
        packed = zlib.decompressobj().decompress(base64.b64decode(data, validate=True), max_length=-(-count // 5))
        return _UNPACKED[np.frombuffer(packed, np.uint8)].ravel()[:count].reshape(shape)
    except (ValueError, IndexError, binascii.Error, zlib.error) as error:
        raise ValueError(f"the sketch {text[:20]!r}... is damaged ({error})") from error


def sketch_shape(text: str) -> tuple[int, int, int]:
    """Shape of a sketch's voxels, read without unpacking them.

    Raises
    ------
    ValueError
        If the text does not begin as a sketch of this version does.
    """
    begin = re.match(r"(\d+):(\d+)x(\d+)x(\d+):", text)
    version, *sides = begin.groups() if begin else ("", "0", "0", "0")
    i, j, k = map(int, sides)
    if version != SKETCH_VERSION or not 0 < i * j * k <= MOST_VOXELS:
        raise ValueError(f"{text[:20]!r}... is not a sketch of version {SKETCH_VERSION}")
    return i, j, k


_POWERS = 3 ** np.arange(5)  # 3^5 = 243: five voxels fit a byte
_UNPACKED = (np.arange(243)[:, None] // _POWERS % 3 - 1).astype(np.int8)


def _write_sketch(marks: Sketch) -> str:
    boxes = ndimage.find_objects((marks != 0).astype(np.int8))
    marks = marks[boxes[0]] if boxes else marks[:1, :1, :1]
    digits = np.pad((marks + 1).ravel(), (0, -marks.size % 5)).reshape(-1, 5)
    packed = (digits @ _POWERS).astype(np.uint8).tobytes()
    shape = "x".join(map(str, marks.shape))
    return f"{SKETCH_VERSION}:{shape}:{base64.b64encode(zlib.compress(packed, 9)).decode()}"


def _half_grid(scan: Volume) -> NDArray[np.float32]:
    """The scan on a grid of half a sketch's voxels, an even number a side, with the scan's own centre."""
    step = SKETCH_MM / 2
    i, j, k = (max(1, int(step / mm + 0.05)) for mm in scan.spacing_mm)
    scan = block_mean(scan, (i, j, k))
    extent = np.array(scan.array.shape) * scan.spacing_mm
    shape = 2 * np.maximum(1, np.rint(extent / SKETCH_MM)).astype(int)
    scale = step / np.array(scan.spacing_mm)
    first = (np.array(scan.array.shape) - 1 - (shape - 1) * scale) / 2
    array = np.nan_to_num(np.asarray(scan.array, np.float32), posinf=0.0, neginf=0.0)
    grid: NDArray[np.float32] = ndimage.affine_transform(
        array, scale, offset=first, output_shape=tuple(shape), order=1, mode="nearest"
    )
    return grid


def _pair_mean(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of blocks of 2 x 2 x 2 voxels: unlike taking every second one, the same from both ends."""
    i, j, k = (n // 2 for n in grid.shape)
    mean: NDArray[np.float32] = grid.reshape(i, 2, j, 2, k, 2).mean(axis=(1, 3, 5))
    return mean
