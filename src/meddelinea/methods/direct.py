"""MedDelinea's network without diffusion: the control experiment that tells what diffusion adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from meddelinea.diffusion.losses import PixelLoss, segmentation_loss
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.schedule import TIMESTEPS
from meddelinea.methods.controlled import ControlledPipeline
from meddelinea.methods.protocol import Batch, Recipe, Sampler
from meddelinea.models.codec import Codec
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import MaskHead
from meddelinea.models.segmenter import Segmenter


class Direct(nn.Module):
    """The controlled network in one pass: zeros for the noisy latent, and its output decoded as the clean one."""

    noise_channels = 0

    def __init__(self, segmenter: Segmenter, pixel_loss: PixelLoss) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.pixel_loss = pixel_loss

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L_seg, every slice with weight one."""
        ones = torch.ones(len(batch.images), device=batch.images.device)
        loss = segmentation_loss(self._logits(batch.images), batch.masks, ones, pixel_loss=self.pixel_loss)
        return {"segmentation": loss, "total": loss}

    @torch.no_grad()
    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Images (B, slices, H, W) -> logits (B, L + 1, H, W); there is no noise in it."""
        return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        image = self.segmenter.encode_image(images)
        nothing = torch.zeros(self.segmenter.latent_shape(image), device=images.device)  # (B, C, h, w)
        last = torch.full((len(nothing),), TIMESTEPS - 1, device=nothing.device)  # (B,)
        clean, tokens = self.segmenter(nothing, last, image)  # (B, C, h, w), (B, T, D)
        return self.segmenter.decode(clean, image, tokens)  # (B, L + 1, H, W)


class DirectPipeline(ControlledPipeline):
    """Images of slices in, mask logits out, in one step and without noise; parameters as of `MedDelineaPipeline`."""

    def __init__(
        self,
        codec: Codec,
        dit: DiT,
        control: ControlDiT,
        mask_head: MaskHead | None,
        organs: list[str] | None = None,
        neighbours: int = 0,
        neighbour_pairs: int = 1,
        colours: list[list[float]] | None = None,
    ) -> None:
        super().__init__()
        self._keep(locals())

    def for_training(self, recipe: Recipe) -> Direct:
        """The components as a method; base and encoder are frozen."""
        segmenter = self.segmenter()
        segmenter.freeze(recipe.trainable_decoder, recipe.base)
        return Direct(segmenter, recipe.objective.pixel_loss)

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The components as a method, see `SlicePipeline`; it takes one step, whatever is asked for."""
        return Sampler(Direct(self.segmenter(), "bce").to(self.device).eval(), None, None)
