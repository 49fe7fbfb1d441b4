"""UNETR++ (Shaker et al. 2024): a 3D encoder and decoder of convolutions and efficient paired attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from meddelinea.models.convolutions import LEAK
from meddelinea.models.mask_head import carry_output_layers
from meddelinea.models.token_grid import EMBEDDED, LEVELS, Grid, token_grids

#: Weight of attention at first, for each channel.
FIRST_GATE = 1e-6


class PairedAttention(nn.Module):
    """Efficient paired attention, (B, T, D) -> the same: over tokens and over channels, of the same queries and keys.

    Spatial attention compares each token with P mixtures of all tokens, so that its cost grows with T and not T^2; one
    matrix mixes keys and values. Each of both attentions makes half of the channels.
    """

    def __init__(self, tokens: int, width: int, heads: int, mixtures: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.channel_value, self.spatial_value = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.mix = nn.Linear(tokens, mixtures)
        self.channel_scale, self.spatial_scale = (nn.Parameter(torch.ones(heads, 1, 1)) for _ in range(2))
        self.spatial_out, self.channel_out = (nn.Linear(width, width // 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        key = self._by_channel(self.key(x))  # (B, heads, D/heads, T)
        q, k = F.normalize(self._by_channel(self.query(x)), dim=3), F.normalize(key, dim=3)

        # Which channels are alike over all tokens, and what they hold.
        alike = (self.channel_scale * (q @ k.transpose(2, 3))).softmax(dim=3)  # (B, heads, D/heads, D/heads)
        by_channel = alike @ self._by_channel(self.channel_value(x))  # (B, heads, D/heads, T)

        # Which mixtures of tokens a token is like, and what they hold.
        value = self.mix(self._by_channel(self.spatial_value(x)))  # (B, heads, D/heads, P)
        near = (self.spatial_scale * (q.transpose(2, 3) @ self.mix(key))).softmax(dim=3)  # (B, heads, T, P)
        by_place = value @ near.transpose(2, 3)  # (B, heads, D/heads, T)

        halves = self.spatial_out(self._by_token(by_place)), self.channel_out(self._by_token(by_channel))
        return torch.cat(halves, dim=2)  # (B, T, D)

    def _by_channel(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(len(x), self.heads, -1, x.shape[1])  # (B, heads, D/heads, T)

    def _by_token(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2).transpose(1, 2)  # (B, T, D)


class ResidualUnit3D(nn.Module):
    """Two 3x3x3 convolutions with instance norm beside a skip, (B, a, d, h, w) -> (B, b, d, h, w)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm1, self.norm2 = (nn.InstanceNorm3d(out_channels, affine=True) for _ in range(2))
        self.skip: nn.Module = nn.Identity()
        if channels != out_channels:
            norm = nn.InstanceNorm3d(out_channels, affine=True)
            self.skip = nn.Sequential(nn.Conv3d(channels, out_channels, 1, bias=False), norm)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.norm1(self.conv1(x)), LEAK)  # (B, b, d, h, w)
        return F.leaky_relu(self.norm2(self.conv2(h)) + self.skip(x), LEAK)  # (B, b, d, h, w)


class PairedBlock(nn.Module):
    """Paired attention with learnt positions, then convolutions, each beside a skip; (B, D, d, h, w) -> the same."""

    def __init__(self, grid: Grid, width: int, heads: int, mixtures: int) -> None:
        super().__init__()
        tokens = prod(grid)
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        self.norm = nn.LayerNorm(width)
        self.attention = PairedAttention(tokens, width, heads, min(mixtures, tokens // 2))
        self.gate = nn.Parameter(torch.full((width,), FIRST_GATE))
        self.unit = ResidualUnit3D(width, width)
        self.out = nn.Conv3d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2) + self.positions  # (B, T, D)
        tokens = tokens + self.gate * self.attention(self.norm(tokens))  # (B, T, D)
        attended = tokens.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, D, d, h, w)
        return attended + self.out(self.unit(attended))  # (B, D, d, h, w)


class UNETRPlusPlus(ModelMixin, ConfigMixin):
    """Patches (B, 1, depth, side, side) -> logits (B, L + 1, depth, side, side); in training two coarser ones follow.

    Parameters
    ----------
    organs
        L.
    patch
        Slices, and rows and columns, that it sees.
    widths
        D of each of the four levels, the finest first; half of the first at full resolution.
    heads
        Of attention.
    blocks
        Of each level, in the encoder and in the decoder.
    mixtures
        P, of the tokens that spatial attention looks at; at most half of the tokens.
    """

    @register_to_config
    def __init__(
        self, organs: int, patch: list[int], widths: list[int], heads: int, blocks: int, mixtures: int
    ) -> None:
        super().__init__()
        levels, full = token_grids((patch[0], patch[1])), widths[0] // 2
        steps = list(pairwise(widths))  # (finer, coarser)
        self.downs = nn.ModuleList(
            [nn.Sequential(nn.Conv3d(1, widths[0], EMBEDDED, EMBEDDED, bias=False), nn.GroupNorm(1, widths[0]))]
        )
        self.downs.extend(nn.Sequential(nn.Conv3d(a, b, 2, 2, bias=False), nn.GroupNorm(a, b)) for a, b in steps)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(PairedBlock(grid, width, heads, mixtures) for _ in range(blocks)))
            for grid, width in zip(levels, widths, strict=True)
        )
        self.ups = nn.ModuleList([nn.ConvTranspose3d(widths[0], full, EMBEDDED, EMBEDDED, bias=False)])
        self.ups.extend(nn.ConvTranspose3d(b, a, 2, 2, bias=False) for a, b in steps)
        self.decoder = nn.ModuleList(
            nn.Sequential(*(PairedBlock(grid, width, heads, mixtures) for _ in range(blocks)))
            for grid, width in zip(levels[:-1], widths[:-1], strict=True)
        )
        self.full_in, self.full_out = ResidualUnit3D(1, full), ResidualUnit3D(full, full)
        self.outputs = nn.ModuleList(nn.Conv3d(width, organs + 1, 1) for width in (full, *widths[:2]))
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, patches: Tensor) -> tuple[Tensor, ...]:
        x, encoded = patches, []
        for down, stage in zip(self.downs, self.encoder, strict=True):
            x = stage(down(x))  # (B, D0, d, h, w), (B, D1, d/2, h/2, w/2), ...
            encoded.append(x)
        x, decoded = encoded.pop(), []
        for level in reversed(range(LEVELS - 1)):
            x = self.decoder[level](self.ups[level + 1](x) + encoded[level])  # ..., (B, D0, d, h, w)
            decoded.append(x)
        x = self.full_out(self.ups[0](x) + self.full_in(patches))  # (B, D0/2, depth, side, side)
        features = (x, *reversed(decoded[1:])) if self.training else (x,)
        return tuple(output(feature) for output, feature in zip(self.outputs, features, strict=False))

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> UNETRPlusPlus:
        """A copy for the `wanted` organs: the output layers carried over, see `mask_head.carry_classes`."""
        copy = UNETRPlusPlus.from_config({**self.config, "organs": len(wanted)})
        copy.load_state_dict(carry_output_layers(self.state_dict(), ("outputs.",), known, wanted))
        return copy
