"""Autoencoders between pixels and latents, and the palette that paints a mask as pixels.

Two codecs share one interface: `KLCodec` adds it to the Stable Diffusion autoencoder of diffusers; `SpaceToDepthCodec`
does the same work on a CPU, because no convolution of it runs at full resolution. Both have factor 8; a mask's latent
has C channels, an image's C_o, and both are 4 in Stable Diffusion's.
"""

from __future__ import annotations

from itertools import product
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

from meddelinea.models.convolutions import ResidualBlock

FACTOR = 8
#: Logits for each unit of squared distance between colours: of 14, a pixel of the right one has a softmax of 0.99.
SHARPNESS = 8.0
#: That of a codec that starts as a cosine transform: latents of unit variance are then known to a tenth or so.
POSTERIOR_LOG_VARIANCE = -4.0


def palette(colours: int) -> Tensor:
    """`colours` points of the cube [-1, 1]^3, (colours, 3): grey in its middle, the background, and others about it.

    The organs' colours lie on the rounded cube |r|^4 + |g|^4 + |b|^4 = 1, in the directions of a Fibonacci lattice. No
    colour lies on the line between two others, as the middle of a cube's face does between two corners: where a
    decoder blurs the border of two organs, or of an organ and the background, no third one is read.
    """
    number = np.arange(colours - 1)
    height = 1.0 - (2.0 * number + 1.0) / max(colours - 1, 1)
    angle = np.pi * (1.0 + 5.0**0.5) * (number + 0.5)
    radius = np.sqrt(1.0 - height**2)
    directions = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)  # (colours - 1, 3)
    points = directions / (directions**4).sum(axis=1, keepdims=True) ** 0.25
    return torch.from_numpy(np.vstack([np.zeros(3), points]).astype(np.float32))


def extend_palette(colours: Tensor, count: int) -> Tensor:
    """`colours` (L + 1, 3) followed by others of the cube, each as far from those before it as can be, (count, 3).

    For organs that a trained model does not know yet: those that it knows keep the colour, and with it the latent, that
    it was trained on.
    """
    candidates = torch.tensor(list(product(torch.linspace(-1, 1, 9).tolist(), repeat=3)))
    while len(colours) < count:
        nearest = torch.cdist(candidates, colours).amin(dim=1)
        colours = torch.cat([colours, candidates[nearest.argmax()][None]])
    return colours[:count]


def paint(mask: Tensor, colours: Tensor) -> Tensor:
    """Organ ids (B, H, W) painted with a palette (L + 1, 3) -> pixels (B, 3, H, W) in [-1, 1]."""
    return colours[mask.long()].permute(0, 3, 1, 2).contiguous()


def palette_logits(pixels: Tensor, colours: Tensor) -> Tensor:
    """Logits of the organs of painted pixels (B, 3, H, W), for one softmax -> (B, L + 1, H, W).

    Minus the squared distance to each colour (L + 1, 3), times `SHARPNESS`. The largest is the nearest colour: how a
    mask is read back from pixels.
    """
    # In float32 under autocast too: the distances of colours are small beside the squares that they are made of.
    with torch.autocast(pixels.device.type, enabled=False):
        pixels, colours = pixels.float(), colours.float()
        cross = torch.einsum("bchw,kc->bkhw", pixels, colours)
        distance = pixels.square().sum(1, keepdim=True) + colours.square().sum(1).view(1, -1, 1, 1) - 2.0 * cross
        return -SHARPNESS * distance


def cosine_transform() -> Tensor:
    """The orthonormal cosine transform of 3 slices of 8x8 pixels, lowest frequencies first: (192, 3 * 8 * 8).

    Its columns are in the order of `torch.nn.PixelUnshuffle`. A frequency across slices counts as the higher, as
    neighbouring slices differ little.
    """
    slices, rows = _cosines(3), _cosines(FACTOR)  # (3, 3), (8, 8)
    products = torch.einsum("ai,bj,ck->abcijk", slices, rows, rows).reshape(3 * FACTOR**2, -1)
    across = torch.arange(3.0).view(3, 1, 1) * FACTOR / 3
    along = torch.arange(float(FACTOR))
    height = across.square() + along.view(-1, 1).square() + along.square()  # (3, 8, 8)
    return products[height.flatten().argsort(stable=True)].float()


def _cosines(count: int) -> Tensor:
    """(count, count): rows are cosines of growing frequency, of length one and at right angles."""
    frequency, place = torch.arange(count).double()[:, None], torch.arange(count).double()
    waves = torch.cos(torch.pi * (place + 0.5) * frequency / count)
    return waves / waves.norm(dim=1, keepdim=True)


def _ends(channels: int, linear_path: bool) -> tuple[nn.Module, ...]:
    """What comes before the last convolution of either half."""
    return () if linear_path else (nn.GroupNorm(8, channels), nn.SiLU())


