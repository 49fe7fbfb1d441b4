"""The controlled network of Fig. 2: codec, frozen DiT, Control DiT and mask head, put together."""

from __future__ import annotations

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

    latent: Tensor  # Z_o, (B, C_o, h, w)
    tokens: Tensor | None  # of the image stem, (B, T, D)
    levels: tuple[Tensor, ...]  # of the image stem, the finest first

    def of(self, which: Tensor) -> ImageFeatures:
        """Those of some of the images, `which` (B,) bool."""
        tokens = None if self.tokens is None else self.tokens[which]
        return ImageFeatures(self.latent[which], tokens, tuple(level[which] for level in self.levels))


class Segmenter(nn.Module):
    """eps_theta(Z_mt, t, P_phi(Z_mt, Z_o, t)) between the codec's encoder and decoder.

    Parameters
    ----------
    codec, dit, control
        Its parts; the codec's encoder and the DiT stay frozen.
    mask_head
        The decoder's final layer with a channel an organ, or None: then the mask is the nearest palette colour of the
        pixels that the untouched decoder paints (Table 5, "training only the noise predictor").
    colours
        (L + 1, 3) palette that masks are painted with, the background's first.
    """

    def __init__(
        self, codec: Codec, dit: DiT, control: ControlDiT, mask_head: MaskHead | None, colours: Tensor
    ) -> None:
        super().__init__()
        self.codec = codec
        self.dit = dit
        self.control = control
        self.mask_head = mask_head
        self.palette = nn.Buffer(colours, persistent=False)

    def latent_shape(self, image: ImageFeatures) -> torch.Size:
        """(B, C, h, w), of the masks' latents for images of those features."""
        return torch.Size((len(image.latent), self.codec.latent_channels, *image.latent.shape[2:]))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights; the sampler and the losses compute in float32 whatever it is."""
        return self.control.zero_conv.weight.dtype

    def freeze(self, trainable_decoder: TrainableDecoder, base: BaseWeights = "frozen") -> None:
        """Leave trainable the control branch, and of the decoder nothing, its final layer, or all (Sec. 2).

        The DiT is trained too where the base is `trained`, but for its class embedding, which is asked for one row.
        """
        self.requires_grad_(False)
        self.control.requires_grad_(True)
        if base == "trained":
            self.dit.requires_grad_(True)
            self.dit.y_embedder.requires_grad_(False)
        if self.mask_head is not None and trainable_decoder != "none":
            self.mask_head.requires_grad_(True)
        if trainable_decoder == "all":
            for parameter in self.codec.feature_parameters():
                parameter.requires_grad_(True)

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Organ ids (B, H, W) -> Z_m (B, C, h, w), float32: noise is added to it in that precision."""
        return self.codec.to_latent(paint(mask, self.palette)).float()  # (B, 3, H, W) -> (B, C, h, w)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Images (B, slices, H, W) in [-1, 1] -> what the network takes from them; the codec sees the middle three."""
        images = images.to(self.dtype)
        outer = (images.shape[1] - 3) // 2
        latent = self.codec.to_image_latent(images[:, outer : outer + 3]).detach()  # (B, C_o, h, w)
        if self.control.stem is None:
            return ImageFeatures(latent, None, ())
        tokens, levels = self.control.stem(images)  # (B, T, D), ((B, c0, H/f, W/f), (B, c1, H/2f, W/2f), ...)
        return ImageFeatures(latent, tokens, tuple(levels))

    def forward(self, noisy: Tensor, t: Tensor, image: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Z_mt (B, C, h, w) at timesteps (B,) -> the DiT's output, and the control branch's last tokens (B, T, D)."""
        noisy = noisy.to(self.dtype)
        condition = self.dit.condition(t)  # (B, D)
        control = self.control(noisy, image.latent, condition, image.tokens)
        return self.dit(noisy, condition, control.injections).sample, control.tokens  # (B, C, h, w), (B, T, D)

    def decode(self, clean: Tensor, image: ImageFeatures, tokens: Tensor) -> Tensor:
        """Clean latent Zhat_m0 (B, C, h, w) -> logits (B, L + 1, H, W): D(Zhat_m0 / s).

        A mask head that sees images sees the control branch's `tokens` too, of the pass that led to the latent.
        """
        features = self.codec.to_features(clean.to(self.dtype))  # (B, C, H/f, W/f)
        if self.mask_head is None:
            return palette_logits(self.codec.to_pixels(features), self.palette)  # (B, L + 1, H, W)
        return self.mask_head(features, image.levels, tokens).sample  # (B, L + 1, H, W)
