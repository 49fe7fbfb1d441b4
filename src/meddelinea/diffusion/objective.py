"""What a model is trained for, and at which timesteps."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from meddelinea.diffusion.losses import PixelLoss, SegmentationWeighting
from meddelinea.diffusion.schedule import PredictionType


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Objective:
    """How a network is trained, checked when it is made.

    Parameters
    ----------
    prediction_type
        What the DiT predicts; the paper: `epsilon`.
    last_timestep_share
        Share of the batch at t = T - 1, where sampling in few steps starts; the rest is uniform. The paper: 0.
    segmentation_weighting, pixel_loss
        See `diffusion.losses`. What is not diffused has no timestep, and every slice the weight one.
    segmentation
        Whether L_seg is used at all (Table 5, "only L_diff").
    """

    prediction_type: PredictionType = "epsilon"
    last_timestep_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    segmentation_weighting: SegmentationWeighting = "alpha_bar"
    pixel_loss: PixelLoss = "bce"
    segmentation: bool = True


def timesteps(uniform: Tensor, count: int, objective: Objective) -> Tensor:
    """Uniform numbers (B,) in [0, 1) -> timesteps (B,) in 0..count - 1, distributed as the objective says."""
    last_share = objective.last_timestep_share
    rest = (uniform - last_share) / (1.0 - last_share) if last_share < 1.0 else uniform
    t = (rest * count).long().clamp(0, count - 1)
    return torch.where(uniform < last_share, count - 1, t)
