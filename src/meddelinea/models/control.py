"""The Control DiT P_phi: a trainable copy of the frozen blocks that sees the image (Sec. 2, "Control DiT Module")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from meddelinea.models.convolutions import ImageStem
from meddelinea.models.dit import DiT
from meddelinea.models.transformer import DiTBlock, PatchEmbedder, check_width, zero_linear


@dataclass
class ControlOutput(BaseOutput):
    """What the control branch passes on.

    Parameters
    ----------
    injections
        For each of its blocks the features that are added after attention and after the MLP, (B, T, D) each.
    tokens
        Its last tokens, (B, T, D).
    """

    injections: tuple[tuple[Tensor, Tensor], ...]
    tokens: Tensor


class ControlDiT(ModelMixin, ConfigMixin):
    """K blocks over concat(Z_mt, zero_conv(Z_o)) that emit two features a block.

    Both features, at the block's residual connections after attention and after the MLP, pass a zero-initialised
    linear layer, so that the controlled network starts equal to the plain DiT. Timesteps come in as the frozen DiT's
    own conditioning vector: it needs no second embedder, and the trainable parameters are then those that the paper
    counts, 7.83 M a block at the paper's width.

    Parameters
    ----------
    latent_channels, latent_size, patch_size, width, heads
        As the DiT's that it controls.
    image_channels
        C_o, of the image's latent; as many as `latent_channels` where 0.
    depth
        K, at most the DiT's N.
    stem_channels
        Extension: an `ImageStem` of these widths, whose tokens are added to the embedded patches. Empty: none.
    stem_finest
        Pixels to a side of one position of its first level.
    stem_slices
        Slices that it sees: 3 as the codec, or more pairs of neighbours.
    """

    _supports_gradient_checkpointing = True  # its blocks do, so diffusers' switch sets theirs

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        image_channels: int = 0,
        latent_size: int = 32,
        patch_size: int = 2,
        width: int = 1152,
        depth: int = 15,
        heads: int = 16,
        stem_channels: Sequence[int] = (),
        stem_finest: int = 4,
        stem_slices: int = 3,
    ) -> None:
        super().__init__()
        check_width(width, heads)
        # Zeros: the network starts equal to the plain DiT, and the image enters as training opens them.
        image_channels = image_channels or latent_channels
        self.zero_conv = nn.Conv2d(image_channels, image_channels, 1)
        nn.init.zeros_(self.zero_conv.weight)
        nn.init.zeros_(self.zero_conv.bias)  # type: ignore[arg-type]
        channels = latent_channels + image_channels
        self.x_embedder = PatchEmbedder(channels, patch_size, width, base=latent_size // patch_size)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.after_attention = nn.ModuleList(zero_linear(width) for _ in range(depth))
        self.after_mlp = nn.ModuleList(zero_linear(width) for _ in range(depth))
        self.stem = None
        if stem_channels:
            self.stem = ImageStem(tuple(stem_channels), finest=stem_finest, slices=stem_slices, width=width)

    @classmethod
    def copy_of(
        cls,
        dit: DiT,
        depth: int,
        *,
        image_channels: int = 0,
        stem_channels: Sequence[int] = (),
        stem_finest: int = 4,
        stem_slices: int = 3,
    ) -> ControlDiT:
        """The trainable copy of the first `depth` blocks of `dit`, its patch embedding widened by the image's channels.

        The new input channels repeat the weights of the old ones: mask and image live in one latent space, and zeros
        here behind the zeros of the convolution before would never receive a gradient. Those that an image's latent has
        beyond a mask's are drawn as a new embedder's.
        """
        config = dit.config
        control = cls(
            latent_channels=config.latent_channels,
            image_channels=image_channels,
            latent_size=config.latent_size,
            patch_size=config.patch_size,
            width=config.width,
            depth=depth,
            heads=config.heads,
            stem_channels=stem_channels,
            stem_finest=stem_finest,
            stem_slices=stem_slices,
        )
        control.blocks.load_state_dict(dit.blocks[:depth].state_dict())
        with torch.no_grad():
            twice = dit.x_embedder.proj.weight.repeat(1, 2, 1, 1)  # (D, 2 C, p, p)
            control.x_embedder.proj.weight[:, : twice.shape[1]] = twice
            control.x_embedder.proj.bias.copy_(dit.x_embedder.proj.bias)
        return control

    def forward(
        self,
        noisy: Tensor,
        image_latent: Tensor,
        condition: Tensor,
        image_tokens: Tensor | None = None,
        return_dict: bool = True,
    ) -> ControlOutput | tuple[tuple[tuple[Tensor, Tensor], ...], Tensor]:
        """Noisy mask latent and image latent -> features for the frozen blocks.

        Parameters
        ----------
        noisy, image_latent
            Z_mt and Z_o, (B, C, h, w) and (B, C_o, h, w).
        condition
            (B, D), the frozen DiT's `condition(t)`.
        image_tokens
            (B, T, D) of an image stem, added to the embedded patches, where the model has one.
        return_dict
            As everywhere in diffusers: an object with named parts, or a tuple of them.
        """
        both = torch.cat([noisy, self.zero_conv(image_latent)], dim=1)  # (B, C + C_o, h, w): Z_ct
        x = self.x_embedder(both)  # (B, T, D)
        if image_tokens is not None:
            x = x + image_tokens  # (B, T, D)
        injections = []
        for block, after_attention, after_mlp in zip(self.blocks, self.after_attention, self.after_mlp, strict=True):
            middle, x = block(x, condition)  # (B, T, D) each
            injections.append((after_attention(middle), after_mlp(x)))  # (B, T, D) each
        output = ControlOutput(injections=tuple(injections), tokens=x)
        return output if return_dict else output.to_tuple()
