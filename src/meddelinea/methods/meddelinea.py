"""MedDelinea as a method: a loss to train with, and a way to segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from torch import Tensor, nn

from meddelinea.diffusion.losses import (
    PixelLoss,
    SegmentationWeighting,
    diffusion_loss,
    segmentation_loss,
    segmentation_weights,
)
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.sampling import sample
from meddelinea.diffusion.schedule import NoiseSchedule, PredictionType
from meddelinea.methods.protocol import Batch
from meddelinea.models.segmenter import ImageView, Segmenter


@dataclass(frozen=True)
class Objective:
    """How the network is trained.

    Parameters
    ----------
    prediction_type
        What the DiT predicts; the paper: `epsilon`.
    diffusion
        Whether masks are diffused at all. Without, the same network gets zeros for the noisy latent and its output is
        decoded as the clean one: the control experiment that tells what diffusion adds.
    diffusion_weight
        Weight of L_diff.
    last_timestep_share
        Share of the batch at t = T - 1, where sampling in few steps starts; the rest is uniform. The paper: 0.
    trained_steps
        Where above 0, the rest is uniform over the timesteps that sampling in so many steps visits. The paper: 0.
    segmentation_weighting, pixel_loss
        See `diffusion.losses`.
    segmentation
        Whether L_seg is used at all (Table 5, "only L_diff").
    auxiliary_weight
        Weight of the auxiliary mask loss, where the control branch has such a head.
    """

    prediction_type: PredictionType = "epsilon"
    diffusion: bool = True
    diffusion_weight: float = 1.0
    last_timestep_share: float = 0.0
    trained_steps: int = 0
    segmentation_weighting: SegmentationWeighting = "alpha_bar"
    pixel_loss: PixelLoss = "bce"
    segmentation: bool = True
    auxiliary_weight: float = 1.0


def timesteps(uniform: Tensor, count: int, objective: Objective) -> Tensor:
    """Uniform numbers (B,) in [0, 1) -> timesteps (B,) in 0..count - 1, distributed as the objective says."""
    last_share = objective.last_timestep_share
    rest = (uniform - last_share) / (1.0 - last_share) if last_share < 1.0 else uniform
    levels = objective.trained_steps or count
    level = (rest * levels).long().clamp(0, levels - 1)
    t = ((level + 1) * (count / levels)).round().long() - 1  # trailing spacing, as `sampling.make_scheduler` has it
    return torch.where(uniform < last_share, count - 1, t)


class MedDelinea(nn.Module):
    """The controlled network with its noise schedule and objective.

    Parameters
    ----------
    segmenter
        The network.
    objective
        How it is trained; `segment` needs its prediction type only.
    scheduler, steps
        How `segment` samples: a scheduler of diffusers, see `diffusion.sampling`, and its number of steps.
    """

    def __init__(self, segmenter: Segmenter, objective: Objective, scheduler: SchedulerMixin, steps: int) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.objective = objective
        self.scheduler = scheduler
        self.steps = steps
        self.schedule = NoiseSchedule.linear()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, as a module's call: what data-parallel wrappers need to see."""
        return self.loss(batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L_diff + L_seg (Sec. 2), and the auxiliary loss where there is such a head."""
        objective, schedule = self.objective, self.schedule
        view = self.segmenter.look(batch.images)
        losses = {}
        if objective.diffusion:
            with torch.no_grad():
                clean = self.segmenter.encode_mask(batch.masks)
            t = timesteps(batch.uniform, len(schedule), objective)
            noisy = schedule.add_noise(clean, batch.noise, t)
            output, tokens = self.segmenter(noisy, t, view)
            estimate = schedule.clean(output, noisy, t, objective.prediction_type)
            target = schedule.target(clean, batch.noise, t, objective.prediction_type)
            losses["diffusion"] = objective.diffusion_weight * diffusion_loss(output, target)
            weights = segmentation_weights(schedule, t, objective.segmentation_weighting)
        else:
            estimate, tokens = self._direct(view)
            weights = torch.ones(len(batch.images), device=batch.images.device)
        if objective.segmentation:
            logits = self.segmenter.decode(estimate, view, tokens)
            losses["segmentation"] = segmentation_loss(logits, batch.masks, weights, objective.pixel_loss)
        auxiliary = self.segmenter.auxiliary_logits(tokens, view)
        if auxiliary is not None:
            coarse = F.interpolate(batch.masks[:, None].float(), auxiliary.shape[2:], mode="nearest-exact")[:, 0].long()
            losses["auxiliary"] = objective.auxiliary_weight * segmentation_loss(
                auxiliary, coarse, torch.ones_like(weights), objective.pixel_loss
            )
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    def _direct(self, view: ImageView) -> tuple[Tensor, Tensor]:
        """The network's output, and tokens, where there is no mask to denoise."""
        nothing = torch.zeros_like(view.latent)
        last = torch.full((len(nothing),), len(self.schedule) - 1, device=nothing.device)
        return self.segmenter(nothing, last, view)

    @torch.no_grad()
    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Sample masks for a batch of slices.

        Parameters
        ----------
        images
            (B, slices, H, W) in [-1, 1].
        noise
            B keys; the same key gives the same mask.

        Returns
        -------
        Logits (B, L + 1, H, W).
        """
        view = self.segmenter.look(images)
        if not self.objective.diffusion:
            clean, tokens = self._direct(view)
            return self.segmenter.decode(clean, view, tokens)
        kind = self.objective.prediction_type

        tokens = torch.empty(0)

        def denoise(noisy: Tensor, t: Tensor) -> Tensor:
            nonlocal tokens  # those of the last step go to the mask head
            output, tokens = self.segmenter(noisy, t, view)
            return self.schedule.epsilon(output, noisy, t, kind)

        shape = (view.latent.shape[1], view.latent.shape[2], view.latent.shape[3])
        clean = sample(denoise, noise, shape, self.scheduler, self.steps, images.device)
        return self.segmenter.decode(clean, view, tokens)
