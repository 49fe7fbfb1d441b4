"""A network that is trained to name each pixel, as a method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddelinea.diffusion.losses import PixelLoss, segmentation_loss
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.methods.dynunet import DynUNet
from meddelinea.methods.protocol import Batch
from meddelinea.methods.unet import UNet


class Baseline(nn.Module):
    """The `Method` of a network that maps images to logits.

    Parameters
    ----------
    network
        Gives logits, the finest first; coarser ones after it are trained too (deep supervision).
    pixel_loss
        See `diffusion.losses`.
    """

    def __init__(self, network: UNet | DynUNet, pixel_loss: PixelLoss) -> None:
        super().__init__()
        self.network = network
        self.pixel_loss = pixel_loss

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, as a module's call: what data-parallel wrappers need to see."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The same L_seg as MedDelinea's, every slice with weight one, summed over the resolutions of the logits."""
        outputs = self.network(batch.images)
        ones = torch.ones(len(batch.images), device=batch.images.device)
        masks = batch.masks[:, None].float()
        total = torch.zeros((), device=batch.images.device)
        for logits, weight in zip(outputs, supervision_weights(len(outputs)), strict=True):
            mask = F.interpolate(masks, logits.shape[2:], mode="nearest-exact")[:, 0].long()
            total = total + weight * segmentation_loss(logits, mask, ones, self.pixel_loss)
        return {"segmentation": total, "total": total}

    @torch.no_grad()
    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Images (B, slices, H, W) -> logits (B, L + 1, H, W); there is no noise in it."""
        logits: Tensor = self.network(images)[0]
        return logits


def supervision_weights(resolutions: int) -> list[float]:
    """nnU-Net's weights of the losses at full, half, quarter, ... size: each half of the one before, together 1."""
    halves = [0.5**level for level in range(resolutions)]
    return [half / sum(halves) for half in halves]
