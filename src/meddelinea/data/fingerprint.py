"""What a scan is known by again without its voxels."""

from __future__ import annotations

import hashlib

import numpy as np

from meddelinea.data.preprocess import ORIENTATION
from meddelinea.volume import Volume


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
    """A robust fingerprint of a scan; empty for now."""
    return ""
