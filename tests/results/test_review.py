"""Intervals and reviews: what a calibration says of masks, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from meddelinea.results.review import REASONS, review_organs
from meddelinea.results.statistics import NOT_FOUND, OrganStatistics
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.confidence import OrganConfidence

CALIBRATION = Calibration(
    temperature=2.0,
    level=0.9,
    spread=1.5,
    floor=0.1,
    dice=((0.0, 0.0), (1.0, 1.0)),
    review_below=0.8,
    fitted_on="made up",
)
FOUND = OrganStatistics(
    found=True,
    voxels=100,
    volume_ml=50.0,
    mean_intensity=60.0,
    sd_intensity=5.0,
    extent_mm=(1.0, 1.0, 1.0),
    centroid_mm=(0.0, 0.0, 0.0),
    touches_edge=(),
)


def test_a_temperature_flattens_shares_and_keeps_their_order() -> None:
    shares = torch.tensor([0.81, 0.16, 0.03]).view(1, 3, 1, 1)
    roots = shares.sqrt()
    torch.testing.assert_close(CALIBRATION.probabilities(shares), roots / roots.sum())
    certain = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert CALIBRATION.probabilities(certain).isfinite().all()
    assert torch.equal(replace(CALIBRATION, temperature=1.0).probabilities(shares), shares)


def test_an_expected_dice_becomes_what_it_came_to() -> None:
    calibration = replace(CALIBRATION, dice=((0.4, 0.1), (0.8, 0.5), (0.9, 0.9)))
    stated = {0.2: 0.1, 0.4: 0.1, 0.6: 0.3, 0.85: 0.7, 1.0: 0.9}
    for expected, true in stated.items():
        corrected = calibration.corrected(OrganConfidence(expected, 1.0, 2.0, 3.0))
        assert corrected.expected_dice == pytest.approx(true)
        assert corrected.possibly_ml == 3.0
    nothing = OrganConfidence(None, 0.0, 0.0, 0.0)
    assert calibration.corrected(nothing) == nothing


def test_an_interval_is_wider_the_softer_the_mask() -> None:
    hard, soft = OrganConfidence(0.9, 50.0, 50.0, 50.0), OrganConfidence(0.9, 50.0, 40.0, 60.0)
    assert CALIBRATION.interval_ml(50.0, hard) == pytest.approx((50.0 * math.exp(-0.15), 50.0 * math.exp(0.15)))
    assert CALIBRATION.interval_ml(50.0, soft) == pytest.approx((50.0 * math.exp(-0.75), 50.0 * math.exp(0.75)))
    assert CALIBRATION.interval_ml(0.0, hard) is None


def test_an_organ_is_to_be_reviewed_where_it_is_absent_or_doubtful() -> None:
    measured = {"liver": FOUND, "spleen": FOUND, "aorta": FOUND, "pancreas": NOT_FOUND}
    stated = {"liver": 0.8, "spleen": 0.79, "aorta": None, "pancreas": None}
    confidence = {name: OrganConfidence(dice, 50.0, 45.0, 55.0) for name, dice in stated.items()}
    reviews = review_organs(measured, confidence, CALIBRATION)
    assert {name: review.reasons for name, review in reviews.items()} == {
        "liver": (),
        "spleen": ("low_expected_dice",),
        "aorta": ("low_expected_dice",),
        "pancreas": ("not_found",),
    }
    assert [review.needs_review for review in reviews.values()] == [False, True, True, True]
    assert reviews["liver"].interval_ml is not None
    assert reviews["pancreas"].interval_ml is None
    assert reviews["pancreas"].remark == REASONS["not_found"]
    assert reviews["liver"].remark == ""


def test_without_a_calibration_only_absence_is_told() -> None:
    confidence = {"liver": OrganConfidence(0.1, 50.0, 1.0, 99.0)}
    reviews = review_organs({"liver": FOUND, "spleen": NOT_FOUND}, confidence, None)
    assert (reviews["liver"].reasons, reviews["liver"].interval_ml) == ((), None)
    assert reviews["spleen"].reasons == ("not_found",)


def test_a_calibration_comes_back_from_its_file() -> None:
    assert Calibration.from_json(CALIBRATION.to_json()) == CALIBRATION
    with pytest.raises(KeyError):
        Calibration.from_json({"temperature": 1.0})


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_probabilities_sum_to_one(temperature: float) -> None:
    shares = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(5), 64)).float().T.reshape(1, 5, 8, 8)
    found = replace(CALIBRATION, temperature=temperature).probabilities(shares)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, 8, 8))
    assert torch.equal(found.argmax(dim=1), shares.argmax(dim=1))
