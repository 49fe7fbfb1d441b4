"""The fit of a calibration: on shares and volumes that are drawn from a known truth, it finds that truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from meddelinea.benchmark.calibration_fit import (
    CAUGHT,
    FLOOR,
    LEVEL,
    StatedOrgan,
    figures,
    fit,
    judged,
)
from meddelinea.benchmark.reliability import Reliability
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.confidence import OrganConfidence

TEMPERATURES = (0.5, 1.0, 1.5, 2.0, 3.0)


def drawn(sharpness: float, voxels: int = 40_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares (1, 4, 1, voxels) that are too sure by a factor, and labels drawn from what they should be."""
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(0.0, 1.5, (voxels, 4)))
    cumulative = logits.softmax(dim=1).cumsum(dim=1).numpy()
    truth = (rng.random((voxels, 1)) > cumulative).sum(axis=1).clip(max=3)
    shares = (sharpness * logits).softmax(dim=1).T.reshape(1, 4, 1, voxels)
    return shares, torch.from_numpy(truth).reshape(1, 1, voxels)


def rows(count: int = 400) -> tuple[StatedOrgan, ...]:
    """Organs whose volume is off by a factor of twice their softness, and whose Dice is the square of the stated."""
    rng = np.random.default_rng(4)
    made = []
    for index in range(count):
        soft = float(rng.uniform(0.1, 0.5))
        expected = float(rng.uniform(0.5, 0.98))
        true_ml = 100.0 * math.exp(2.0 * (soft + FLOOR) * rng.normal())
        confidence = OrganConfidence(expected, 100.0, 100.0 * (1 - soft / 2), 100.0 * (1 + soft / 2))
        score = float(np.clip(expected**2 + rng.normal(0.0, 0.03), 0.0, 1.0))
        made.append(
            StatedOrgan(
                case=f"case{index}",
                organ="liver",
                dice=score,
                volume_ml=100.0,
                true_ml=true_ml,
                confidence=confidence,
                interval_ml=None,
                needs_review=False,
            )
        )
    return tuple(made)


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_the_fitted_temperature_is_the_one_that_the_labels_were_drawn_by(sharpness: float) -> None:
    found = Reliability(TEMPERATURES)
    shares, truth = drawn(sharpness)
    for start in range(0, shares.shape[3], 9000):
        found.add(shares[..., start : start + 9000], truth[..., start : start + 9000])
    best = TEMPERATURES.index(sharpness)
    assert int(np.argmin(found.expected_error())) == best
    assert found.expected_error()[best] < 0.01
    wrong = TEMPERATURES.index(0.5)
    assert found.expected_error()[wrong] > 0.05


def test_the_calibration_error_is_the_mean_gap_of_its_bins() -> None:
    found = Reliability((1.0,))
    shares = torch.tensor([[0.1, 0.9], [0.1, 0.9], [0.3, 0.7], [0.995, 0.005]]).T.reshape(1, 2, 1, 4)
    found.add(shares, torch.tensor([[[1, 0, 1, 0]]]))
    # Two at 0.9 of which one is right, one at 0.7 that is; what is surely and rightly background is left out.
    assert found.expected_error()[0] == pytest.approx((2 * 0.4 + 0.3) / 3)


def test_intervals_hold_the_share_that_they_are_meant_to_and_reviews_catch_theirs() -> None:
    reliability = Reliability(TEMPERATURES)
    reliability.add(*drawn(1.5, 2000))
    given, others = rows(800)[:400], rows(800)[400:]
    asked = []

    def measure(calibration: Calibration) -> tuple[StatedOrgan, ...]:
        asked.append(calibration)
        return given

    calibration, fitted = fit(reliability, measure, "drawn")
    assert [one.temperature for one in asked] == [calibration.temperature]
    # |log(true / mask)| / (softness + floor) is 2 |z|: its 90th percentile is 2 x 1.645.
    assert calibration.spread == pytest.approx(2 * 1.645, rel=0.1)
    on_fitted, on_others = figures(fitted), figures(tuple(judged(row, calibration) for row in others))
    before = figures(others).dice_error
    assert before > 0.15
    assert on_others.dice_error < 0.04
    assert calibration.corrected(OrganConfidence(0.8, 1.0, 1.0, 1.0)).expected_dice == pytest.approx(0.64, abs=0.03)
    assert on_fitted.covered / on_fitted.intervals >= LEVEL
    assert on_others.covered / on_others.intervals == pytest.approx(LEVEL, abs=0.04)
    assert on_fitted.caught / on_fitted.bad == pytest.approx(CAUGHT, abs=0.01)
    assert on_others.caught / on_others.bad == pytest.approx(CAUGHT, abs=0.05)
    assert on_others.false_alarms / on_others.good < 0.1


def test_figures_count_every_organ() -> None:
    sure, unsure = OrganConfidence(0.9, 10.0, 9.0, 11.0), OrganConfidence(0.5, 10.0, 2.0, 30.0)
    none = OrganConfidence(None, 0.0, 0.0, 0.0)
    columns = ("organ", "dice", "volume_ml", "true_ml", "confidence", "interval_ml", "needs_review")
    table = (
        ("liver", 0.95, 10.0, 10.5, sure, (9.0, 11.0), False),
        ("spleen", 0.4, 10.0, 20.0, unsure, (8.0, 12.0), True),
        ("aorta", 0.8, 10.0, 10.0, unsure, (8.0, 12.0), True),
        ("pancreas", 0.0, 0.0, 5.0, none, None, True),  # missed
        ("gallbladder", 0.0, 3.0, 0.0, sure, (2.0, 4.0), False),  # invented
        ("esophagus", math.nan, 0.0, 0.0, none, None, True),  # absent, and not found
    )
    found = figures(tuple(StatedOrgan(case="a", **dict(zip(columns, row, strict=True))) for row in table))
    assert (found.organs, found.bad, found.caught) == (5, 3, 2)
    assert (found.good, found.false_alarms, found.absent, found.absent_flagged) == (2, 1, 1, 1)
    assert (found.intervals, found.covered) == (3, 2)
    assert found.half_width == pytest.approx(0.2)
    assert found.dice_error == pytest.approx((0.05 + 0.1 + 0.3 + 0.9) / 4)
    assert found.risk[1.0] == pytest.approx((0.05 + 0.6 + 0.2 + 1 + 1) / 5)
    assert found.risk[0.5] == pytest.approx((0.05 + 1.0) / 2)  # the two of 0.9
