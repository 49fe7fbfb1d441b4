"""Cleaning a mask by what anatomy says: an organ is in one piece, or in few."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def remove_small_components(mask: NDArray[np.uint8], least_share: float) -> NDArray[np.uint8]:
    """Drop the pieces of each organ that are small beside its largest.

    Parameters
    ----------
    mask
        (I, J, K) organ ids.
    least_share
        Pieces with fewer voxels than this share of the organ's largest piece become background; 0 drops none, 1 leaves
        the largest only.

    Returns
    -------
    A new mask. Pieces touch through a face, an edge or a corner.
    """
    cleaned = mask.copy()
    for organ, box in enumerate(ndimage.find_objects(mask), start=1):
        if box is None:
            continue
        pieces, count = cc3d.connected_components(mask[box] == organ, connectivity=26, return_N=True)
        sizes = np.zeros(count + 1, np.int64)
        for plane in pieces:  # counting all at once would copy them as 64-bit numbers
            sizes += np.bincount(plane.ravel(), minlength=count + 1)
        dropped = sizes < least_share * sizes[1:].max()
        dropped[0] = False  # not of this organ
        cleaned[box][dropped[pieces]] = 0
    return cleaned
