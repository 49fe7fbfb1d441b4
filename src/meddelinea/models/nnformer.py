"""nnFormer (Zhou et al. 2023): attention within windows of a volume, over all of it, and from decoder to encoder."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from meddelinea.models.mask_head import carry_classes, carry_output_layers
from meddelinea.models.token_grid import EMBEDDED, LEVELS, Grid, token_grids
from meddelinea.models.transformer import MLP

#: Levels whose attention is local; that of the coarser ones sees the whole volume.
LOCAL_LEVELS = 2


def partition(volume: Tensor, window: Grid) -> Tensor:
    """A volume (B, d, h, w, D) cut into n windows of T tokens, (B, n, T, D)."""
    B, *edges, D = volume.shape
    split = [part for edge, side in zip(edges, window, strict=True) for part in (edge // side, side)]
    return volume.view(B, *split, D).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, -1, prod(window), D)


def merge(windows: Tensor, window: Grid, grid: Grid) -> Tensor:
    """Windows (B, n, T, D) put together to the volume (B, d, h, w, D) that `partition` cut."""
    counts = [edge // side for edge, side in zip(grid, window, strict=True)]
    volume = windows.view(len(windows), *counts, *window, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return volume.reshape(len(windows), *grid, -1)


def relative_positions(window: Grid) -> Tensor:
    """For each pair of a window's tokens, (T, T), the number of its offset among all that there are."""
    places = torch.cartesian_prod(*(torch.arange(side) for side in window))  # (T, 3)
    offsets = places[:, None] - places[None] + torch.tensor(window) - 1  # (T, T, 3) from 0 on
    numbers = torch.zeros(offsets.shape[:2], dtype=torch.long)
    for axis, side in enumerate(window):
        numbers = numbers * (2 * side - 1) + offsets[..., axis]
    return numbers


def together(grid: Grid, window: Grid, shift: Grid) -> Tensor:
    """Which tokens of each window, (n, T, T), were not brought together by the roll of the volume alone."""
    regions = torch.zeros(1, 1, 1, dtype=torch.long)
    for axis, (edge, step) in enumerate(zip(grid, shift, strict=True)):
        rolled = (torch.arange(edge) >= edge - step).long() if step else torch.zeros(edge, dtype=torch.long)
        regions = 2 * regions + rolled.view([-1 if a == axis else 1 for a in range(3)])
    numbers = partition(regions.expand(grid)[None, ..., None].contiguous(), window)[0, ..., 0]  # (n, T)
    return numbers[:, :, None] == numbers[:, None, :]


