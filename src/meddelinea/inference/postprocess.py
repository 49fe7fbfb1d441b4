"""Cleaning a mask by what anatomy says: an organ is in one piece, or in few."""

from __future__ import annotations

import cc3d
import numpy as np
from numpy.typing import NDArray


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
    pieces, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    organ_of = np.zeros(count + 1, np.uint8)
    organ_of[pieces.ravel()] = mask.ravel()
    largest = np.zeros(256, np.int64)
    np.maximum.at(largest, organ_of[1:], sizes[1:])
    kept = np.where(sizes >= least_share * largest[organ_of], organ_of, 0).astype(np.uint8)
    kept[0] = 0
    cleaned: NDArray[np.uint8] = kept[pieces]
    return cleaned
