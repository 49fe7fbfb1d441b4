"""The decoder's final layer, replaced by one with a channel for the background and each organ (Sec. 2).

`PlainMaskHead` is the paper's one convolution; `GuidedMaskHead`, an extension, sees the image too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

from meddelinea.models.codec import SHARPNESS, Codec
from meddelinea.models.convolutions import ConvUnit

#: Logit of an organ that a network does not know yet.
UNLIKELY = -5.0

Head = TypeVar("Head", bound="PlainMaskHead | GuidedMaskHead")


def carry_classes(old: Tensor, known: Sequence[str], wanted: Sequence[str], *, new: float) -> Tensor:
    """Rows of an output layer for other organs: (len(known) + 1, ...) -> (len(wanted) + 1, ...), the background first.

    An organ of both keeps its row; one that is not known gets the value `new`, zero for weights and `UNLIKELY` for a
    bias, so that it is not found anywhere before it is learnt.
    """
    rows = [old[0]]
    for name in wanted:
        rows.append(old[1 + known.index(name)] if name in known else torch.full_like(old[0], new))
    return torch.stack(rows)


def carry_output_layers(
    state: Mapping[str, Tensor], layers: tuple[str, ...], known: Sequence[str], wanted: Sequence[str]
) -> dict[str, Tensor]:
    """A network's weights for other organs: its output layers carried over, the others as they are.

    Parameters
    ----------
    state
        The weights by name.
    layers
        How the names of the output layers' weights begin.
    known, wanted
        See `carry_classes`.
    """
    carried = dict(state)
    for name, value in state.items():
        if name.startswith(layers):
            new = UNLIKELY if name.endswith("bias") else 0.0
            carried[name] = carry_classes(value, known, wanted, new=new)
    return carried


class PlainMaskHead(ModelMixin, ConfigMixin):
    """One convolution over the decoder's features, as in the paper.

    Parameters
    ----------
    feature_channels, feature_factor
        The codec's: channels of the decoder's features, and how much coarser than pixels they are.
    organs
        L.
    """

    @register_to_config
    def __init__(self, feature_channels: int, feature_factor: int, organs: int) -> None:
        super().__init__()
        self.conv_out = nn.Conv2d(feature_channels, (organs + 1) * feature_factor**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(feature_factor)

    @classmethod
    def of_codec(cls, codec: Codec, colours: Tensor) -> PlainMaskHead:
        """The codec's own final convolution, rewritten to give organs in place of the colours that they are painted in.

        The squared distance of a pixel W h + b to colour c is a linear function of the features h but for a term that
        is the same for all colours, so that one convolution has the softmax of `palette_logits`: row c of its weights
        is 2 c W, and its bias 2 c b - |c|^2, times `SHARPNESS`.

        Parameters
        ----------
        codec
            Of that kind and those weights.
        colours
            (L + 1, 3), the background's first.
        """
        last = codec.final_convolution()
        organs = len(colours) - 1
        head = cls(feature_channels=codec.feature_channels, feature_factor=codec.feature_factor, organs=organs)
        weight, bias = last.weight.view(3, -1, *last.weight.shape[1:]), cast(Tensor, last.bias).view(3, -1)
        with torch.no_grad():
            rows = torch.einsum("kc,cs...->ks...", 2.0 * colours.to(weight), weight)  # (L + 1, f^2, C, 3, 3)
            norms = colours.to(bias).square().sum(dim=1, keepdim=True)  # (L + 1, 1)
            head.conv_out.weight.copy_(SHARPNESS * rows.flatten(0, 1))
            head.get_parameter("conv_out.bias").copy_(SHARPNESS * (2.0 * colours.to(bias) @ bias - norms).flatten())
        return head

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> PlainMaskHead:
        """A copy for the `wanted` organs: channels of `known` ones keep their weights, see `carry_classes`."""
        copy = PlainMaskHead.from_config(self.config, organs=len(wanted))
        return _carried(self, copy, known=known, wanted=wanted)

    def forward(
        self, features: Tensor, image_levels: Sequence[Tensor], tokens: Tensor, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Decoder features (B, C, H/f, W/f) -> logits (B, L + 1, H, W); it looks at nothing else."""
        logits = self.shuffle(self.conv_out(features))  # (B, (L + 1) f^2, H/f, W/f) -> (B, L + 1, H, W)
        return DecoderOutput(sample=logits) if return_dict else (logits,)


