"""The forward process and what follows from it in closed form: noising, Tweedie's formula, parameterisations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction"]

BETA_START, BETA_END = 1e-4, 0.02
TIMESTEPS = 1000


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Variance-preserving diffusion with linear betas (Ho et al. 2020; the schedule that DiT was trained with).

    `alpha_bar[t]` is the share of the clean latent's variance left at timestep t, in float64; it decreases from 0.9999
    at t = 0 to 4.04e-5 at t = T - 1, where sigma = sqrt((1 - alpha_bar) / alpha_bar) is 157.4.
    """

    alpha_bar: Tensor

    @classmethod
    def linear(cls) -> NoiseSchedule:
        """T = 1000 betas, evenly spaced from 1e-4 to 0.02."""
        betas = torch.linspace(BETA_START, BETA_END, TIMESTEPS, dtype=torch.float64)
        return cls(torch.cumprod(1.0 - betas, dim=0))

    def __len__(self) -> int:
        return len(self.alpha_bar)

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), (B, 1, 1, 1), on the device of `like`; float32 at least.

        Rounded to bfloat16, as the products of a network may be, they would put the latent of an exact epsilon 0.24 off
        at the last timestep.
        """
        alpha_bar = self.alpha_bar[t.cpu().long()].view(-1, *([1] * (like.ndim - 1)))
        dtype = torch.promote_types(like.dtype, torch.float32)
        return alpha_bar.sqrt().to(like.device, dtype), (1.0 - alpha_bar).sqrt().to(like.device, dtype)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Z_mt = sqrt(alpha_bar_t) Z_m0 + sqrt(1 - alpha_bar_t) eps (Sec. 2).

        Parameters
        ----------
        clean, noise
            (B, C, h, w) latents and standard normal noise.
        t
            (B,) timesteps in 0..T-1.
        """
        signal, sigma = self.signal_and_noise(t, clean)
        return signal * clean + sigma * noise


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network's output stands for: the noise, the clean latent, or v (Salimans and Ho 2022).

    Latents are (B, C, h, w), timesteps (B,).
    """

    schedule: NoiseSchedule
    kind: PredictionType

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is asked for."""
        if self.kind == "epsilon":
            return noise
        if self.kind == "sample":
            return clean
        signal, sigma = self.schedule.signal_and_noise(t, clean)
        return signal * noise - sigma * clean

    def clean(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The clean latent that a network's output stands for; for `epsilon` this is Tweedie's formula, Eq. (1).

        Zhat_m0 = (Z_mt - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t).
        """
        if self.kind == "sample":
            return output
        signal, sigma = self.schedule.signal_and_noise(t, noisy)
        if self.kind == "epsilon":
            return (noisy - sigma * output) / signal
        return signal * noisy - sigma * output

    def epsilon(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """The noise that a network's output stands for: the form in which samplers take it."""
        if self.kind == "epsilon":
            return output
        signal, sigma = self.schedule.signal_and_noise(t, noisy)
        if self.kind == "sample":
            return (noisy - signal * output) / sigma
        return sigma * noisy + signal * output
