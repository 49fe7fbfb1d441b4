"""On what scale are the values of a CT? Estimated from the two peaks that every histogram of one with air has.

Air lies at -1000 Hounsfield units and soft tissue near 50. What is denser, bone above all, lies beyond soft tissue and
nothing lies beyond air: so the two peaks tell an offset, a factor, and whether black and white were exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Values = NDArray[np.float64]

AIR_HU, TISSUE_HU = -1000.0, 50.0
#: Distance of the peaks in Hounsfield units: soft tissue is fat in some patients and enhanced in others.
APART_HU = (850.0, 1200.0)
#: What is added to Hounsfield units to store them without a sign; an estimate this near to one of them is taken for it.
OFFSETS_HU = (1000.0, 1024.0, 8192.0, 32768.0)
NEAR_HU = 40.0
BINS = 512
#: How far apart the peaks must lie, as a share of the range of values.
APART = 0.2
#: As shares of the distance of the peaks: bone lies so far beyond soft tissue, and fat so far inside of it. Ringing at
#: the skin, from interpolation, does not reach as far beyond air, and padding lies further.
BONE, FAT = (0.2, 0.8), (0.06, 0.24)
#: How much more there must be of them on one side than on the other.
CLEARLY = 3.0
#: Share of all voxels that a value must have to be padding or a clip, and that lie beyond soft tissue at least.
PILE, SOME_BONE = 0.01, 0.002


@dataclass(frozen=True)
class Peaks:
    """Where air and soft tissue lie in the values of a CT."""

    air: float
    tissue: float

    @property
    def apart(self) -> float:
        """Their distance, below 0 where black and white are exchanged."""
        return self.tissue - self.air

    @property
    def inverted(self) -> bool:
        """Whether air has the higher values."""
        return self.apart < 0.0

    @property
    def in_hounsfield_steps(self) -> bool:
        """Whether the distance is that of Hounsfield units, so that only an offset can be wrong."""
        return APART_HU[0] <= abs(self.apart) <= APART_HU[1]

    @property
    def offset(self) -> float:
        """What was added to Hounsfield units, where the distance is theirs: a common number, or by the air."""
        estimate = self.air - AIR_HU
        common = min(OFFSETS_HU, key=lambda offset: abs(abs(estimate) - offset))
        return (
            float(np.copysign(common, estimate)) if abs(abs(estimate) - common) <= NEAR_HU else float(round(estimate))
        )

    def hounsfield(self, values: Values) -> Values:
        """Values as Hounsfield units, by the two peaks."""
        return (values - self.air) * ((TISSUE_HU - AIR_HU) / self.apart) + AIR_HU


def find_peaks(values: Values) -> Peaks | None:
    """The peaks of air and soft tissue; None where there are no two, or nothing tells which is which."""
    return next((peaks for part in _without_ends(values) if (peaks := _peaks(part)) is not None), None)


def find_modes(values: Values) -> tuple[float, float] | None:
    """The two values, far from each other, near which most voxels lie, the lower first; None if there are not two."""
    return next((modes for part in _without_ends(values) if (modes := _modes(part)) is not None), None)


def _without_ends(values: Values) -> Iterator[Values]:
    """Values without those that many voxels share at either end, padding or a clip; then all of them."""
    piles = [end for end in (values.min(), values.max()) if np.mean(values == end) >= PILE]
    inner = values[~np.isin(values, piles)]
    if piles and inner.size >= BINS:
        yield inner
    yield values


def _modes(values: Values) -> tuple[float, float] | None:
    low, high = np.percentile(values, (0.1, 99.9))
    if not low < high:
        return None
    counts, edges = np.histogram(values, BINS, (low, high))
    smooth = ndimage.gaussian_filter1d(counts.astype(np.float64), 2.0)
    centres = (edges[:-1] + edges[1:]) / 2.0
    is_peak = smooth == ndimage.maximum_filter1d(smooth, 9)
    first = int(np.argmax(smooth))
    others = np.where(is_peak & (abs(centres - centres[first]) >= APART * (high - low)), smooth, 0.0)
    if others.max() < 0.02 * smooth[first]:
        return None
    lower, upper = sorted((float(centres[first]), float(centres[int(np.argmax(others))])))
    return lower, upper


def _peaks(values: Values) -> Peaks | None:
    modes = _modes(values)
    if modes is None:
        return None
    lower, upper = modes
    beyond = _shares((lower - values) / (upper - lower), (values - upper) / (upper - lower), BONE)
    inside = _shares((values - lower) / (upper - lower), (upper - values) / (upper - lower), FAT)
    side = _side(beyond) if max(beyond) >= SOME_BONE else _side(inside)
    return None if side is None else Peaks(upper, lower) if side == 0 else Peaks(lower, upper)


def _shares(from_lower: Values, from_upper: Values, between: tuple[float, float]) -> tuple[float, float]:
    low, high = between
    return float(np.mean((from_lower > low) & (from_lower < high))), float(
        np.mean((from_upper > low) & (from_upper < high))
    )


def _side(shares: tuple[float, float]) -> int | None:
    """At which of the two peaks, 0 or 1, there is clearly more; None where that is not clear."""
    larger = int(shares[1] > shares[0])
    return larger if shares[larger] >= max(SOME_BONE, CLEARLY * shares[1 - larger]) else None
