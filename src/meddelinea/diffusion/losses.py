"""What a model is trained for: the objective, its timesteps, and L_seg of Sec. 2; L_diff is a mean squared error."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.distributed.nn.functional
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from meddelinea.diffusion.schedule import NoiseSchedule, PredictionType

PixelLoss = Literal["bce", "cross_entropy"]
SegmentationWeighting = Literal["none", "alpha_bar"]

#: Added to both sides of a Dice fraction, in pixels.
SMOOTH = 1.0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Objective:
    """How a network is trained, checked when it is made."""

    prediction_type: PredictionType = "epsilon"  # what the DiT predicts; the paper: `epsilon`
    #: Share of the batch at t = T - 1, where sampling in few steps starts; the rest is uniform. The paper: 0.
    last_timestep_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    #: See `segmentation_weights` and `segmentation_loss`. What is not diffused has no timestep, and every slice the
    #: weight one.
    segmentation_weighting: SegmentationWeighting = "alpha_bar"
    pixel_loss: PixelLoss = "bce"
    #: Whether the noise predictor learns from L_seg. Otherwise (Table 5, "only L_diff") the decoder alone does, on the
    #: true latents.
    segmentation: bool = True


def timesteps(uniform: Tensor, count: int, objective: Objective) -> Tensor:
    """Uniform numbers (B,) in [0, 1) -> timesteps (B,) in 0..count - 1, distributed as the objective says."""
    last_share = objective.last_timestep_share
    rest = (uniform - last_share) / (1.0 - last_share) if last_share < 1.0 else uniform
    t = (rest * count).long().clamp(0, count - 1)
    return torch.where(uniform < last_share, count - 1, t)


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

    An organ that no slice of the batch holds has no part in L_Dice. Its Dice would fall from 1 to 1/2 with the first
    pixel that is taken for it, where each of the n pixels of one that the batch holds brings 2 / n: a few batches
    without a small organ would teach not to find it.

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
    logits = logits.float()  # (B, L + 1, H, W); its sums run over a whole batch of pixels
    channels, index = logits.shape[1], mask[:, None]  # index (B, 1, H, W)

    # The pixels' loss, and the share of each class in each pixel. One-hot masks would be as large as the logits, and
    # the loss then a third of a small network's step.
    if pixel_loss == "bce":
        true_logit = logits.gather(1, index)[:, 0]  # (B, H, W)
        per_slice = (F.softplus(logits).sum(dim=1) - true_logit).mean(dim=(1, 2)) / channels  # (B,)
        share, true_share = logits.sigmoid(), true_logit.sigmoid()  # (B, L + 1, H, W), (B, H, W)
    else:
        log_share = logits.log_softmax(dim=1)  # (B, L + 1, H, W)
        true_log_share = log_share.gather(1, index)[:, 0]  # (B, H, W)
        per_slice = -true_log_share.mean(dim=(1, 2))  # (B,)
        share, true_share = log_share.exp(), true_log_share.exp()  # (B, L + 1, H, W), (B, H, W)

    # Dice of each organ over the whole batch: sums by class of the overlap, of the truth, and of both masks.
    pixel_weight = weights.view(-1, 1, 1).expand(mask.shape)  # (B, H, W)
    none = torch.zeros(channels, device=logits.device)  # (L + 1,)
    overlap = none.index_add(0, mask.flatten(), (pixel_weight * true_share).flatten())  # (L + 1,)
    truth = none.index_add(0, mask.flatten(), pixel_weight.flatten())  # (L + 1,)
    total = weights @ share.sum(dim=(2, 3)) + truth  # (B,) @ (B, L + 1) -> (L + 1,)
    overlap, total, truth = over_processes(torch.stack([overlap[1:], total[1:], truth[1:]]))  # (L,) each
    dice = (2.0 * overlap + SMOOTH) / (total + SMOOTH)  # (L,)
    return (weights * per_slice).mean() + 1.0 - torch.where(truth > 0, dice, 1.0).mean()


def over_processes(sums: Tensor) -> Tensor:
    """Sums over a process's slices -> sums over the slices of all processes, with their gradient.

    The Dice of a batch is no mean over its slices, so processes that each took their own would train on another loss
    than one process with the whole batch.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    total: Tensor = torch.distributed.nn.functional.all_reduce(sums)  # type: ignore[no-untyped-call]
    return total
