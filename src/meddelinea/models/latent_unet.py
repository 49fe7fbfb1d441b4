"""Stable Diffusion's UNet over latents (Rombach et al. 2022), from diffusers: its sizes, and the text that it is given.

It stays a `UNet2DConditionModel`, though no text conditions it, so that published weights and `ControlNetModel` fit it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, arange

from meddelinea.models.presets import CHECKED, Channels, Whole

#: Tokens of the text; a single one would leave its attention nothing to choose, and its queries and keys untrained.
TOKENS = 8


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LatentUNetSizes:
    """Sizes of a UNet over latents, checked when they are made."""

    #: Channels of each resolution, the latent's own first, each half as fine as the one before.
    widths: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=8)]
    layers: Annotated[Whole, Field(ge=1, le=64)]  # residual units of each resolution
    heads: Annotated[Whole, Field(ge=1, le=1024)]  # of each attention
    groups: Annotated[Whole, Field(ge=1, le=1024)]  # of each group norm
    text_width: Annotated[Whole, Field(ge=2, le=4096, multiple_of=2)]
    #: Channels of ControlNet's convolutions over an image at its own resolution, its half, its quarter, its eighth.
    image_widths: tuple[Channels, Channels, Channels, Channels] = (16, 32, 96, 256)

    def __post_init__(self) -> None:
        for width in self.widths:
            if width % self.groups or width % self.heads:
                raise ValueError(
                    f"widths {width}; expected multiples of groups, {self.groups}, and heads, {self.heads}"
                )


UNETS: Mapping[str, LatentUNetSizes] = {
    "small": LatentUNetSizes(
        widths=(64, 96, 128), layers=1, heads=4, groups=16, text_width=64, image_widths=(8, 16, 32, 64)
    ),
    # Stable Diffusion 1.5's.
    "paper": LatentUNetSizes(widths=(320, 640, 1280, 1280), layers=2, heads=8, groups=32, text_width=768),
}


def build_unet(sizes: LatentUNetSizes, in_channels: int, out_channels: int) -> UNet2DConditionModel:
    """A UNet of these sizes with random weights: attention at each resolution but the coarsest."""
    attended = len(sizes.widths) - 1
    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=("CrossAttnDownBlock2D",) * attended + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attended,
        block_out_channels=sizes.widths,
        layers_per_block=sizes.layers,
        attention_head_dim=sizes.heads,  # diffusers' name for their number
        norm_num_groups=sizes.groups,
        cross_attention_dim=sizes.text_width,
    )


def unet_multiple(unet: UNet2DConditionModel) -> int:
    """Rows and columns of a latent are multiples of it."""
    return int(2 ** (len(unet.config.block_out_channels) - 1))


def no_text(unet: UNet2DConditionModel, like: Tensor) -> Tensor:
    """The text that the latents `like` (B, C, h, w) are given: what is left of one without words, its positions.

    Returns
    -------
    Tensor
        (B, tokens, D), the same for each image.
    """
    features = get_timestep_embedding(
        arange(TOKENS, device=like.device), unet.config.cross_attention_dim
    )  # (tokens, D)
    return features.to(like.dtype).expand(len(like), -1, -1)
