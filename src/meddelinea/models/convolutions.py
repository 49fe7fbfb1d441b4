"""Building blocks of the codec, the image stem and the mask head, ordered by dependency."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Slope of the leaky ReLU below zero, nnU-Net's.
LEAK = 0.01
#: From so many pixels on, group norm takes less time than batch norm on a CPU: below 1024 it takes another way.
FAST_PIXELS = 1024


def set_channels_last(module: nn.Module) -> None:
    """Lay out the weights of 2D convolutions with channels last, in place; they are computed as they were.

    Over few channels they run up to twice as fast on a CPU so.
    """
    for weight in module.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm beside a skip, (B, C, H, W) -> the same; starts as the identity."""

    def __init__(self, channels: int, groups: int = 8) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        # Zeros: the block starts as the identity, however many follow each other.
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C, H, W)
        return x + self.conv2(F.silu(self.norm2(h)))  # (B, C, H, W)


class InstanceNorm(nn.GroupNorm):
    """Each channel of each slice normalised over its pixels, then scaled and shifted, (B, C, H, W) -> the same.

    As group norm with groups of one channel, which keeps the channels-last layout where PyTorch's instance norm leaves
    it. On a CPU it is the batch norm of each slice by itself: the same sums, with a faster gradient. Its sums are split
    among the threads, though, so where no gradient is needed those of float32 are taken in an order that does not
    depend on these: the same scan then gives the same shares, to the last bit. In half precision what is fastest is
    taken.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        is_half, is_training = x.dtype in (torch.bfloat16, torch.float16), torch.is_grad_enabled()
        is_large = x.shape[2] * x.shape[3] >= FAST_PIXELS
        if x.device.type != "cpu" or (is_half and is_large and not is_training):
            return super().forward(x)
        slices = []
        for one in x.chunk(len(x)):  # (1, C, H, W)
            # Where no moments are given, they are those of the slice itself.
            mean, variance = (None, None) if is_training or is_half else _moments(one)
            own = mean is None
            slices.append(torch.batch_norm(one, self.weight, self.bias, mean, variance, own, 0.0, self.eps, False))
        return torch.cat(slices)  # (B, C, H, W)


def _moments(slice_: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, (C,) each, of (1, C, H, W), added up channel by channel."""
    pixels = slice_.permute(0, 2, 3, 1).flatten(0, 2)  # (H * W, C)
    mean = pixels.sum(dim=0) / len(pixels)  # (C,)
    return mean, (pixels - mean).square_().sum(dim=0) / len(pixels)  # (C,)


class ConvUnit(nn.Module):
    """Two 3x3 convolutions beside a skip, each normalised over the slice: the unit of residual U-Nets (nnU-Net).

    (B, channels_in, H, W) -> (B, channels_out, H / stride, W / stride). Its initial weights keep the variance, of which
    PyTorch's own leave a third at each layer.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = InstanceNorm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = InstanceNorm(channels_out)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, bias=False)
        # Weights that keep the variance of what they get, behind a leaky ReLU.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=LEAK)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.norm1(self.conv1(x)), LEAK)  # (B, C_out, H/stride, W/stride)
        h = self.norm2(self.conv2(h))  # (B, C_out, H/stride, W/stride)
        skip = F.avg_pool2d(x, self.stride) if self.stride > 1 else x  # (B, C_in, H/stride, W/stride)
        return F.leaky_relu(h + self.skip(skip), LEAK)  # (B, C_out, H/stride, W/stride)


class ImageStem(nn.Module):
    """A convolutional view of the image beside its latent, an extension of the paper for models trained from little.

    A pyramid of features whose coarsest level has one position a token.

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
        self.finest = nn.Conv2d(slices, channels[0], finest, stride=finest)
        self.units = nn.ModuleList([ConvUnit(channels[0], channels[0])])
        self.units.extend(ConvUnit(fine, coarse, stride=2) for fine, coarse in pairwise(channels))
        self.proj = nn.Conv2d(channels[-1], width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, slices, H, W) in [-1, 1] -> tokens (B, T, D), and the features of each level, the finest first."""
        h = self.finest(images)  # (B, c0, H/f, W/f)
        levels = []
        for unit in self.units:
            h = unit(h)  # (B, c0, H/f, W/f), (B, c1, H/2f, W/2f), ...
            levels.append(h)
        tokens = self.proj(h).flatten(2).transpose(1, 2)  # (B, T, D)
        return tokens, levels
