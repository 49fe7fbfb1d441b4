"""MedDelinea as a method, and whatever differs from it in its network alone: a loss, and a way to segment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from torch import Tensor, nn

from meddelinea.diffusion.losses import Objective, segmentation_loss, segmentation_weights, timesteps
from meddelinea.diffusion.noise import Noise, NoiseKey
from meddelinea.diffusion.sampling import StepCallback, sample, unchanged
from meddelinea.diffusion.schedule import NoiseSchedule, Prediction
from meddelinea.methods.protocol import Batch
from meddelinea.models.segmenter import ImageFeatures, LatentSegmenter


class MedDelinea(nn.Module):
    """A network that denoises latents of masks, with its noise schedule and objective.

    Parameters
    ----------
    segmenter
        The network: MedDelinea's controlled one, or one that it is compared with.
    objective
        How it is trained; `segment` needs its prediction type only.
    scheduler, steps
        How `segment` samples: a scheduler of diffusers, see `diffusion.sampling`, and its number of steps.
    """

    def __init__(
        self, segmenter: LatentSegmenter, objective: Objective, scheduler: SchedulerMixin, *, steps: int
    ) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.objective = objective
        self.scheduler = scheduler
        self.steps = steps
        self.schedule = NoiseSchedule.linear()
        self.prediction = Prediction(self.schedule, objective.prediction_type)

    @property
    def noise_channels(self) -> int:
        """Those of the codec's latents."""
        return self.segmenter.codec.latent_channels

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L_diff + L_seg (Sec. 2)."""
        objective, schedule = self.objective, self.schedule

        # The forward process, and the network's answer.
        image = self.segmenter.encode_image(batch.images)
        with torch.no_grad():
            clean = self.segmenter.encode_mask(batch.masks)  # (B, C, h, w)
        t = timesteps(batch.uniform, len(schedule), objective)  # (B,)
        start = self._recycled(clean, batch.noise, t, image) if objective.recycle else clean
        noisy = schedule.add_noise(start, batch.noise, t)  # (B, C, h, w)
        output, tokens = self.segmenter(noisy, t, image)  # (B, C, h, w), (B, T, D)

        estimate = self.prediction.clean(output, noisy, t)  # (B, C, h, w): Eq. (1)
        if objective.recycle:
            losses = {"diffusion": F.mse_loss(estimate, clean)}
        else:
            losses = {"diffusion": F.mse_loss(output, self.prediction.target(clean, batch.noise, t))}
        if objective.segmentation:
            weights = segmentation_weights(schedule, t, objective.segmentation_weighting)  # (B,)
        else:  # the decoder alone learns from L_seg, on true latents
            estimate, weights = clean, torch.ones(len(clean), device=clean.device)  # (B, C, h, w), (B,)
        logits = self.segmenter.decode(estimate, image, tokens)  # (B, L + 1, H, W)
        losses["segmentation"] = segmentation_loss(logits, batch.masks, weights, pixel_loss=objective.pixel_loss)
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    @torch.no_grad()
    def _recycled(self, clean: Tensor, noise: Tensor, t: Tensor, image: ImageFeatures) -> Tensor:
        """Clean latents (B, C, h, w), but of slices before the last timestep what the network makes of them there."""
        earlier = t < len(self.schedule) - 1  # (B,)
        if not earlier.any():
            return clean
        last = torch.full_like(t[earlier], len(self.schedule) - 1)
        # Another slice's noise: a sampler adds new noise at every step.
        noisy = self.schedule.add_noise(clean[earlier], noise.roll(1, dims=0)[earlier], last)
        output, _ = self.segmenter(noisy, last, image.of(earlier))
        start = clean.clone()
        start[earlier] = self.prediction.clean(output, noisy, last)
        return start

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
        image = self.segmenter.encode_image(images)
        shape = self.segmenter.latent_shape(image)
        clean, tokens = self.sample(image, Noise.keyed(noise, shape[1:]))  # (B, C, h, w), (B, T, D)
        return self.segmenter.decode(clean, image, tokens)  # (B, L + 1, H, W)

    def sample(self, image: ImageFeatures, noise: Noise, on_step: StepCallback = unchanged) -> tuple[Tensor, Tensor]:
        """Clean latents (B, C, h, w) for images and noise, and the tokens (B, T, D) of the last pass; see `sample`."""

        def denoise(noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            # All slices are at one timestep. Asked for it once, the network adds up the same for any number of slices.
            output, tokens = self.segmenter(noisy, t[:1], image)  # (B, C, h, w), (B, T, D)
            return self.noise_in(noisy, output, t), tokens

        device = image.latent.device
        return sample(denoise, noise, self.scheduler, steps=self.steps, device=device, on_step=on_step)

    def noise_in(self, noisy: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The noise in Z_mt (B, C, h, w) at timesteps (B,), by the network's output (B, C, h, w)."""
        return self.prediction.epsilon(output, noisy, t)
