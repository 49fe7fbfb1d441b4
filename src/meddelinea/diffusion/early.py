"""A scheduler that ends where the noisy latent still says little of the mask."""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler


class EarlyEndScheduler(DPMSolverMultistepScheduler):
    """DPM-Solver++ whose steps lie evenly between the last timestep and `steps_offset`, where Eq. (1) ends it.

    At timestep 500 of the linear betas a noisy latent all but shows its mask. In sampling that is the network's own
    estimate, which a network that was trained on true masks takes for the truth; at 900 it leans on the image.

    Parameters
    ----------
    steps_offset
        Timestep of the last step, in 0..T - 1; the other parameters are those of diffusers.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set the timesteps: T - 1 the first, or the only one, and `steps_offset` the last."""
        first, last = self.config.num_train_timesteps - 1, self.config.steps_offset
        timesteps = torch.linspace(first, last, num_inference_steps).round().int().tolist()
        super().set_timesteps(device=device, timesteps=timesteps)
