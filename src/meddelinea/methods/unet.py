"""MONAI's U-Net with residual units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic.dataclasses import dataclass
from torch import Tensor

from meddelinea.methods.network import NetworkPipeline, Widths, check_side, chosen_sizes, monai_networks
from meddelinea.methods.protocol import Recipe
from meddelinea.models.mask_head import UNLIKELY
from meddelinea.models.presets import CHECKED

RESIDUAL_UNITS = 2
#: The last two layers, the only ones that have a channel a class: an upsampling and a residual unit behind it.
UPSAMPLING, UNIT = "net.model.2.0.conv", "net.model.2.1.conv.unit0.conv"


@dataclass(frozen=True, config=CHECKED)
class UNetSizes:
    """Sizes of a `UNet`, see there."""

    widths: Widths


class UNet(ModelMixin, ConfigMixin):
    """`monai.networks.nets.UNet` in 2D: strided convolutions, two residual units a resolution, instance norm, PReLU.

    Parameters
    ----------
    organs
        L.
    slices
        Channels of an image: a slice and its neighbours.
    widths
        Channels of each resolution, the slice's own first.
    """

    @register_to_config
    def __init__(self, organs: int, slices: int, widths: list[int]) -> None:
        super().__init__()
        self.net = monai_networks().nets.UNet(
            spatial_dims=2,
            in_channels=slices,
            out_channels=organs + 1,
            channels=widths,
            strides=[2] * (len(widths) - 1),
            num_res_units=RESIDUAL_UNITS,
            norm="INSTANCE",
        )

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return int(2 ** (len(self.config.widths) - 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, slices, H, W) -> logits ((B, L + 1, H, W),)."""
        return (self.net(images),)

    @torch.no_grad()
    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> UNet:
        """A copy for the `wanted` organs: `known` ones keep their weights, new ones are `UNLIKELY` everywhere.

        The last residual unit mixes the channels of all classes: those that stay have the logits that they had as long
        as no organ is dropped.
        """
        copy = UNet(organs=len(wanted), slices=self.config.slices, widths=self.config.widths)
        by_class = [f"{layer}.{kind}" for layer in (UPSAMPLING, UNIT) for kind in ("weight", "bias")]
        copy.load_state_dict({k: v for k, v in self.state_dict().items() if k not in by_class}, strict=False)
        pairs = [(0, 0), *((1 + i, 1 + known.index(name)) for i, name in enumerate(wanted) if name in known)]
        new, old = (torch.tensor(channels) for channels in zip(*pairs, strict=True))

        # A new organ's features are drawn at random: behind zeros, instance norm would multiply gradients by 300.
        ours, theirs = self.get_submodule(UPSAMPLING), copy.get_submodule(UPSAMPLING)
        theirs.weight[:, new] = ours.weight[:, old]
        theirs.bias[new] = ours.bias[old]

        # The unit adds what it computes to its input; minus one at its centre takes the features away again.
        ours, theirs = self.get_submodule(UNIT), copy.get_submodule(UNIT)
        theirs.weight.zero_()
        theirs.weight[:, :, 1, 1].fill_diagonal_(-1.0)
        theirs.bias.fill_(UNLIKELY)
        theirs.weight[new[:, None], new] = ours.weight[old[:, None], old]
        theirs.bias[new] = ours.bias[old]
        return copy


class UNetPipeline(NetworkPipeline):
    """MONAI's U-Net over 2D slices."""

    known_parts = MappingProxyType({"network": (UNet,)})
    presets: ClassVar[Mapping[str, UNetSizes]] = {
        # MONAI's U-Net as its tutorials size it, with one resolution more.
        "small": UNetSizes(widths=(32, 64, 128, 256, 512)),
        # Wider by 9/4: 33 M parameters, those of the paper, which names no widths.
        "paper": UNetSizes(widths=(72, 144, 288, 576, 1152)),
    }

    @classmethod
    def build(cls, recipe: Recipe) -> UNet:
        widths = chosen_sizes(cls.presets, recipe.preset, recipe.sizes).widths
        check_side(recipe.side, len(widths) - 1)
        return UNet(organs=len(recipe.organs), slices=recipe.slices, widths=list(widths))
