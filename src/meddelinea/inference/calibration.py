"""What a model's shares mean on scans that it has not seen: probabilities, and how far a volume may be off.

Fitted by `evaluation.calibration` on cases that the fitted models had not seen, and kept as `calibration.json` in the
model's folder. A mask does not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from meddelinea.inference.confidence import OrganConfidence


@dataclass(frozen=True)
class Calibration:
    """Numbers that turn shares into statements.

    Parameters
    ----------
    temperature
        T: a share p stands for a probability proportional to p^(1 / T) (Guo et al., ICML 2017). 1 changes nothing.
    level
        Share of the intervals that are to hold the true volume, 0 to 1.
    spread, floor
        A mask of V ml whose border is B = (possibly - surely) / V wide is said to be of V exp(-r) to V exp(r) ml, with
        r = spread * (B + floor): a split-conformal interval of log V, normalised by how soft the mask is.
    review_below
        Expected Dice under which a person should look.
    fitted_on
        What it was fitted on, in words.
    """

    temperature: float
    level: float
    spread: float
    floor: float
    review_below: float
    fitted_on: str

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """From what `to_json` made of one; a missing key raises KeyError."""
        temperature, level, spread, floor, below = (float(content[field.name]) for field in fields(cls)[:-1])
        return cls(temperature, level, spread, floor, below, str(content["fitted_on"]))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    def probabilities(self, shares: Tensor) -> Tensor:
        """Shares (B, L + 1, rows, columns) as probabilities; the order of the organs in a voxel stays."""
        if self.temperature == 1.0:
            return shares
        return (shares.clamp(min=1e-12).log() / self.temperature).softmax(dim=1)

    def interval_ml(self, volume_ml: float, confidence: OrganConfidence) -> tuple[float, float] | None:
        """Millilitres between which the true volume lies in a share `level` of the cases; None for an absent mask."""
        if volume_ml <= 0.0:
            return None
        r = self.spread * (softness(volume_ml, confidence) + self.floor)
        return volume_ml * math.exp(-r), volume_ml * math.exp(r)


def softness(volume_ml: float, confidence: OrganConfidence) -> float:
    """Volume of the voxels that are possibly but not surely of an organ, over that of its mask."""
    return (confidence.possibly_ml - confidence.surely_ml) / volume_ml
