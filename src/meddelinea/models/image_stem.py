"""A convolutional view of the image beside its latent: an extension of the paper, for models trained from little."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from meddelinea.models.layers import ConvUnit


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
        self.units = nn.ModuleList([ConvUnit(channels[0], channels[0])])
        self.units.extend(ConvUnit(fine, coarse, stride=2) for fine, coarse in pairwise(channels))
        self.proj = nn.Conv2d(channels[-1], width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, slices, H, W) in [-1, 1] -> tokens (B, T, D), and the features of each level, the finest first."""
        h = self.finest(images)  # (B, c0, H/f, W/f)
        levels = []
        for unit in self.units:
            h = unit(h)
            levels.append(h)
        return self.proj(h).flatten(2).transpose(1, 2), levels
