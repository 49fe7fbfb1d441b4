"""TransUNet (Chen et al. 2021): a ResNet whose coarsest features pass a vision transformer, and an up-sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from meddelinea.models.mask_head import carry_output_layers

#: Added to a kernel's variance, so that one of equal weights is not divided by zero.
LEAST_VARIANCE = 1e-10
#: Features of the ResNet are so much coarser than pixels where the transformer takes them, one position a token.
COARSEST = 16


class StandardisedConv(nn.Conv2d):
    """A convolution without bias whose kernels have mean 0 and variance 1 (weight standardisation, Qiao et al. 2019).

    (B, C_in, H, W) -> (B, C_out, H / stride, W / stride), H and W multiples of the stride.
    """

    def __init__(self, channels_in: int, channels_out: int, size: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=False)

    def kernels(self) -> Tensor:
        """The weights as they are applied, (C_out, C_in, size, size): those of each output channel standardised."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)  # (C_out, 1, 1, 1)
        return (self.weight - mean) * (variance + LEAST_VARIANCE).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernels(), None, self.stride, self.padding)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups, or as many of them as divide the channels equally."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


class Bottleneck(nn.Module):
    """A residual unit of 1x1, 3x3 and 1x1 convolutions, a quarter as wide inside as outside.

    (B, C_in, H, W) -> (B, C_out, H / stride, W / stride).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        width = channels_out // 4
        self.conv1, self.norm1 = StandardisedConv(channels_in, width, 1), group_norm(width)
        self.conv2, self.norm2 = StandardisedConv(width, width, 3, stride), group_norm(width)
        self.conv3, self.norm3 = StandardisedConv(width, channels_out, 1), group_norm(channels_out)
        same = channels_in == channels_out and stride == 1
        projection = nn.Sequential(StandardisedConv(channels_in, channels_out, 1, stride), group_norm(channels_out))
        self.skip = nn.Identity() if same else projection

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))  # (B, C_out / 4, H, W)
        h = F.relu(self.norm2(self.conv2(h)))  # (B, C_out / 4, H / stride, W / stride)
        return F.relu(self.skip(x) + self.norm3(self.conv3(h)))  # (B, C_out, H / stride, W / stride)


class ResNet(nn.Module):
    """Images (B, slices, H, W) -> features at H/2, H/4, H/8 and H/16, of 1, 4, 8 and 16 times `root` channels."""

    def __init__(self, slices: int, root: int, units: Sequence[int]) -> None:
        super().__init__()
        self.root = nn.Sequential(StandardisedConv(slices, root, 7, 2), group_norm(root), nn.ReLU())
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        for (before, after), count, stride in zip(pairwise((root, *self.widths(root))), units, (1, 2, 2), strict=True):
            more = [Bottleneck(after, after, 1) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(Bottleneck(before, after, stride), *more))

    @staticmethod
    def widths(root: int) -> tuple[int, int, int]:
        """Channels at H/4, H/8 and H/16."""
        return 4 * root, 8 * root, 16 * root

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [self.root(images)]  # (B, r, H/2, W/2)
        h = self.pool(features[0])  # (B, r, H/4, W/4)
        for stage in self.stages:
            h = stage(h)  # (B, 4r, H/4, W/4), (B, 8r, H/8, W/8), (B, 16r, H/16, W/16)
            features.append(h)
        return features


class Transformer(nn.Module):
    """A vision transformer over each position of a feature map, (B, C, h, w) -> (B, D, h, w).

    Its position embedding is learnt for `grid` x `grid` tokens, and interpolated for others.
    """

    def __init__(self, channels: int, width: int, *, heads: int, depth: int, grid: int) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(channels, width, 1)
        self.position = nn.Parameter(0.02 * torch.randn(1, width, grid, grid))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=1e-6,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        x = self.embedding(features)  # (B, D, h, w)
        rows, columns = x.shape[2:]
        position: Tensor = self.position
        if (rows, columns) != position.shape[2:]:
            position = F.interpolate(position, (rows, columns), mode="bilinear", align_corners=False)
        x = (x + position).flatten(2).transpose(1, 2)  # (B, T, D)
        for layer in self.layers:
            x = layer(x)  # (B, T, D)
        return self.norm(x).transpose(1, 2).unflatten(2, (rows, columns))  # (B, D, h, w)


class UpSampling(nn.Module):
    """Twice as fine, joined with a skip's features: (B, C, h, w), (B, C_skip, 2h, 2w) -> (B, C_out, 2h, 2w)."""

    def __init__(self, channels_in: int, channels_skip: int, channels_out: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*conv(channels_in + channels_skip, channels_out), *conv(channels_out, channels_out))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)  # (B, C, 2h, 2w)
        return self.convs(x if skip is None else torch.cat([x, skip], dim=1))  # (B, C_out, 2h, 2w)


def conv(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    """A 3x3 convolution, group norm and ReLU."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), group_norm(channels_out), nn.ReLU()


class TransUNet(ModelMixin, ConfigMixin):
    """The paper's hybrid, R50-ViT, with group norm in its decoder and without dropout.

    Batch norm would keep running statistics of batches of a few slices, and dropout would draw numbers that a batch
    does not come with.

    Parameters
    ----------
    organs
        L.
    slices
        Channels of an image: a slice and its neighbours.
    grid
        Tokens along each side at the resolution that the weights are trained at.
    root
        r, channels of the ResNet's first convolution; its stages have 4r, 8r and 16r.
    units
        Residual units of the three stages.
    width, heads, depth
        D, attention heads and layers of the transformer.
    decoder
        Channels of the up-sampler at H/8, H/4, H/2 and H.
    """

    @register_to_config
    def __init__(
        self,
        organs: int,
        slices: int,
        grid: int,
        root: int,
        units: list[int],
        width: int,
        heads: int,
        depth: int,
        decoder: list[int],
    ) -> None:
        super().__init__()
        self.resnet = ResNet(slices, root, units)
        at_4, at_8, at_16 = ResNet.widths(root)
        self.transformer = Transformer(at_16, width, heads=heads, depth=depth, grid=grid)
        self.reshaped = nn.Sequential(*conv(width, 2 * decoder[0]))
        steps = zip(pairwise((2 * decoder[0], *decoder)), (at_8, at_4, root, 0), strict=True)
        self.upsamplings = nn.ModuleList(UpSampling(coarse, skip, fine) for (coarse, fine), skip in steps)
        self.head = nn.Conv2d(decoder[-1], organs + 1, 3, padding=1)

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return COARSEST

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, slices, H, W) -> logits ((B, L + 1, H, W),)."""
        *skips, coarsest = self.resnet(images)  # (B, r, H/2, W/2), (B, 4r, H/4, W/4), (B, 8r, H/8, W/8), ...
        h = self.reshaped(self.transformer(coarsest))  # (B, 2 d0, H/16, W/16)
        for upsampling, skip in zip(self.upsamplings, (*reversed(skips), None), strict=True):
            h = upsampling(h, skip)  # (B, d0, H/8, W/8), ..., (B, d3, H, W)
        return (self.head(h),)

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> TransUNet:
        """A copy for the `wanted` organs: the output layer carried over, see `mask_head.carry_classes`."""
        copy = TransUNet.from_config({**self.config, "organs": len(wanted)})
        copy.load_state_dict(carry_output_layers(self.state_dict(), ("head.",), known, wanted))
        return copy
