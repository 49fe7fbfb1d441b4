"""How far a mean would move with other patients: percentile intervals of the bootstrap over patients.

A patient is drawn with all organs and cases, because these are not independent of each other. With few patients
such intervals are too narrow: for means of 4 normal values they hold the true one in 80 of 100 cases, not in 95; for
means of 18 in 93.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with the limits of its interval; all NaN where there is no value."""

    mean: float
    low: float
    high: float


def draw_patients(patients: int, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """How often each patient is drawn in each resample, (resamples, patients); each row sums to `patients`."""
    share = np.full(patients, 1.0 / patients)
    return np.random.default_rng(seed).multinomial(patients, share, size=resamples).astype(np.float64)


def column_means(weights: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of the columns under each row of weights, values that are NaN or infinite left out.

    Parameters
    ----------
    weights
        (R, rows): how often each row of `values` counts.
    values
        (rows, columns) of what is averaged.

    Returns
    -------
    (R, columns); NaN where a column has no value with a weight.
    """
    finite = np.isfinite(values)
    counts = weights @ finite.astype(np.float64)
    sums = weights @ np.where(finite, values, 0.0)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means


def row_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of the rows over what is no NaN; NaN for a row without any."""
    return column_means(np.ones((1, values.shape[1])), values.T).ravel()


def estimate(mean: float, resampled: NDArray[np.float64]) -> Estimate:
    """A mean with the percentile interval of its resampled values (R,); resamples without a value are left out."""
    known = resampled[~np.isnan(resampled)]
    if math.isnan(mean) or not len(known):
        return Estimate(mean, math.nan, math.nan)
    low, high = np.quantile(known, [(1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0])
    return Estimate(mean, float(low), float(high))
