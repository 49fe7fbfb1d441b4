"""Two masks of one scan that do not reach equally far: a DICOM-SEG may hold only the slices with an organ."""

from __future__ import annotations

import itertools

import numpy as np

from meddelinea.volume import Volume


def spread(one: Volume, other: Volume, *, one_may: bool, other_may: bool) -> tuple[Volume, Volume]:
    """Both masks over the space of the two together, background where one does not reach.

    Parameters
    ----------
    one, other
        Label ids.
    one_may, other_may
        Whether a mask means background by not reaching somewhere, as a DICOM-SEG does. Of any other file it means that
        it is of another scan.

    Returns
    -------
    Volume, Volume
        Equal grids; or both as they were, if their voxels do not coincide or one would grow that may not.
    """
    step = np.linalg.inv(other.affine) @ one.affine
    corners = np.array([(*c, 1) for c in itertools.product(*((0, n - 1) for n in one.array.shape))], np.float64)
    reached = np.rint(corners @ step.T)[:, :3].astype(int)
    first = np.minimum(reached.min(axis=0), 0)
    last = np.maximum(reached.max(axis=0), np.array(other.array.shape) - 1)
    shape = tuple(int(n) for n in last - first + 1)
    move = np.eye(4)
    move[:3, 3] = first
    spread_one, spread_other = (volume.onto(other.affine @ move, shape) for volume in (one, other))
    if spread_one is None or spread_other is None:
        return one, other
    if (not one_may and spread_one.array.size != one.array.size) or (not other_may and shape != other.array.shape):
        return one, other
    return spread_one, spread_other
