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
    the finest levels of the image stem, because a boundary is drawn more precisely where the image can be seen:
    features and image are fused at H/8 and at each finer level, down to the finest, where each position holds the
    logits of a square of pixels.

    Parameters
    ----------
    feature_channels, feature_factor
        The codec's: channels of the decoder's features, and how much coarser than pixels they are.
    organs
        L.
    image_channels
        Channels of the image features from the finest level to that at H/8, or empty.
    hidden
        Channels of the fused features of each of these levels.
    token_width
        D, where the head also sees the control branch's tokens, at H/16; 0: it does not.
    """

    @register_to_config
    def __init__(
        self,
        feature_channels: int = 128,
        feature_factor: int = 1,
        organs: int = 13,
        image_channels: Sequence[int] = (),
        hidden: Sequence[int] = (48, 96),
        token_width: int = 0,
    ) -> None:
        super().__init__()
        classes = organs + 1
        if not image_channels:
            self.conv_out = nn.Conv2d(feature_channels, classes * feature_factor**2, 3, padding=1)
            self.shuffle = nn.PixelShuffle(feature_factor)
            return
        coarsest = feature_channels
        if token_width:
            self.token_norm = nn.LayerNorm(token_width)
            coarsest += token_width // 4
        above = [*(width // 4 for width in hidden[1:]), coarsest]  # what comes from the coarser level
        self.fuse = nn.ModuleList(
            nn.Conv2d(below + image, width, 3, padding=1)
            for below, image, width in zip(above, image_channels, hidden, strict=True)
        )
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in hidden)
        self.norm = nn.GroupNorm(8, hidden[0])
        finest = feature_factor // 2 ** (len(hidden) - 1)
        self.conv_out = nn.Conv2d(hidden[0], classes * finest**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(finest)

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> MaskHead:
        """A copy for the `wanted` organs: channels of `known` ones keep their weights, see `layers.carry_classes`."""
        head: MaskHead = MaskHead.from_config({**self.config, "organs": len(wanted)})
        state = self.state_dict()
        for name, new in (("conv_out.weight", 0.0), ("conv_out.bias", UNLIKELY)):
            old = state[name].unflatten(0, (len(known) + 1, -1))  # (classes, pixels, ...): the order of PixelShuffle
            state[name] = carry_classes(old, known, wanted, new).flatten(0, 1)
        head.load_state_dict(state)
        return head

    def forward(self, features: Tensor, image_levels: Sequence[Tensor], tokens: Tensor) -> Tensor:
        """Decoder features (B, C, H/f, W/f), image features the finest first, and tokens (B, T, D) of patches of 2x2
        latent pixels -> logits (B, L + 1, H, W).
        """
        if not self.config.image_channels:
            return self.shuffle(self.conv_out(features))
        h = features
        if self.config.token_width:
            grid = (features.shape[2] // 2, features.shape[3] // 2)
            coarse = self.token_norm(tokens).transpose(1, 2).unflatten(2, grid)  # (B, D, H/16, W/16)
            h = torch.cat([h, F.pixel_shuffle(coarse, 2)], dim=1)
        levels = list(zip(self.fuse, self.blocks, image_levels, strict=False))  # coarser ones belong to the tokens
        for fuse, block, image in reversed(levels):
            if h.shape[2] < image.shape[2]:
                h = F.pixel_shuffle(h, 2)
            h = block(fuse(torch.cat([h, image], dim=1)))
        return self.shuffle(self.conv_out(F.silu(self.norm(h))))
