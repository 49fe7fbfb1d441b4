"""Networks that denoise the latents of masks, between a codec's encoder and decoder.

`Segmenter` is the controlled network of Fig. 2: codec, frozen DiT, Control DiT and mask head, put together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from meddelinea.models.codec import Codec, paint, palette_logits
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import MaskHead

TrainableDecoder = Literal["none", "final_layer", "all"]
#: What becomes of the DiT: the paper freezes one that was pre-trained; the others show what that is worth.
BaseWeights = Literal["frozen", "trained", "random"]


class ImageFeatures(NamedTuple):
    """What the network takes from an image, computed once however many sampling steps follow."""

    latent: Tensor  # Z_o, (B, C_o, h, w); of a network that sees pixels these, (B, 3, H, W)
    tokens: Tensor | None  # of the image stem, (B, T, D)
    levels: tuple[Tensor, ...]  # of the image stem, the finest first


class LatentSegmenter(nn.Module, ABC):
    """A network that denoises latents of masks, and the codec that makes and reads them.

    Parameters
    ----------
    colours
        (L + 1, 3) palette that masks are painted with, the background's first.
    """

    codec: Codec  # its encoder stays frozen
    #: The decoder's final layer with a channel an organ, or None: then the mask is the nearest palette colour of the
    #: pixels that the untouched decoder paints (Table 5, "training only the noise predictor").
    mask_head: MaskHead | None

    def __init__(self, colours: Tensor) -> None:
        super().__init__()
        self.palette = nn.Buffer(colours, persistent=False)

    @abstractmethod
    def forward(self, noisy: Tensor, t: Tensor, image: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Z_mt (B, C, h, w) at timesteps (B,) -> its output (B, C, h, w), and tokens (B, T, D) for the mask head."""

    @abstractmethod
    def train_networks(self, base: BaseWeights) -> None:
        """Let those of its networks be trained that are, where all are frozen; the codec and the mask head are not."""

    def freeze(self, trainable_decoder: TrainableDecoder, base: BaseWeights = "frozen") -> None:
        """Leave trainable its own networks, and of the decoder nothing, its final layer, or all (Sec. 2)."""
        self.requires_grad_(False)
        self.train_networks(base)
        if self.mask_head is not None and trainable_decoder != "none":
            self.mask_head.requires_grad_(True)
        if trainable_decoder == "all":
            for parameter in self.codec.feature_parameters():
                parameter.requires_grad_(True)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights; the sampler and the losses compute in float32 whatever it is."""
        return self.palette.dtype

    def latent_shape(self, image: ImageFeatures) -> torch.Size:
        """(B, C, h, w), of the masks' latents for images of those features."""
        return torch.Size((len(image.latent), self.codec.latent_channels, *image.latent.shape[2:]))

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Organ ids (B, H, W) -> Z_m (B, C, h, w), float32: noise is added to it in that precision."""
        return self.codec.to_latent(paint(mask, self.palette)).float()  # (B, 3, H, W) -> (B, C, h, w)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Images (B, slices, H, W) in [-1, 1] -> what the network takes from them; the codec sees the middle three."""
        latent = self.codec.to_image_latent(middle_slices(images.to(self.dtype))).detach()  # (B, C_o, h, w)
        return ImageFeatures(latent, None, ())

    def decode(self, clean: Tensor, image: ImageFeatures, tokens: Tensor) -> Tensor:
        """Clean latent Zhat_m0 (B, C, h, w) -> logits (B, L + 1, H, W): D(Zhat_m0 / s).

        A mask head that sees images sees the control branch's `tokens` too, of the pass that led to the latent.
        """
        features = self.codec.to_features(clean.to(self.dtype))  # (B, C, H/f, W/f)
        if self.mask_head is None:
            return palette_logits(self.codec.to_pixels(features), self.palette)  # (B, L + 1, H, W)
        return self.mask_head(features, image.levels, tokens).sample  # (B, L + 1, H, W)


def middle_slices(images: Tensor) -> Tensor:
    """Images (B, slices, H, W) -> the slice in the middle and its next neighbours, (B, 3, H, W)."""
    outer = (images.shape[1] - 3) // 2
    return images[:, outer : outer + 3]


class Segmenter(LatentSegmenter):
    """eps_theta(Z_mt, t, P_phi(Z_mt, Z_o, t)) between the codec's encoder and decoder.

    Parameters
    ----------
    codec, dit, control, mask_head
        Its parts; the codec's encoder and the DiT stay frozen.
    colours
        See `LatentSegmenter`.
    """

    def __init__(
        self, codec: Codec, dit: DiT, control: ControlDiT, mask_head: MaskHead | None, colours: Tensor
    ) -> None:
        super().__init__(colours)
        self.codec = codec
        self.dit = dit
        self.control = control
        self.mask_head = mask_head

    def train_networks(self, base: BaseWeights) -> None:
        """The control branch; the DiT too where the base is `trained`, but for its class embedding, of one row."""
        self.control.requires_grad_(True)
        if base == "trained":
            self.dit.requires_grad_(True)
            self.dit.y_embedder.requires_grad_(False)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """As `LatentSegmenter` has it, and what the image stem sees in all slices."""
        image = super().encode_image(images)
        if self.control.stem is None:
            return image
        tokens, levels = self.control.stem(images.to(self.dtype))  # (B, T, D), ((B, c0, H/f, W/f), ...)
        return ImageFeatures(image.latent, tokens, tuple(levels))

    def forward(self, noisy: Tensor, t: Tensor, image: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Z_mt (B, C, h, w) at timesteps (B,) -> the DiT's output, and the control branch's last tokens (B, T, D)."""
        noisy = noisy.to(self.dtype)
        condition = self.dit.condition(t)  # (B, D)
        control = self.control(noisy, image.latent, condition, image.tokens)
        return self.dit(noisy, condition, control.injections).sample, control.tokens  # (B, C, h, w), (B, T, D)