class GuidedMaskHead(ModelMixin, ConfigMixin):
    """The decoder of a U-Net over decoder features and the control branch's tokens, an extension of the paper.

    Both are fused at H/8, and there and at each finer level with the image stem's features, because a boundary is drawn
    more precisely where the image can be seen. At the finest level each position holds the logits of a square of
    pixels.

    Parameters
    ----------
    feature_channels, feature_factor
        The codec's: channels of the decoder's features, and how much coarser than pixels they are.
    organs
        L.
    image_channels
        Channels of the image features from the finest level to that at H/8.
    hidden
        Channels of the fused features of each of these levels.
    token_width
        D; the tokens are those of patches of 2x2 latent pixels, at H/16.
    """

    @register_to_config
    def __init__(
        self,
        feature_channels: int,
        feature_factor: int,
        organs: int,
        image_channels: Sequence[int],
        hidden: Sequence[int],
        token_width: int,
    ) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(token_width)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2) for fine, coarse in pairwise(hidden))
        below = [*hidden[:-1], feature_channels + token_width // 4]  # what comes from the coarser level
        self.units = nn.ModuleList(
            ConvUnit(coarse + image, width) for coarse, image, width in zip(below, image_channels, hidden, strict=True)
        )
        finest = feature_factor // 2 ** (len(hidden) - 1)
        self.conv_out = nn.Conv2d(hidden[0], (organs + 1) * finest**2, 1)
        self.shuffle = nn.PixelShuffle(finest)

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> GuidedMaskHead:
        """A copy for the `wanted` organs: channels of `known` ones keep their weights, see `carry_classes`."""
        copy = GuidedMaskHead.from_config(self.config, organs=len(wanted))
        return _carried(self, copy, known=known, wanted=wanted)

    def forward(
        self, features: Tensor, image_levels: Sequence[Tensor], tokens: Tensor, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Decoder features (B, C, H/8, W/8), image features the finest first, and tokens (B, T, D) of patches of 2x2
        latent pixels -> logits (B, L + 1, H, W).
        """
        # Fuse at H/8, where four channels of a token stand for its four latent pixels.
        grid = (features.shape[2] // 2, features.shape[3] // 2)
        coarse = self.token_norm(tokens).transpose(1, 2).unflatten(2, grid)  # (B, D, H/16, W/16)
        coarse = F.pixel_shuffle(coarse, 2)  # (B, D/4, H/8, W/8)
        h = torch.cat([features, coarse, image_levels[len(self.up)]], dim=1)  # (B, C + D/4 + c, H/8, W/8)
        h = self.units[-1](h)  # (B, hidden, H/8, W/8)

        # Up to the finest level.
        for level in reversed(range(len(self.up))):
            h = torch.cat([self.up[level](h), image_levels[level]], dim=1)  # (B, hidden + c, H/4, W/4), ...
            h = self.units[level](h)  # (B, hidden, H/4, W/4), ...
        logits = self.shuffle(self.conv_out(h))  # (B, (L + 1) s^2, H/s, W/s) -> (B, L + 1, H, W)
        return DecoderOutput(sample=logits) if return_dict else (logits,)


MaskHead = PlainMaskHead | GuidedMaskHead


def _carried(head: Head, copy: Head, *, known: Sequence[str], wanted: Sequence[str]) -> Head:
    """`copy`, with the weights of `head` but for the classes of its last convolution, which are carried over."""
    state = head.state_dict()
    for name, new in (("conv_out.weight", 0.0), ("conv_out.bias", UNLIKELY)):
        old = state[name].unflatten(0, (len(known) + 1, -1))  # (classes, pixels, ...): the order of PixelShuffle
        state[name] = carry_classes(old, known, wanted, new=new).flatten(0, 1)
    copy.load_state_dict(state)
    return copy
