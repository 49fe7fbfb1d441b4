"""Whole scans for networks that see a patch at a time: windows that overlap by half, whose answers are blended.

A voxel's shares are the mean over the windows that hold it, weighted by a Gaussian about each window's centre, as
nnU-Net has it: at its border a window sees least of what is around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from meddelinea.errors import UsageError
from meddelinea.methods.protocol import Patch

OVERLAP = 0.5
#: Standard deviation of the weights over the window's side, and the least of them over the largest; MONAI's too.
SPREAD, LEAST_WEIGHT = 0.125, 1e-3


def window_shares(shares: Callable[[Tensor], Tensor], volume: Tensor, patch: Patch) -> Tensor:
    """Shares of all classes in a volume, from those of its windows.

    Parameters
    ----------
    shares
        A window (1, 1, depth, side, side) -> shares (1, L + 1, depth, side, side).
    volume
        (1, 1, D, H, W); where it is smaller than a window, its outermost voxels stand for those beyond it.
    patch
        Size of the windows.

    Returns
    -------
    (1, L + 1, D, H, W).

    Raises
    ------
    UsageError
        If MONAI is not installed.
    """
    try:
        from monai.inferers.inferer import SlidingWindowInferer
    except ImportError as error:
        raise UsageError(f"windows are MONAI's ({error}); pip install 'meddelinea[baselines]'") from error
    inferer = SlidingWindowInferer(
        roi_size=(patch.depth, patch.side, patch.side),
        overlap=OVERLAP,
        mode="gaussian",
        sigma_scale=SPREAD,
        padding_mode="replicate",
    )
    blended: Tensor = inferer(volume, shares)
    return blended


def blended_slabs(shares: Callable[[range], Tensor], slices: int, depth: int) -> Iterator[tuple[range, Tensor]]:
    """Shares of a scan's slices from those of slabs of `depth` slices, each by itself and blended with its neighbours.

    A slab is asked for when the slices before it have been taken, and what no later slab reaches is given away: of a
    scan of any length, the shares of one slab and a half are held.

    Parameters
    ----------
    shares
        Consecutive slices -> their shares (n, L + 1, H, W), which may be overwritten.
    slices
        How many the scan has; fewer than `depth` are one slab.

    Yields
    ------
    Consecutive slices, each once, and their shares (n, L + 1, H, W).
    """
    last = max(slices - depth, 0)
    starts = [*range(0, last, max(1, int(depth * (1.0 - OVERLAP)))), last]
    from_centre = (torch.arange(depth) - (depth - 1) / 2.0) / (SPREAD * depth)
    gaussian = (-0.5 * from_centre.square()).exp().clamp(min=LEAST_WEIGHT).view(-1, 1, 1, 1)
    begun: tuple[Tensor, Tensor] | None = None  # sums of shares and weights in slices that the next slab reaches too
    for start, following in pairwise([*starts, slices]):
        total = shares(range(start, min(start + depth, slices)))  # (n, L + 1, H, W)
        weight = gaussian[: len(total)].to(total.device, copy=True)  # (n, 1, 1, 1)
        total *= weight
        if begun is not None:
            for sums, earlier in zip((total, weight), begun, strict=True):
                sums[: len(earlier)] += earlier
        done = following - start
        begun = total[done:].clone(), weight[done:]
        yield range(start, following), total[:done] / weight[:done]
