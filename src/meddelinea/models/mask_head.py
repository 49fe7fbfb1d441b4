"""The decoder's final layer, replaced by one with a channel for the background and each organ (Sec. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from meddelinea.models.layers import UNLIKELY, ResidualBlock, carry_classes


class MaskHead(ModelMixin, ConfigMixin):
    """Decoder features -> logits of the background and L organs at full resolution.

    Without `image_channels` it is one convolution, as in the paper. With them, an extension of the paper, it also sees
    the two finest levels of the image stem, because a boundary is drawn more precisely where the image can be seen:
    features and image are fused at H/8 and at H/4, where each position holds the logits of 4x4 pixels.

    Parameters
    ----------
    feature_channels, feature_factor
        The codec's: channels of the decoder's features, and how much coarser than pixels they are.
    organs
        L.
    image_channels
        Channels of the image features at H/4 and H/8, or empty.
    hidden
        Channels at H/8 and at H/4 where image features are fused.
    """

    @register_to_config
    def __init__(
        self,
        feature_channels: int = 128,
        feature_factor: int = 1,
        organs: int = 13,
        image_channels: Sequence[int] = (),
        hidden: Sequence[int] = (96, 48),
    ) -> None:
        super().__init__()
        classes = organs + 1
        if not image_channels:
            self.conv_out = nn.Conv2d(feature_channels, classes * feature_factor**2, 3, padding=1)
            self.shuffle = nn.PixelShuffle(feature_factor)
            return
        fine, coarse = image_channels
        self.fuse_coarse = nn.Conv2d(feature_channels + coarse, hidden[0], 3, padding=1)
        self.coarse_block = ResidualBlock(hidden[0])
        self.fuse_fine = nn.Conv2d(hidden[0] // 4 + fine, hidden[1], 3, padding=1)
        self.fine_block = ResidualBlock(hidden[1])
        self.norm = nn.GroupNorm(8, hidden[1])
        self.conv_out = nn.Conv2d(hidden[1], classes * 16, 3, padding=1)
        self.shuffle = nn.PixelShuffle(4)

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> MaskHead:
        """A copy for the `wanted` organs: channels of `known` ones keep their weights, see `layers.carry_classes`."""
        head: MaskHead = MaskHead.from_config({**self.config, "organs": len(wanted)})
        state = self.state_dict()
        for name, new in (("conv_out.weight", 0.0), ("conv_out.bias", UNLIKELY)):
            old = state[name].unflatten(0, (len(known) + 1, -1))  # (classes, pixels, ...): the order of PixelShuffle
            state[name] = carry_classes(old, known, wanted, new).flatten(0, 1)
        head.load_state_dict(state)
        return head

    def forward(self, features: Tensor, image_levels: Sequence[Tensor] = ()) -> Tensor:
        """Decoder features (B, C, H/f, W/f), and image features the finest first -> logits (B, L + 1, H, W)."""
        if not self.config.image_channels:
            return self.shuffle(self.conv_out(features))
        h = self.coarse_block(self.fuse_coarse(torch.cat([features, image_levels[1]], dim=1)))  # (B, hidden0, H/8, W/8)
        h = torch.cat([F.pixel_shuffle(h, 2), image_levels[0]], dim=1)
        h = F.silu(self.norm(self.fine_block(self.fuse_fine(h))))  # (B, hidden1, H/4, W/4)
        return self.shuffle(self.conv_out(h))
