"""Where transformers look: attention of control branch and base over a slice, the paper's Figure 7."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from meddelinea.benchmark.figures.page import PAGE_INCHES, TYPE_POINTS, new_page
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import InputRefusedError
from meddelinea.methods.pipeline import SlicePipeline
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.transformer import Attention

#: The most heads that stand in a line, beside the slice and their mean.
HEADS_A_LINE = 8
#: From no attention to much, in steps that are even to every eye.
COLOURS = "cividis"
#: The brightest colour stands for what this share of all places does not exceed; its square root is drawn, so that
#: weak attention is seen beside strong.
BRIGHTEST, GAMMA = 0.995, 0.5
MARK = "#D55E00"


@dataclass(frozen=True)
class BranchAttention:
    """How much each token of a slice attends to each other one in a block: (heads, T, T), rows that sum to 1."""

    name: str
    weights: NDArray[np.float32]
    grid: tuple[int, int]  # rows and columns of the T tokens


@dataclass(frozen=True, kw_only=True)
class Query:
    """A slice (H, W) in [-1, 1], and what in it is asked about: a point, and an organ, whose pixels are `inside`."""

    image: NDArray[np.float32]
    organ: str
    inside: NDArray[np.bool_]
    point: tuple[int, int]  # column and row, from the upper left

    @classmethod
    def of(
        cls, image: NDArray[np.float32], organ: str, inside: NDArray[np.bool_], point: tuple[int, int] | None = None
    ) -> Query:
        """A query whose point is the organ's innermost where None is given.

        Raises
        ------
        InputRefusedError
            If the slice has none of the organ, or the point lies outside.
        """
        rows, columns = image.shape
        if not inside.any():
            raise InputRefusedError(f"{organ}: not in this slice; name another slice or organ", parameter="organ")
        if point is None:
            row, column = np.unravel_index(ndimage.distance_transform_edt(inside).argmax(), inside.shape)
            point = int(column), int(row)
        if not (0 <= point[0] < columns and 0 <= point[1] < rows):
            raise InputRefusedError(
                f"{point[0]},{point[1]}; expected a column of 0..{columns - 1} and a row of 0..{rows - 1}",
                parameter="point",
            )
        return cls(image=image, organ=organ, inside=inside, point=point)

    def at_point(self, grid: tuple[int, int]) -> NDArray[np.float64]:
        """(T,) 1 for the token that holds the point, of a grid of tokens of so many rows and columns."""
        rows, columns = self.image.shape
        tokens = np.zeros(grid)
        tokens[self.point[1] * grid[0] // rows, self.point[0] * grid[1] // columns] = 1.0
        return tokens.ravel()

    def over_organ(self, grid: tuple[int, int]) -> NDArray[np.float64]:
        """(T,) share of the organ that each token holds; they sum to 1."""
        (rows, columns), (down, across) = self.image.shape, grid
        held = self.inside.reshape(down, rows // down, across, columns // across).sum(axis=(1, 3)).ravel()
        shares: NDArray[np.float64] = held / held.sum()
        return shares


@torch.no_grad()
def attention_of(pipeline: SlicePipeline, images: Tensor, key: NoiseKey, block: int = -1) -> list[BranchAttention]:
    """Attention in a block of each of a model's transformers, at its last sampling step.

    Parameters
    ----------
    images
        (1, slices, H, W) in [-1, 1]; see `methods.protocol.Method.segment`.
    key
        Where the noise comes from.
    block
        Counted from 0, or from the last at -1.

    Raises
    ------
    InputRefusedError
        If a transformer has no such block.
    """
    layers = {name: _layer(name, blocks, block) for name, blocks in attention_layers(pipeline).items()}
    seen: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor]) -> None:
        (seen[module],) = inputs

    with ExitStack() as hooks:  # which leave the model as it was
        for _, attention in layers.values():
            hooks.enter_context(attention.register_forward_pre_hook(keep))
        pipeline.sampler().method.segment(images.to(pipeline.device), [key])
    grid = (images.shape[2] // pipeline.multiple, images.shape[3] // pipeline.multiple)
    return [
        BranchAttention(f"{name}\n{place}", attention.weights(seen[attention])[0].cpu().numpy(), grid)
        for name, (place, attention) in layers.items()
    ]


def attention_layers(pipeline: SlicePipeline) -> dict[str, list[Attention]]:
    """The attention of each block of a model's diffusion transformers, the control branch first."""
    return {
        name: [block.attn for block in network.blocks]
        for name, kind in (("control branch", ControlDiT), ("base", DiT))
        for network in pipeline.networks
        if isinstance(network, kind)
    }


