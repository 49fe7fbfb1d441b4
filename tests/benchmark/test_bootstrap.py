"""Intervals of the bootstrap against scipy's, and against how often they should hold the truth."""

import math

import numpy as np
import pytest
from scipy import stats

from meddelinea.benchmark.bootstrap import Estimate, column_means, draw_patients, estimate, row_means


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).beta(5, 2, 12)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=40_000, rng=1).confidence_interval
    ours = estimate(float(values.mean()), column_means(draw_patients(12, 0, 40_000), values[:, None])[:, 0])
    assert (ours.low, ours.high) == pytest.approx(theirs, abs=0.003)
    assert ours.high - ours.low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(12), rel=0.1)


def test_the_interval_of_a_mean_over_organs_is_scipys() -> None:
    rng = np.random.default_rng(1)
    dice = rng.beta(5, 2, (15, 4)) - 0.3 * rng.random((15, 1))  # a patient's organs go together
    dice[3, 1] = dice[7, 2] = np.nan  # both masks empty

    def mean(rows: np.ndarray) -> float:
        return float(np.nanmean(np.nanmean(dice[rows], axis=0)))

    theirs = stats.bootstrap((np.arange(15),), mean, method="percentile", vectorized=False, n_resamples=9999, rng=2)
    ours = estimate(mean(np.arange(15)), row_means(column_means(draw_patients(15, 0), dice)))
    assert (ours.low, ours.high) == pytest.approx(theirs.confidence_interval, abs=0.005)


def test_the_interval_holds_the_truth_nearly_as_often_as_it_says() -> None:
    """Of 18 patients 93 in 100; with a standard error of 1 in 100 at 500 trials."""
    weights = draw_patients(18, 0, 1000)
    samples = np.random.default_rng(3).normal(0.7, 0.1, (18, 500))
    limits = [estimate(0.0, resampled) for resampled in column_means(weights, samples).T]
    assert 0.89 < np.mean([limit.low <= 0.7 <= limit.high for limit in limits]) < 0.96


def test_patients_are_drawn_with_replacement_and_by_the_seed() -> None:
    drawn = draw_patients(6, 4, 5000)
    assert (drawn.sum(axis=1) == 6).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(6), abs=0.06)
    assert np.mean(drawn == 0) == pytest.approx((5 / 6) ** 6, abs=0.01)
    assert np.array_equal(drawn, draw_patients(6, 4, 5000))
    assert not np.array_equal(drawn, draw_patients(6, 5, 5000))


def test_values_that_are_missing_or_infinite_are_left_out() -> None:
    values = np.array([[1.0, np.inf, np.nan], [3.0, 5.0, np.nan]])
    means = column_means(np.array([[1.0, 1.0], [2.0, 0.0]]), values)
    assert np.array_equal(means, [[2.0, 5.0, np.nan], [1.0, np.nan, np.nan]], equal_nan=True)
    assert np.array_equal(row_means(means), [3.5, 1.0])
    nothing = estimate(math.nan, np.array([math.nan]))
    assert all(math.isnan(value) for value in (nothing.mean, nothing.low, nothing.high))
    assert estimate(1.0, np.array([1.0, math.nan, 1.0])) == Estimate(1.0, 1.0, 1.0)
