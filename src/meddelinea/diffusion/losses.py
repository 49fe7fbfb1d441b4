"""The losses of Sec. 2: L = L_diff + L_seg, and how L_seg is weighted over the timesteps."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed.nn.functional
import torch.nn.functional as F
from torch import Tensor

from meddelinea.diffusion.schedule import NoiseSchedule

PixelLoss = Literal["bce", "cross_entropy"]
SegmentationWeighting = Literal["none", "alpha_bar"]

#: Added to both sides of a Dice fraction, in pixels: an organ absent from mask and prediction scores 1.
SMOOTH = 1.0


def diffusion_loss(output: Tensor, target: Tensor) -> Tensor:
    """L_diff: mean squared error of the network's output, (B, C, h, w) each -> scalar."""
    return F.mse_loss(output, target)


def segmentation_weights(schedule: NoiseSchedule, t: Tensor, weighting: SegmentationWeighting) -> Tensor:
    """Weight of L_seg at each timestep, (B,) float32 in [0, 1].

    Under epsilon prediction the clean latent of Eq. (1) carries the network's error times sqrt(1 / alpha_bar - 1), up
    to 157. `alpha_bar` = SNR / (SNR + 1) bounds what such a latent adds; `none` is the paper's unweighted sum.
    """
    if weighting == "none":
        return torch.ones(len(t), device=t.device)
    return schedule.alpha_bar[t.cpu().long()].float().to(t.device)


def segmentation_loss(logits: Tensor, mask: Tensor, weights: Tensor, pixel_loss: PixelLoss) -> Tensor:
    """L_seg = L_BCE + L_Dice over the organ channels, scalar; Dice over the batch of all processes.

    Parameters
    ----------
    logits
        (B, L + 1, H, W), channel 0 the background.
    mask
        (B, H, W) organ ids 0..L.
    weights
        (B,) weight of each slice, inside both terms.
    pixel_loss
        `bce`: a sigmoid for each channel, the paper's; `cross_entropy`: one softmax over the channels.
    """
    channels = logits.shape[1]
    truth = F.one_hot(mask, channels).permute(0, 3, 1, 2).to(logits.dtype)
    if pixel_loss == "bce":
        per_slice = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=(1, 2, 3))
        share = logits.sigmoid()
    else:
        per_slice = F.cross_entropy(logits, mask, reduction="none").mean(dim=(1, 2))
        share = logits.softmax(dim=1)
    slice_weight = weights.view(-1, 1, 1, 1)
    overlap = (slice_weight * share * truth).sum(dim=(0, 2, 3))[1:]
    total = (slice_weight * (share + truth)).sum(dim=(0, 2, 3))[1:]
    overlap, total = over_processes(torch.stack([overlap, total]))
    dice = (2.0 * overlap + SMOOTH) / (total + SMOOTH)
    return (weights * per_slice).mean() + 1.0 - dice.mean()


def over_processes(sums: Tensor) -> Tensor:
    """Sums over a process's slices -> sums over the slices of all processes, with their gradient.

    The Dice of a batch is no mean over its slices, so processes that each took their own would train on another loss
    than one process with the whole batch.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    total: Tensor = torch.distributed.nn.functional.all_reduce(sums)  # type: ignore[no-untyped-call]
    return total