def _layer(name: str, layers: list[Attention], block: int) -> tuple[str, Attention]:
    """What a block is called, and its attention."""
    if not -len(layers) <= block < len(layers):
        raise InputRefusedError(f"block {block + 1}: the {name} has 1 to {len(layers)}", parameter="block")
    return f"block {range(len(layers))[block] + 1} of {len(layers)}", layers[block]


def attention_figure(query: Query, branches: Sequence[BranchAttention]) -> Figure:
    """A line for each branch and query, the point and the organ: the slice, the mean of the heads, and each head.

    Colours are how many times its even share a place gets, one scale for all maps.
    """
    rows, columns = query.image.shape
    maps = []
    for branch in branches:
        for name, asked in (("the point", query.at_point(branch.grid)), (query.organ, query.over_organ(branch.grid))):
            heads = np.einsum("t,hts->hs", asked, branch.weights).reshape(-1, *branch.grid) * asked.size
            maps.append((f"{branch.name}\nfrom {name}", heads))
    values = np.concatenate([heads.ravel() for _, heads in maps])
    norm = PowerNorm(GAMMA, vmin=0.0, vmax=float(np.quantile(values, BRIGHTEST)))

    across = min(HEADS_A_LINE, max(len(heads) for _, heads in maps))
    lines = [-(-len(heads) // across) for _, heads in maps]
    height = PAGE_INCHES / (2.3 + across) * rows / columns + (0.12 if max(lines) > 1 else 0.0)
    figure = new_page(sum(lines) * height + 0.75)
    axes = figure.subplots(sum(lines), 2 + across, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    line = 0
    for number, (name, heads) in enumerate(maps):
        of_organ = number % 2 == 1
        _slice(axes[line][0], query, of_organ)
        axes[line][0].set_ylabel(name, fontsize=TYPE_POINTS - 1)
        _map(axes[line][1], query, heads.mean(axis=0), norm, of_organ)
        for head, each in enumerate(heads):
            axis = axes[line + head // across][2 + head % across]
            _map(axis, query, each, norm, of_organ)
            if line == 0 or max(lines) > 1:
                axis.set_title(f"head {head + 1}", fontsize=TYPE_POINTS)
        line += lines[number]
    for axis, title in zip(axes[0], ("slice", "mean of heads"), strict=False):
        axis.set_title(title, fontsize=TYPE_POINTS)
    bar = figure.colorbar(
        ScalarMappable(norm, COLOURS), ax=axes, location="bottom", fraction=0.03, aspect=60, pad=0.01, extend="max"
    )
    bar.set_label("attention, as a multiple of an even share", fontsize=TYPE_POINTS)
    bar.ax.tick_params(labelsize=TYPE_POINTS)
    return figure


def _slice(axis: Axes, query: Query, of_organ: bool) -> None:
    """The slice, and what is asked about: a cross on the point, or the organ's outline."""
    axis.imshow(query.image, cmap="gray", vmin=-1.0, vmax=1.0)
    if of_organ:
        axis.contour(query.inside.astype(float), levels=[0.5], colors=[MARK], linewidths=0.7)
    else:
        axis.plot(*query.point, marker="+", color=MARK, markersize=5, markeredgewidth=0.9)


def _map(axis: Axes, query: Query, share: NDArray[np.float64], norm: Normalize, of_organ: bool) -> None:
    """A map of tokens over the slice."""
    _slice(axis, query, of_organ)
    rows, columns = query.image.shape
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axis.imshow(share, cmap=COLOURS, norm=norm, alpha=0.65, extent=extent, interpolation="bilinear")
