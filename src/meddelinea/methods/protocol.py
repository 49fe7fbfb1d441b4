"""The seam between methods and everything else: training, volume inference and evaluation know no more of a method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from meddelinea.diffusion.noise import NoiseKey


class Batch(NamedTuple):
    """A training batch; the random numbers come with it, so that a loss is a function of its batch."""

    images: Tensor  # (B, slices, H, W) in [-1, 1]
    masks: Tensor  # (B, H, W) organ ids
    noise: Tensor  # (B, 4, h, w) standard normal
    uniform: Tensor  # (B,) in [0, 1), from which the timestep is made


class Method(Protocol):
    """What training, volume inference and evaluation ask of any segmentation method."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses; `total` is the one to minimise."""

    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Images (B, slices, H, W) -> logits (B, L + 1, H, W)."""