class WindowAttention(nn.Module):
    """Attention among the tokens of each window, with a bias for each offset between two.

    Where a window is as large as the volume it is the paper's global attention (GV-MSA), else the local one (LV-MSA);
    shifted, by half a window along each axis that has several.
    """

    def __init__(self, width: int, heads: int, grid: Grid, window: int, shifted: bool = False) -> None:
        super().__init__()
        self.heads, self.grid = heads, grid
        self.window: Grid = tuple(min(window, edge) for edge in grid)  # type: ignore[assignment]
        sides = zip(self.window, grid, strict=True)
        self.shift: Grid = tuple(side // 2 if shifted and side < edge else 0 for side, edge in sides)  # type: ignore[assignment]
        self.bias = nn.Parameter(torch.empty(prod(2 * side - 1 for side in self.window), heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.out = nn.Linear(width, width)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the queries (B, d, h, w, D) find in their windows, (B, d, h, w, D)."""
        q, k, v = (self._windows(volume) for volume in (queries, keys, values))  # (B, n, heads, T, D/heads)
        bias = self.bias[relative_positions(self.window)].permute(2, 0, 1)  # (heads, T, T)
        if any(self.shift):
            apart = ~together(self.grid, self.window, self.shift).to(bias.device)  # (n, T, T)
            bias = bias.masked_fill(apart[:, None], -torch.inf)  # (n, heads, T, T)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, n, heads, T, D/heads)
        volume = merge(found.transpose(2, 3).flatten(3), self.window, self.grid)  # (B, d, h, w, D)
        return self.out(torch.roll(volume, self.shift, dims=(1, 2, 3)))

    def _windows(self, volume: Tensor) -> Tensor:
        rolled = torch.roll(volume, [-step for step in self.shift], dims=(1, 2, 3))
        windows = partition(rolled, self.window)  # (B, n, T, D)
        return windows.view(*windows.shape[:3], self.heads, -1).transpose(2, 3)


class VolumeBlock(nn.Module):
    """Self-attention within windows and an MLP, (B, d, h, w, D) -> the same."""

    def __init__(self, width: int, heads: int, grid: Grid, window: int, shifted: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention = WindowAttention(width, heads, grid, window, shifted)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention.attend(*self.qkv(self.norm1(x)).chunk(3, dim=4))  # (B, d, h, w, D)
        return x + self.mlp(self.norm2(x))  # (B, d, h, w, D)


class SkipBlock(nn.Module):
    """Skip attention: the decoder's features are the queries, the encoder's give keys and values."""

    def __init__(self, width: int, heads: int, grid: Grid, window: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.kv = nn.Linear(width, 2 * width)
        self.attention = WindowAttention(width, heads, grid, window)
        self.mlp = MLP(width)

    def forward(self, decoded: Tensor, encoded: Tensor) -> Tensor:
        keys, values = self.kv(self.norm1(encoded)).chunk(2, dim=4)  # (B, d, h, w, D) each
        x = decoded + encoded + self.attention.attend(self.norm1(decoded), keys, values)  # (B, d, h, w, D)
        return x + self.mlp(self.norm2(x))  # (B, d, h, w, D)


class Convolved(nn.Module):
    """A convolution of tokens (B, d, h, w, D), which lie with their channels last."""

    def __init__(self, layer: nn.Conv3d | nn.ConvTranspose3d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(4, 1)).movedim(1, 4).contiguous()


class NNFormer(ModelMixin, ConfigMixin):
    """Patches (B, 1, depth, side, side) -> logits (B, L + 1, depth, side, side); in training two coarser ones follow.

    Parameters
    ----------
    organs
        L.
    patch
        Slices, and rows and columns, that it sees.
    width
        D of the finest level, doubled at each coarser one.
    heads
        Of each of the four levels.
    blocks
        Of each level, in the encoder and in the decoder.
    window
        Tokens along each side of a local window.
    """

    @register_to_config
    def __init__(self, organs: int, patch: list[int], width: int, heads: list[int], blocks: int, window: int) -> None:
        super().__init__()
        levels = token_grids((patch[0], patch[1]))
        widths = [width * 2**level for level in range(LEVELS)]
        windows = [window if level < LOCAL_LEVELS else max(grid) for level, grid in enumerate(levels)]

        # Four convolutions make tokens of voxels, two of them with strides, which together are `EMBEDDED`.
        half, whole = width // 2, width
        strides: tuple[Grid, ...] = ((2, 2, 2), (1, 1, 1), (1, 2, 2), (1, 1, 1))
        convolutions = list(zip((1, half, half, whole), (half, half, whole, whole), strides, strict=True))
        self.embedding = nn.ModuleList(Convolved(nn.Conv3d(a, b, 3, s, padding=1)) for a, b, s in convolutions)
        self.embedding_norms = nn.ModuleList(nn.LayerNorm(channels) for _, channels, _ in convolutions)

        self.encoder = nn.ModuleList(
            nn.Sequential(*(VolumeBlock(*level, shifted=bool(i % 2)) for i in range(blocks)))
            for level in zip(widths, heads, levels, windows, strict=True)
        )
        self.encoder_norms = nn.ModuleList(map(nn.LayerNorm, widths))
        self.downs = nn.ModuleList(
            nn.Sequential(nn.GELU(), nn.LayerNorm(D), Convolved(nn.Conv3d(D, 2 * D, 3, 2, padding=1)))
            for D in widths[:-1]
        )
        self.ups = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(2 * D), Convolved(nn.ConvTranspose3d(2 * D, D, 2, 2))) for D in widths[:-1]
        )
        self.skips = nn.ModuleList(
            SkipBlock(*level) for level in zip(widths[:-1], heads[:-1], levels[:-1], windows[:-1], strict=True)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*(VolumeBlock(*level, shifted=True) for _ in range(blocks - 1)))
            for level in zip(widths[:-1], heads[:-1], levels[:-1], windows[:-1], strict=True)
        )
        self.outputs = nn.ModuleList(nn.ConvTranspose3d(D, organs + 1, EMBEDDED, EMBEDDED) for D in widths[:-1])

    def forward(self, patches: Tensor) -> tuple[Tensor, ...]:
        x = patches.movedim(1, 4)  # (B, depth, side, side, 1)
        for number, (convolution, norm) in enumerate(zip(self.embedding, self.embedding_norms, strict=True), start=1):
            x = convolution(x)
            x = norm(F.gelu(x) if number < len(self.embedding) else x)  # at last (B, d, h, w, D)

        encoded = []
        for level, (stage, norm) in enumerate(zip(self.encoder, self.encoder_norms, strict=True)):
            x = stage(x)  # (B, d, h, w, D), (B, d/2, h/2, w/2, 2 D), ...
            encoded.append(norm(x))
            if level < LEVELS - 1:
                x = self.downs[level](x)

        x, logits = encoded.pop(), []
        for level in reversed(range(LEVELS - 1)):
            x = self.skips[level](self.ups[level](x), encoded[level])
            x = self.decoder[level](x)  # ..., (B, d/2, h/2, w/2, 2 D), (B, d, h, w, D)
            if self.training or level == 0:
                logits.append(self.outputs[level](x.movedim(4, 1)))  # ..., (B, L + 1, depth, side, side)
        return tuple(reversed(logits))

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> NNFormer:
        """A copy for the `wanted` organs: the output layers carried over, see `mask_head.carry_classes`."""
        copy = NNFormer.from_config({**self.config, "organs": len(wanted)})
        biases = tuple(f"outputs.{level}.bias" for level in range(LEVELS - 1))
        carried = carry_output_layers(self.state_dict(), biases, known, wanted)
        for name in (f"outputs.{level}.weight" for level in range(LEVELS - 1)):
            by_class = carried[name].transpose(0, 1)  # a transposed convolution has its classes in the second axis
            carried[name] = carry_classes(by_class, known, wanted, new=0.0).transpose(0, 1).contiguous()
        copy.load_state_dict(carried)
        return copy
