"""nnU-Net's architecture in 2D and 3D, from MONAI's DynUNet (Isensee et al., Nature Methods 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, Self

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from meddelinea.methods.network import NetworkPipeline, Widths, check_side, chosen_sizes, monai_networks
from meddelinea.methods.protocol import Recipe
from meddelinea.models.mask_head import carry_output_layers
from meddelinea.models.presets import CHECKED

#: nnU-Net's rules in 2D: 32 channels, doubled at each resolution up to 512, halved down to 4 pixels.
NARROWEST, WIDEST, COARSEST = 32, 512, 4


def nnunet_widths(side: int) -> tuple[int, ...]:
    """Channels of each resolution that nnU-Net takes for slices of `side` x `side` pixels; 6 of them for 128."""
    widths = [NARROWEST]
    while side >= 2 * COARSEST:
        side //= 2
        widths.append(min(2 * widths[-1], WIDEST))
    return tuple(widths)


@dataclass(frozen=True, config=CHECKED)
class DynUNetSizes:
    """Sizes of a `DynUNet`, see there."""

    widths: Widths | None = None  # those of `nnunet_widths` where None


class DynUNetBase(ModelMixin, ConfigMixin):
    """The network of `monai.networks.nets.DynUNet`: 3x3 convolutions, instance norm, leaky ReLU, several outputs.

    It is put together from MONAI's blocks and not taken whole: MONAI's class scales the coarse logits up to full size,
    where nnU-Net compares them with a mask scaled down, and it can be neither saved by safetensors (it holds each block
    twice) nor loaded by diffusers (which puts functions that return nothing in place of PyTorch's initialisers).
    """

    def assemble(self, channels: int, organs: int, widths: list[int], strides: Sequence[tuple[int, ...]]) -> None:
        """Make the layers: of `channels` in, of `widths` at each resolution, and of the strides between these."""
        blocks = monai_networks().blocks
        norm, dims = ("INSTANCE", {"affine": True}), len(strides[0])
        steps = list(zip(pairwise(widths), strides, strict=True))  # (finer, coarser), stride
        self.input_block = blocks.UnetBasicBlock(dims, channels, widths[0], 3, 1, norm)
        self.downsamples = nn.ModuleList(blocks.UnetBasicBlock(dims, a, b, 3, s, norm) for (a, b), s in steps[:-1])
        (finer, coarser), last = steps[-1]
        self.bottleneck = blocks.UnetBasicBlock(dims, finer, coarser, 3, last, norm)
        self.upsamples = nn.ModuleList(blocks.UnetUpBlock(dims, b, a, 3, s, s, norm) for (a, b), s in reversed(steps))
        self.output_block = blocks.UnetOutBlock(dims, widths[0], organs + 1)
        # Of the decoder's resolutions the coarsest has no head: nnU-Net weighs its loss 0.
        self.coarse = nn.ModuleList(blocks.UnetOutBlock(dims, width, organs + 1) for width in widths[1:-2])
        # nnU-Net's, and MONAI's own: variance kept behind a leaky ReLU of slope 0.01.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, slices, H, W) -> logits (B, L + 1, H, W); in training those at H/2, H/4, ... follow.

        In 3D the same with a depth before H.
        """
        skips = [self.input_block(images)]  # (B, w0, H, W)
        for downsample in self.downsamples:
            skips.append(downsample(skips[-1]))  # (B, w1, H/2, W/2), ...
        decoded = [self.bottleneck(skips[-1])]  # the coarsest
        for upsample, skip in zip(self.upsamples, reversed(skips), strict=True):
            decoded.append(upsample(decoded[-1], skip))  # ..., (B, w1, H/2, W/2), (B, w0, H, W)
        finest, *coarser = reversed(decoded[1:])
        logits = self.output_block(finest)  # (B, L + 1, H, W)
        if not self.training:
            return (logits,)
        # The coarsest feature has no head.
        return (logits, *(head(feature) for head, feature in zip(self.coarse, coarser, strict=False)))

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> Self:
        """A copy for the `wanted` organs: each output layer carried over, see `mask_head.carry_classes`."""
        copy: Self = type(self).from_config({**self.config, "organs": len(wanted)})
        copy.load_state_dict(carry_output_layers(self.state_dict(), ("output_block.", "coarse."), known, wanted))
        return copy


class DynUNet(DynUNetBase):
    """nnU-Net's architecture in 2D.

    Parameters
    ----------
    organs
        L.
    slices
        Channels of an image: a slice and its neighbours.
    widths
        Channels of each resolution, the slice's own first; at least two.
    """

    @register_to_config
    def __init__(self, organs: int, slices: int, widths: list[int]) -> None:
        super().__init__()
        self.assemble(slices, organs, widths, strides=[(2, 2)] * (len(widths) - 1))

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return int(2 ** (len(self.config.widths) - 1))


class DynUNetPipeline(NetworkPipeline):
    """nnU-Net's architecture over 2D slices."""

    known_parts = MappingProxyType({"network": (DynUNet,)})

    #: nnU-Net sizes itself by the slices, whatever the preset.
    presets: ClassVar[Mapping[str, DynUNetSizes]] = {"small": DynUNetSizes(), "paper": DynUNetSizes()}

    @classmethod
    def build(cls, recipe: Recipe) -> DynUNet:
        widths = chosen_sizes(cls.presets, recipe.preset, recipe.sizes).widths or nnunet_widths(recipe.side)
        check_side(recipe.side, len(widths) - 1)
        return DynUNet(organs=len(recipe.organs), slices=recipe.slices, widths=list(widths))
