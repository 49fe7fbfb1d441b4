"""A convolutional view of the image beside its latent: an extension of the paper, for models trained from little."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from meddelinea.models.layers import ResidualBlock


class ImageStem(nn.Module):
    """Pyramid of image features whose coarsest level has one position a token.

    Parameters
    ----------
    channels
        Width of each level: the first at H/f, each further one at half of the resolution before.
    finest
        f, the side of the square of pixels that is folded into one position of the first level.
    slices
        Channels of an image: the slice and its neighbours.
    width
        D, the width of the tokens.
    """

    def __init__(self, channels: tuple[int, ...], finest: int, slices: int, width: int) -> None:
        super().__init__()
        self.finest = nn.Conv2d(slices, channels[0], finest, finest)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 3, 2, 1) for fine, coarse in pairwise(channels))
        # One block where positions are many and dear, two where they are few.
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(c) for _ in range(1 if level == 0 else 2)))
            for level, c in enumerate(channels)
        )
        self.norm = nn.GroupNorm(8, channels[-1])
        self.proj = nn.Conv2d(channels[-1], width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, slices, H, W) in [-1, 1] -> tokens (B, T, D), and the features of each level, the finest first."""
        h = self.blocks[0](self.finest(images))  # (B, c0, H/f, W/f)
        levels = [h]
        for down, blocks in zip(self.down, self.blocks[1:], strict=True):
            h = blocks(down(h))
            levels.append(h)
        tokens = self.proj(F.silu(self.norm(h)))
        return tokens.flatten(2).transpose(1, 2), levels
