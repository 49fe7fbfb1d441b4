"""The decoder's final layer, replaced by one with a channel for the background and each organ (Sec. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from meddelinea.models.convolutions import ConvUnit

#: Logit of an organ that a network does not know yet.
UNLIKELY = -5.0


def carry_classes(old: Tensor, known: Sequence[str], wanted: Sequence[str], new: float) -> Tensor:
    """Rows of an output layer for other organs: (len(known) + 1, ...) -> (len(wanted) + 1, ...), the background first.

    An organ of both keeps its row; one that is not known gets the value `new`, zero for weights and `UNLIKELY` for a
    bias, so that it is not found anywhere before it is learnt.
    """
    rows = [old[0]]
    for name in wanted:
        rows.append(old[1 + known.index(name)] if name in known else torch.full_like(old[0], new))
    return torch.stack(rows)


class MaskHead(ModelMixin, ConfigMixin):
    """Decoder features -> logits of the background and L organs at full resolution.

    Without `image_channels` it is one convolution, as in the paper. With them, an extension of the paper, it is the
    decoder of a U-Net: decoder features and the control branch's tokens at H/8, fused there and at each finer level
    with the image stem's features, because a boundary is drawn more precisely where the image can be seen. At the
    finest level each position holds the logits of a square of pixels.

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
        D; the tokens are those of patches of 2x2 latent pixels, at H/16.
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
        self.token_norm = nn.LayerNorm(token_width)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2) for fine, coarse in pairwise(hidden))
        below = [*hidden[:-1], feature_channels + token_width // 4]  # what comes from the coarser level
        self.units = nn.ModuleList(
            ConvUnit(coarse + image, width) for coarse, image, width in zip(below, image_channels, hidden, strict=True)
        )
        finest = feature_factor // 2 ** (len(hidden) - 1)
        self.conv_out = nn.Conv2d(hidden[0], classes * finest**2, 1)
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
        grid = (features.shape[2] // 2, features.shape[3] // 2)
        coarse = self.token_norm(tokens).transpose(1, 2).unflatten(2, grid)  # (B, D, H/16, W/16)
        h = torch.cat([features, F.pixel_shuffle(coarse, 2), image_levels[len(self.up)]], dim=1)
        h = self.units[-1](h)
        for level in reversed(range(len(self.up))):
            h = self.units[level](torch.cat([self.up[level](h), image_levels[level]], dim=1))
        return self.shuffle(self.conv_out(h))
