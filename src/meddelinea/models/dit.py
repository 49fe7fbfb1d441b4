"""The pre-trained diffusion transformer eps_theta (Sec. 2, "Pre-trained DiT Module"; Peebles and Xie 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from meddelinea.models.transformer import DiTBlock, PatchEmbedder, TimestepEmbedder, check_width, modulate


class FinalLayer(nn.Module):
    """Tokens (B, T, D) -> patches (B, T, p * p * out_channels), after a last adaptive layer norm."""

    def __init__(self, width: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch_size * patch_size * out_channels)
        modulation = nn.Linear(width, 2 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), modulation)
        # Zero output: the untrained network predicts zero, the mean of its target.
        for layer in (self.linear, modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        # In the weights' own precision under autocast too: a noise that is rounded to bfloat16 puts the latent of
        # Eq. (1) 0.24 off at the last timestep.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            x, condition = x.to(self.linear.weight.dtype), condition.to(self.linear.weight.dtype)
            shift, scale = self.adaLN_modulation(condition).chunk(2, dim=1)  # (B, D) each
            return self.linear(modulate(self.norm_final(x), shift, scale))  # (B, T, p * p * out_channels)


class ClassEmbedder(nn.Module):
    """Embedding table of class labels with one more row, the null class; MedDelinea only ever asks for that row."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)
        # Small, as the timestep's embedding that it is added to.
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def null(self) -> Tensor:
        """(1, D)."""
        return self.embedding_table.weight[-1:]


class DiT(ModelMixin, ConfigMixin):
    """N adaLN-zero transformer blocks over the patches of a latent.

    Module names are those of the original checkpoints, so their keys load without renaming.

    Parameters
    ----------
    latent_channels, latent_size
        C, and the side h of the square latent that the weights are trained at; others are interpolated.
    patch_size
        Side of a patch in latent pixels.
    width, depth, heads
        D, N, and attention heads; a D that is no multiple of 4 and of `heads` is refused.
    classes
        Classes of the pre-training task (1000 for ImageNet; 0 where there is none).
    learn_sigma
        The output carries C more channels for the variance; they are dropped.
    image_channels
        C_o, of an image's latent that its input has behind the noisy one; 0 of a DiT that sees none, or a control
        branch's.
    """

    _supports_gradient_checkpointing = True  # its blocks do, so diffusers' switch sets theirs

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        latent_size: int = 32,
        patch_size: int = 2,
        width: int = 1152,
        depth: int = 28,
        heads: int = 16,
        classes: int = 1000,
        learn_sigma: bool = True,
        image_channels: int = 0,
    ) -> None:
        super().__init__()
        check_width(width, heads)
        self.patch_size = patch_size
        self.latent_channels = latent_channels
        self.out_channels = latent_channels * (2 if learn_sigma else 1)
        channels = latent_channels + image_channels
        self.x_embedder = PatchEmbedder(channels, patch_size, width, base=latent_size // patch_size)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = ClassEmbedder(classes, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch_size, self.out_channels)

    def open_gates(self) -> None:
        """Let every block act from the start, where nothing is pre-trained."""
        for block in self.blocks:
            cast(DiTBlock, block).open_gates()

    def draw_weights(self) -> None:
        """Random weights in every layer, the last ones too, which otherwise start at zero and would let nothing by."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(cast(Tensor, module.bias))
        self.open_gates()

    def condition(self, t: Tensor) -> Tensor:
        """What every block is modulated by: timestep (B,) plus the null class -> (B, D)."""
        return self.t_embedder(t) + self.y_embedder.null()

    def forward(
        self,
        latent: Tensor,
        condition: Tensor,
        injections: Sequence[tuple[Tensor, Tensor]] = (),
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Noisy latent Z_mt -> predicted noise (or the clean latent, as trained).

        Parameters
        ----------
        latent
            (B, C + C_o, h, w), h and w multiples of the patch size.
        condition
            (B, D), of `condition(t)`.
        injections
            For each of the first K blocks the features that the Control DiT adds after attention and after the MLP,
            (B, T, D) each.
        return_dict
            As everywhere in diffusers: an object with the output as its `sample`, or a tuple of it.

        Returns
        -------
        Transformer2DModelOutput or tuple of Tensor
            (B, C, h, w).
        """
        B, _, h, w = latent.shape
        p, out = self.patch_size, self.out_channels

        x = self.x_embedder(latent)  # (B, T, D)
        for index, block in enumerate(self.blocks):
            _, x = block(x, condition, injections[index] if index < len(injections) else None)  # (B, T, D)

        patches = self.final_layer(x, condition).view(B, h // p, w // p, p, p, out)  # (B, h/p, w/p, p, p, out)
        output: Tensor = torch.einsum("nhwpqc->nchpwq", patches).reshape(B, out, h, w)  # (B, out, h, w)
        sample = output[:, : self.latent_channels]  # (B, C, h, w), without the learnt variance
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)
