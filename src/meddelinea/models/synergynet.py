"""SynergyNet (Gorade et al. 2024): a U-Net whose bottleneck joins discrete codes and continuous features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from meddelinea.models.convolutions import ConvUnit
from meddelinea.models.mask_head import carry_output_layers
from meddelinea.models.transformer import MLP

#: Weight of the loss that draws features to their codes, beside that which draws codes to features (VQ-VAE).
COMMITMENT = 0.25


class Quantised(NamedTuple):
    """Tokens as a `Quantiser` gives them back."""

    tokens: Tensor  # (B, T, D) the nearest codes, whose gradient passes to the tokens unchanged
    codes: Tensor  # (B, T) which they are
    loss: Tensor  # scalar


class Quantiser(nn.Module):
    """Each token replaced by the nearest of K learnt codes, (B, T, D) -> `Quantised` (van den Oord et al. 2017)."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(codes, width))  # as spread out as normalised tokens are

    def forward(self, tokens: Tensor) -> Quantised:
        tokens = tokens.float()
        # A token's squared distances to all codes, less its own square, which is the same for all.
        distances = self.codebook.square().sum(dim=1) - 2.0 * tokens @ self.codebook.T  # (B, T, K)
        codes = distances.argmin(dim=2)  # (B, T)
        nearest = self.codebook[codes]  # (B, T, D)
        loss = F.mse_loss(nearest, tokens.detach()) + COMMITMENT * F.mse_loss(tokens, nearest.detach())
        return Quantised(tokens + (nearest - tokens).detach(), codes, loss)


class DisConX(nn.Module):
    """The bottleneck: codes look up continuous features by cross-attention, and both are joined.

    (B, D, h, w) -> the same, and the loss of the quantiser.
    """

    def __init__(self, width: int, heads: int, codes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.quantiser = Quantiser(codes, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.join = nn.Linear(2 * width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        continuous = self.norm(features.flatten(2).transpose(1, 2))  # (B, T, D)
        discrete, _, loss = self.quantiser(continuous)  # (B, T, D), (B, T), scalar
        found, _ = self.attention(discrete, continuous, continuous, need_weights=False)  # (B, T, D)
        joined = self.join(torch.cat([discrete + found, continuous], dim=2))  # (B, T, D)
        joined = joined + self.mlp(self.mlp_norm(joined))  # (B, T, D)
        return features + joined.transpose(1, 2).unflatten(2, features.shape[2:]), loss  # (B, D, h, w), scalar


class SynergyNet(ModelMixin, ConfigMixin):
    """An encoder and a decoder of residual units with skips between them, and `DisConX` at the coarsest resolution.

    Parameters
    ----------
    organs
        L.
    slices
        Channels of an image: a slice and its neighbours.
    widths
        Channels of each resolution, the slice's own first.
    heads
        Of the cross-attention.
    codes
        K, the size of the codebook.
    """

    @register_to_config
    def __init__(self, organs: int, slices: int, widths: list[int], heads: int, codes: int) -> None:
        super().__init__()
        steps = list(pairwise(widths))  # (finer, coarser)
        self.encoder = nn.ModuleList([ConvUnit(slices, widths[0])])
        self.encoder.extend(ConvUnit(fine, coarse, stride=2) for fine, coarse in steps)
        self.bottleneck = DisConX(widths[-1], heads, codes)
        self.decoder = nn.ModuleList(ConvUnit(coarse + fine, fine) for fine, coarse in reversed(steps))
        self.head = nn.Conv2d(widths[0], organs + 1, 1)

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return int(2 ** (len(self.config.widths) - 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, slices, H, W) -> logits (B, L + 1, H, W), and the quantiser's loss."""
        h, skips = images, []
        for unit in self.encoder:
            h = unit(h)  # (B, w0, H, W), (B, w1, H/2, W/2), ...
            skips.append(h)
        h, loss = self.bottleneck(skips.pop())  # the coarsest
        for unit, skip in zip(self.decoder, reversed(skips), strict=True):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = unit(torch.cat([h, skip], dim=1))  # ..., (B, w1, H/2, W/2), (B, w0, H, W)
        return self.head(h), loss  # (B, L + 1, H, W), scalar

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> SynergyNet:
        """A copy for the `wanted` organs: the output layer carried over, see `mask_head.carry_classes`."""
        copy = SynergyNet.from_config({**self.config, "organs": len(wanted)})
        copy.load_state_dict(carry_output_layers(self.state_dict(), ("head.",), known, wanted))
        return copy
