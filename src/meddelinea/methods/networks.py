"""Networks that people would otherwise train, as MONAI has them: images in, mask logits out, saved as diffusers saves.

Their sizes are data: `widths`, the channels of each resolution from the slice's own to the coarsest, each half as fine
as the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from meddelinea.errors import UsageError
from meddelinea.methods.dynunet import DynUNet, nnunet_widths
from meddelinea.methods.unet import UNet

NetworkName = Literal["unet", "dynunet"]

#: MONAI's U-Net as its tutorials size it, with one resolution more.
UNET_WIDTHS = (32, 64, 128, 256, 512)


def build_network(name: NetworkName, organs: int, slices: int, side: int, sizes: Mapping[str, Any]) -> UNet | DynUNet:
    """A network with random weights.

    Parameters
    ----------
    name
        `unet`, or `dynunet`: nnU-Net's architecture.
    organs
        L, behind the channels 1..L of its logits.
    slices
        Channels of an image: a slice and its neighbours.
    side
        Rows and columns of the smallest slices that it is trained on.
    sizes
        `widths` in place of the network's own; nothing else.

    Raises
    ------
    UsageError
        If a size is unknown, the slices cannot be halved as often as the widths ask for, or MONAI is absent.
    """
    unknown = [size for size in sizes if size != "widths"]
    if unknown:
        raise UsageError(f"network '{name}' has no size {', '.join(unknown)}; known: widths")
    widths = list(sizes.get("widths", UNET_WIDTHS if name == "unet" else nnunet_widths(side)))
    if len(widths) < 2 or side % 2 ** (len(widths) - 1):
        raise UsageError(f"widths {widths}: slices of {side} pixels cannot be halved {len(widths) - 1} times")
    return UNet(organs, slices, widths) if name == "unet" else DynUNet(organs, slices, widths)
