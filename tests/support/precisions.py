"""A method in both precisions that networks are run in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from meddelinea.diffusion.noise import NoiseKey
from meddelinea.methods.protocol import Method


def agreement(method: Method, images: Tensor, keys: Sequence[NoiseKey]) -> float:
    """Share of pixels with the same organ in float32 and in bfloat16, in which all logits have to be finite."""
    exact = method.segment(images, keys)
    with torch.autocast("cpu", torch.bfloat16):
        half = method.segment(images, keys)
    assert half.isfinite().all()
    return float((half.argmax(dim=1) == exact.argmax(dim=1)).float().mean())
