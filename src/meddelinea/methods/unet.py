"""MONAI's U-Net with residual units."""

from __future__ import annotations

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from meddelinea.methods.monai import monai_networks

RESIDUAL_UNITS = 2


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

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, slices, H, W) -> logits ((B, L + 1, H, W),)."""
        return (self.net(images),)
