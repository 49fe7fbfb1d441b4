"""Which organs of a mask a person should look at before using it, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from meddelinea.results.statistics import OrganStatistics
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.confidence import OrganConfidence

Reason = Literal["not_found", "low_expected_dice"]
#: Why a person should look, for a person.
REASONS: Mapping[Reason, str] = MappingProxyType(
    {
        "not_found": "not found: absent, outside the scan, or missed",
        "low_expected_dice": "to be reviewed: the model is unsure of this mask",
    }
)


@dataclass(frozen=True)
class OrganReview:
    """What is said of an organ's mask.

    Parameters
    ----------
    interval_ml
        Between which millilitres its volume lies, at the calibration's level; None where the organ was not found or the
        model was not calibrated.
    reasons
        Why a person should look; empty where nothing asks for it.
    """

    interval_ml: tuple[float, float] | None
    reasons: tuple[Reason, ...]

    @property
    def remark(self) -> str:
        """The reasons in words; empty where there is none."""
        return "; ".join(REASONS[reason] for reason in self.reasons)

    @property
    def needs_review(self) -> bool:
        """Whether a person should look."""
        return bool(self.reasons)


def review_organs(
    measured: Mapping[str, OrganStatistics],
    confidence: Mapping[str, OrganConfidence],
    calibration: Calibration | None,
) -> dict[str, OrganReview]:
    """Judge each organ that was asked for.

    Parameters
    ----------
    measured, confidence
        Measurements of each organ, and what the model stated of its mask, by name.
    calibration
        The model's; None for a model without one, of whose organs only those not found are to be reviewed.
    """
    return {name: _review(organ, confidence.get(name), calibration) for name, organ in measured.items()}


def _review(
    measured: OrganStatistics, confidence: OrganConfidence | None, calibration: Calibration | None
) -> OrganReview:
    if not measured.found:
        return OrganReview(None, ("not_found",))
    if confidence is None or calibration is None:
        return OrganReview(None, ())
    # A mask may hold an organ on the scan's grid that no voxel of the model's grid has as its likeliest.
    doubtful = confidence.expected_dice is None or confidence.expected_dice < calibration.review_below
    return OrganReview(
        calibration.interval_ml(measured.volume_ml, confidence), ("low_expected_dice",) if doubtful else ()
    )
