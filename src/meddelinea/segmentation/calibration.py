"""What a model's shares mean on scans that it has not seen: probabilities, and how far a volume may be off.

Fitted by `benchmark.calibration_fit` on cases that the fitted models had not seen, and kept as `calibration.json` in
the model's folder. A mask does not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from meddelinea.segmentation.confidence import OrganConfidence

Share = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(allow_inf_nan=False))
class Calibration:
    """Numbers that turn shares into statements, checked when they are put together.

    Parameters
    ----------
    temperature
        T: a voxel's share p stands for a probability proportional to p^(1 / T) (Guo et al., ICML 2017). 1 changes
        nothing. What is said of whole organs is made of the shares themselves, which order them better.
    level
        Share of the intervals that are to hold the true volume, 0 to 1.
    spread, floor
        A mask of V ml whose border is B = (possibly - surely) / V wide is said to be of V exp(-r) to V exp(r) ml, with
        r = spread * (B + floor): a split-conformal interval of log V, normalised by how soft the mask is.
    dice
        Points (expected from the shares, true on average) of a rising line that is straight between them: what an
        expected Dice came to. ((0, 0), (1, 1)) changes nothing.
    review_below
        Expected Dice, as `dice` has it, under which a person should look.
    fitted_on
        What it was fitted on, in words.
    """

    temperature: Annotated[float, Field(strict=True, ge=0.01, le=100.0)]
    level: Share
    spread: Annotated[float, Field(strict=True, ge=0.0, le=1000.0)]
    floor: Annotated[float, Field(strict=True, ge=0.0, le=1000.0)]
    dice: Annotated[tuple[tuple[Share, Share], ...], Field(min_length=1)]
    review_below: Share
    fitted_on: str

    def __post_init__(self) -> None:
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(self.dice)):
            raise ValueError("dice: expected points of a rising line, from left to right")

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """From what `to_json` made of one; a missing key raises KeyError, a bad value ValueError."""
        return cls(**{field.name: content[field.name] for field in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    def probabilities(self, shares: Tensor) -> Tensor:
        """Shares (B, L + 1, rows, columns) as probabilities; the order of the organs in a voxel stays."""
        if self.temperature == 1.0:
            return shares
        return (shares.clamp(min=1e-12).log() / self.temperature).softmax(dim=1)

    def corrected(self, confidence: OrganConfidence) -> OrganConfidence:
        """The confidence that its own shares state, with the expected Dice that this came to."""
        if confidence.expected_dice is None:
            return confidence
        stated, true = zip(*self.dice, strict=True)
        return replace(confidence, expected_dice=float(np.interp(confidence.expected_dice, stated, true)))

    def interval_ml(self, volume_ml: float, confidence: OrganConfidence) -> tuple[float, float] | None:
        """Millilitres between which the true volume lies in a share `level` of the cases; None for an absent mask."""
        if volume_ml <= 0.0:
            return None
        r = self.spread * (softness(volume_ml, confidence) + self.floor)
        return volume_ml * math.exp(-r), volume_ml * math.exp(r)


def softness(volume_ml: float, confidence: OrganConfidence) -> float:
    """Volume of the voxels that are possibly but not surely of an organ, over that of its mask."""
    return (confidence.possibly_ml - confidence.surely_ml) / volume_ml
