"""Discrete diffusion of codes by mask and replace (Gu et al. 2022, VQ-Diffusion, Sec. 4), in closed form.

At each step a code stays, is replaced by any of the K codes, or becomes [MASK], which stays what it is. Codes are
0..K - 1 and [MASK] is K. Diffusers' `VQDiffusionScheduler` has neither the forward process nor a step over several
timesteps, nor noise of a key for each image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

#: The paper's: T, and the shares of codes that are masked and replaced at the end.
STEPS, MASKED, REPLACED = 100, 0.9, 0.1


class Transition(NamedTuple):
    """How codes change from one timestep to a later one; tensors of one shape, which add up to 1 as a + K b + c."""

    stay: Tensor  # a, beside what a code has of b
    to_each: Tensor  # b, for each of the K codes, its own among them
    to_mask: Tensor  # c


@dataclass(frozen=True, eq=False)
class MaskAndReplace:
    """The process over K codes; t = 0 is the clean mask, t = T the noise that sampling starts from.

    Parameters
    ----------
    codes
        K.
    stay, masked
        (T + 1,) float64: the shares of codes that by time t were neither replaced nor masked, and that were masked.
    """

    codes: int
    stay: Tensor
    masked: Tensor

    @classmethod
    def linear(cls, codes: int) -> MaskAndReplace:
        """The paper's: the share that is masked grows evenly to 0.9 and that which is replaced to 0.1."""
        share = torch.linspace(0.0, 1.0, STEPS + 1, dtype=torch.float64)
        return cls(codes, 1.0 - (MASKED + REPLACED) * share, MASKED * share)

    def __len__(self) -> int:
        return len(self.stay) - 1

    def between(self, early: Tensor, late: Tensor) -> Transition:
        """From times `early` to `late`, (B,) each, early <= late."""
        stay, masked = self.stay.to(early.device), self.masked.to(early.device)
        a = stay[late] / stay[early]
        c = 1.0 - (1.0 - masked[late]) / (1.0 - masked[early])
        return Transition(a.float(), ((1.0 - a - c) / self.codes).clamp(min=0.0).float(), c.float())

    def marginal(self, clean: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0): clean codes (B, N) -> probabilities (B, K + 1, N) at times (B,)."""
        change = Transition(*(value.view(-1, 1, 1) for value in self.between(torch.zeros_like(t), t)))
        here = torch.nn.functional.one_hot(clean, self.codes).mT.float()  # (B, K, N)
        codes = change.stay * here + change.to_each  # (B, K, N)
        return torch.cat([codes, change.to_mask.expand(len(clean), 1, clean.shape[1])], dim=1)  # (B, K + 1, N)

    def posterior(self, clean: Tensor, noisy: Tensor, early: Tensor, late: Tensor) -> Tensor:
        """Mean of q(x_early | x_late, x_0) over the clean codes.

        Parameters
        ----------
        clean
            (B, K, N), probabilities of each position's clean code: a network's, or one that is sure.
        noisy
            (B, N) codes at the time `late`.
        early, late
            (B,) times, early < late.

        Returns
        -------
        Tensor
            (B, K + 1, N), which sum to 1.
        """
        zero = torch.zeros_like(early)
        first, step, whole = (
            Transition(*(value.view(-1, 1, 1) for value in self.between(*times)))
            for times in ((zero, early), (early, late), (zero, late))
        )
        masked = (noisy == self.codes)[:, None]  # (B, 1, N)
        here = torch.nn.functional.one_hot(noisy, self.codes + 1).mT[:, :-1].float()  # (B, K, N)

        # p(x_0) / q(x_late | x_0), summed over x_0 in q(x_early | x_0).
        ratio = clean / torch.where(masked, whole.to_mask, whole.stay * here + whole.to_each)  # (B, K, N)
        total = ratio.sum(dim=1, keepdim=True)  # (B, 1, N)
        codes = first.stay * ratio + first.to_each * total  # (B, K, N)

        # Times q(x_late | x_early): only [MASK] comes of [MASK].
        codes = codes * torch.where(masked, step.to_mask, step.stay * here + step.to_each)  # (B, K, N)
        return torch.cat([codes, masked * first.to_mask * total], dim=1)  # (B, K + 1, N)


def draw(probabilities: Tensor, normal: Tensor) -> Tensor:
    """Codes (B, N) of probabilities (B, K + 1, N), each by the standard normal number (B, N) of its position."""
    reached = probabilities.cumsum(dim=1)  # (B, K + 1, N)
    level = torch.special.ndtr(normal)[:, None] * reached[:, -1:]  # (B, 1, N)
    return (reached <= level).sum(dim=1).clamp(max=probabilities.shape[1] - 1)  # (B, N)