def _finer(channels: int, fine_channels: int, linear_path: bool) -> tuple[nn.Module, ...]:
    """(B, channels, H/8, W/8) -> (B, fine_channels, H/4, W/4)."""
    up = nn.Conv2d(channels, 4 * fine_channels, 1)
    return *_ends(channels, linear_path), up, nn.PixelShuffle(2), ResidualBlock(fine_channels)


class SpaceToDepthCodec(ModelMixin, ConfigMixin):
    """KL autoencoder that folds 8x8 pixels into channels first, so that nearly all convolutions run at h = H/8.

    Parameters
    ----------
    channels
        Width of its convolutions.
    encoder_blocks, decoder_blocks
        Residual blocks of each half.
    latent_channels
        C, of a mask's latent.
    image_channels
        C_o, at least C, of an image's latent: an image holds more than a mask of few colours. A mask has zeros in those
        after the first C. As many as `latent_channels` where 0.
    fine_channels
        Width of one more residual block of the decoder at H/4, before its last convolution: thin organs are drawn from
        features that bend within a square of 8 pixels. None where 0.
    linear_path
        Whether a linear path runs from pixels to pixels, with no norm before the last convolution of either half. The
        codec then starts as a cosine transform that drops high frequencies, see `start_as_cosines`, and an image's
        brightness is not lost in the norms. It takes as many `channels` as an image's latent has, and 48
        `fine_channels`, the pixels of a square of 4, or 0.
    scaling_factor
        Brings the latents of painted masks to unit variance; measured at the end of training.
    """

    @register_to_config
    def __init__(
        self,
        channels: int = 96,
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
        latent_channels: int = 4,
        image_channels: int = 0,
        fine_channels: int = 0,
        linear_path: bool = False,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.image_channels = image_channels or latent_channels
        self.feature_channels = fine_channels or channels
        self.feature_factor = FACTOR // 2 if fine_channels else FACTOR  # f, how much coarser than pixels they are
        folded = 3 * FACTOR * FACTOR
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(FACTOR),
            nn.Conv2d(folded, channels, 3, padding=1),
            *(ResidualBlock(channels) for _ in range(encoder_blocks)),
            *_ends(channels, linear_path),
            nn.Conv2d(channels, 2 * self.image_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(self.image_channels, channels, 3, padding=1),
            *(ResidualBlock(channels) for _ in range(decoder_blocks)),
            *(_finer(channels, fine_channels, linear_path) if fine_channels else ()),
            *_ends(self.feature_channels, linear_path),
        )
        self.conv_out = nn.Sequential(
            nn.Conv2d(self.feature_channels, 3 * self.feature_factor**2, 3, padding=1),
            nn.PixelShuffle(self.feature_factor),
        )

        if linear_path:
            self.start_as_cosines()

    @torch.no_grad()
    def start_as_cosines(self) -> None:
        """Let the linear path be the discrete cosine transform of squares of 8 pixels, lowest frequencies first.

        An image's latent then starts as its C_o lowest frequencies over rows, columns and the three slices, a mask's as
        the lowest C, halved so that their variance is about one, and the decoder as the inverse. A tenth of the random
        weights stays beside it.
        """
        count, side = self.image_channels, self.feature_factor
        first, last = cast(nn.Conv2d, self.encoder[1]), cast(nn.Conv2d, self.encoder[-1])
        finer = [layer for layer in self.decoder if isinstance(layer, nn.Conv2d)][1:]
        for layer in (first, last, self.decoder[0], *finer, self.final_convolution()):
            cast(nn.Conv2d, layer).weight.mul_(0.1)
            layer.get_parameter("bias").zero_()
        transform = cosine_transform()[:count]  # (C_o, 3 * 8 * 8)
        first.weight[:count, :, 1, 1] += transform
        last.weight[:count, :count, 0, 0] += torch.eye(count) / 2
        last.weight[count:] = 0.0
        last.get_parameter("bias")[count:] = POSTERIOR_LOG_VARIANCE
        self.decoder[0].get_parameter("weight")[:count, :count, 1, 1] += 2 * torch.eye(count)

        # Back to pixels: all in one, or to squares of half the side first, each of which keeps its own pixels.
        final = self.final_convolution().weight[:, :, 1, 1]  # (3 f^2, feature_channels)
        if not finer:
            final[:, :count] += transform.T
            return
        squares = transform.view(count, 3, 2, side, 2, side).permute(2, 4, 1, 3, 5, 0).reshape(4, 3 * side**2, count)
        up = finer[0].weight.view(self.feature_channels, 4, -1)  # in the order of PixelShuffle
        up[: 3 * side**2, :, :count] += squares.transpose(0, 1)
        final[:, : 3 * side**2] += torch.eye(3 * side**2)

    def forward(self, pixels: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Pixels (B, 3, H, W) in [-1, 1] -> as they come back from their mean latent, as `AutoencoderKL` has it."""
        latent = self.to_image_latent(pixels)  # (B, C_o, H/8, W/8)
        sample = self.to_pixels(self.to_features(latent))  # (B, channels, H/8, W/8) -> (B, 3, H, W)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the unscaled latent, (B, C_o, H/8, W/8) each; log-variance within [-20, 10]."""
        mean, log_variance = self.encoder(pixels).chunk(2, dim=1)  # (B, C_o, H/8, W/8) each
        return mean, log_variance.clamp(-20.0, 10.0)

    def to_latent(self, pixels: Tensor) -> Tensor:
        """Painted masks (B, 3, H, W) -> mean latents times the scaling factor, (B, C, H/8, W/8) of unit variance."""
        return self.to_image_latent(pixels)[:, : self.latent_channels]  # (B, C, H/8, W/8)

    def to_image_latent(self, pixels: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> mean latents times the scaling factor, (B, C_o, H/8, W/8)."""
        return self.posterior(pixels)[0] * self.config.scaling_factor  # (B, C_o, H/8, W/8)

    def to_features(self, latent: Tensor) -> Tensor:
        """Scaled latent of a mask or an image -> what the final layer sees, (B, feature_channels, H/f, W/f)."""
        whole = F.pad(latent, (0, 0, 0, 0, 0, self.image_channels - latent.shape[1]))  # (B, C_o, H/8, W/8)
        return self.decoder(whole / self.config.scaling_factor)  # (B, feature_channels, H/f, W/f)

    def feature_parameters(self) -> list[nn.Parameter]:
        """The decoder's parameters that `to_features` passes through: all but its final layer."""
        return list(self.decoder.parameters())

    def to_pixels(self, features: Tensor) -> Tensor:
        """The decoder's own final layer: features -> pixels (B, 3, H, W)."""
        return self.conv_out(features)  # (B, 3, H, W)

    def final_convolution(self) -> nn.Conv2d:
        """The convolution in it, feature_channels -> 3 f^2 channels, in the order of `torch.nn.PixelShuffle`."""
        return cast(nn.Conv2d, self.conv_out[0])


class KLCodec(AutoencoderKL):
    """The Stable Diffusion autoencoder of diffusers, weights and configuration as published, with the interface beside.

    It stays an `AutoencoderKL` for whoever takes it as one: nothing that it inherits is overridden.
    """

    feature_factor = 1

    @property
    def latent_channels(self) -> int:
        """4 in Stable Diffusion's."""
        return int(self.config.latent_channels)

    @property
    def image_channels(self) -> int:
        """As many."""
        return self.latent_channels

    @property
    def feature_channels(self) -> int:
        """Channels before the decoder's last convolution: 128 in Stable Diffusion's."""
        return int(self.config.block_out_channels[0])

    def to_latent(self, pixels: Tensor) -> Tensor:
        """As `SpaceToDepthCodec` has it."""
        return self.encode(pixels).latent_dist.mean * self.config.scaling_factor  # (B, C, H/8, W/8)

    def to_image_latent(self, pixels: Tensor) -> Tensor:
        """As `SpaceToDepthCodec` has it."""
        return self.to_latent(pixels)  # (B, C, H/8, W/8)

    def to_features(self, latent: Tensor) -> Tensor:
        """As `SpaceToDepthCodec` has it: diffusers' decoder but for its last convolution."""
        h = self.post_quant_conv(latent / self.config.scaling_factor)  # (B, C, H/8, W/8)
        h = self.decoder.mid_block(self.decoder.conv_in(h))  # (B, 4 C, H/8, W/8)
        for block in self.decoder.up_blocks:
            h = block(h)  # (B, 4 C, H/4, W/4), (B, 4 C, H/2, W/2), (B, 2 C, H, W), (B, C, H, W)
        return F.silu(self.decoder.conv_norm_out(h))  # (B, C, H, W)

    def feature_parameters(self) -> list[nn.Parameter]:
        """As `SpaceToDepthCodec` has it."""
        inner = [p for name, p in self.decoder.named_parameters() if not name.startswith("conv_out.")]
        return [*self.post_quant_conv.parameters(), *inner]

    def to_pixels(self, features: Tensor) -> Tensor:
        """As `SpaceToDepthCodec` has it."""
        return self.decoder.conv_out(features)  # (B, 3, H, W)

    def final_convolution(self) -> nn.Conv2d:
        """As `SpaceToDepthCodec` has it."""
        return cast(nn.Conv2d, self.decoder.conv_out)


Codec = SpaceToDepthCodec | KLCodec
