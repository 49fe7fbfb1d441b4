"""Slices along tilted planes: no patient lies quite straight, and each plane shows organs that no other slice shows."""

from __future__ import annotations

import torch
from torch import Tensor


def heights(size: int, slopes: tuple[float, float]) -> Tensor:
    """How far a tilted plane through a slice's centre lies above the slice, (size, size).

    Parameters
    ----------
    slopes
        Rise from one column to the next, and from one row to the next.
    """
    along = torch.arange(size) - (size - 1) / 2
    return slopes[0] * along[None, :] + slopes[1] * along[:, None]


def cut(slab: Tensor, at: Tensor) -> Tensor:
    """Grey values of consecutive slices (S, H, W) at heights (N, H, W), in slices from the first: (N, H, W).

    Linear between two slices; the first and the last stand for those beyond.
    """
    inside = at.clamp(0.0, len(slab) - 1.0)
    below = inside.floor().long()
    above = (below + 1).clamp(max=len(slab) - 1)
    return torch.lerp(slab.gather(0, below), slab.gather(0, above), inside - below)


def cut_ids(slab: Tensor, at: Tensor) -> Tensor:
    """Organ ids of consecutive slices (S, H, W) at heights (N, H, W), those of the nearest slice: (N, H, W)."""
    return slab.gather(0, at.round().long().clamp(0, len(slab) - 1))
