"""Masks as codes: a codebook over a codec's latents, and the transformer that names codes (Gu et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from meddelinea.models.dit import FinalLayer
from meddelinea.models.presets import CHECKED, Whole
from meddelinea.models.transformer import DiTBlock, PatchEmbedder, TimestepEmbedder, check_width

#: Weight of the distance from codes to latents beside that from latents to codes.
UNUSED = 0.01


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class VQDiffusionSizes:
    """Sizes of a codebook and the transformer over its codes, checked when they are made."""

    codes: Annotated[Whole, Field(ge=2, le=65_536)]
    width: Annotated[Whole, Field(ge=4, le=8192, multiple_of=4)]
    heads: Annotated[Whole, Field(ge=1, le=1024)]
    depth: Annotated[Whole, Field(ge=1, le=256)]
    #: Rows and columns of the slices it is trained at.
    resolution: Annotated[Whole, Field(ge=8, le=4096, multiple_of=8)] = 256

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads")


#: Of the published model the number of codes, after those that are never used, and the depth that comes nearest to the
#: paper's Table 4.
VQDIFFUSION_SIZES: Mapping[str, VQDiffusionSizes] = {
    "small": VQDiffusionSizes(codes=512, width=128, heads=4, depth=4, resolution=128),
    "paper": VQDiffusionSizes(codes=2886, width=1024, heads=16, depth=18),
}


class Codebook(ModelMixin, ConfigMixin):
    """K vectors that stand for latents of masks, each position's nearest for it.

    Parameters
    ----------
    codes
        K.
    latent_channels
        C.
    """

    @register_to_config
    def __init__(self, codes: int, latent_channels: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(codes, latent_channels))  # latents have unit variance

    def codes(self, latent: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> the nearest code of each position, (B, h, w)."""
        return self._distances(latent).argmin(dim=1).view(len(latent), *latent.shape[2:])

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> the latents that they stand for, (B, C, h, w)."""
        return self.vectors[codes].permute(0, 3, 1, 2)  # (B, C, h, w)

    def loss(self, latent: Tensor) -> Tensor:
        """Mean squared distance from each latent to its nearest code, and a little of that from codes to latents.

        The first is the codebook's loss of VQ-VAE, over an encoder that is frozen. The second draws in codes that are
        nobody's nearest, and that the first would leave where they are.
        """
        distances = self._distances(latent)  # (B h w, K)
        return distances.amin(dim=1).mean() + UNUSED * distances.amin(dim=0).mean()

    def _distances(self, latent: Tensor) -> Tensor:
        points = latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1]).float()  # (B h w, C)
        vectors = self.vectors.float()  # (K, C)
        with torch.autocast(points.device.type, enabled=False):
            squares = points.square().sum(1, keepdim=True) + vectors.square().sum(1)  # (B h w, K)
            return torch.addmm(squares, points, vectors.T, alpha=-2.0).clamp(min=0.0)  # (B h w, K)


class CodeTransformer(ModelMixin, ConfigMixin):
    """Noisy codes and an image's latent -> logits of the clean codes, by adaLN-zero blocks over one token a position.

    Parameters
    ----------
    codes
        K; [MASK] is one more.
    image_channels
        C_o, of the image's latent, which is added to each position's code.
    latent_size
        Side of the square latent that the weights are trained at; positions of others are interpolated.
    width, depth, heads
        D, blocks, attention heads.
    """

    _supports_gradient_checkpointing = True  # its blocks do, so diffusers' switch sets theirs

    @register_to_config
    def __init__(self, codes: int, image_channels: int, latent_size: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        check_width(width, heads)
        self.code_embedder = nn.Embedding(codes + 1, width)
        nn.init.normal_(self.code_embedder.weight, std=0.5)
        self.x_embedder = PatchEmbedder(image_channels, 1, width, base=latent_size)
        self.t_embedder = TimestepEmbedder(width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        for block in self.blocks:
            cast(DiTBlock, block).open_gates()
        self.final_layer = FinalLayer(width, 1, codes)

    def forward(self, noisy: Tensor, t: Tensor, image_latent: Tensor) -> Tensor:
        """Noisy codes (B, h, w) at times (B,), or one for all, and Z_o (B, C_o, h, w) -> logits (B, K, h w)."""
        condition = self.t_embedder(t)  # (B, D)
        x = self.code_embedder(noisy.flatten(1)) + self.x_embedder(image_latent)  # (B, T, D)
        for block in self.blocks:
            _, x = block(x, condition)  # (B, T, D)
        return self.final_layer(x, condition).mT  # (B, K, T)
