"""Fits what a model states of its masks on cases that it has not seen, and measures on others how far it is true."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.optimize import isotonic_regression

from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.benchmark.reliability import Reliability
from meddelinea.data.case import Case, read_case
from meddelinea.evaluation.metrics import dice
from meddelinea.labels import organ_ids
from meddelinea.results.review import review_organs
from meddelinea.results.statistics import organ_statistics
from meddelinea.segmentation.calibration import Calibration, softness
from meddelinea.segmentation.confidence import OrganConfidence
from meddelinea.segmentation.model import Model
from meddelinea.segmentation.predict import segment

#: Share of the volume intervals that are to hold the truth.
LEVEL = 0.9
#: Added to the softness of a mask's border, so that a hard one has no interval of width 0.
FLOOR = 0.05
#: A mask with a Dice below this is a bad one, of which this share is to be caught.
BAD_DICE, CAUGHT = 0.7, 0.9
#: An expected Dice that is left as it is.
AS_STATED = ((0.0, 0.0), (1.0, 1.0))
#: A calibration that changes nothing.
UNCALIBRATED = Calibration(
    temperature=1.0, level=LEVEL, spread=0.0, floor=0.0, dice=AS_STATED, review_below=0.0, fitted_on="nothing"
)
#: Shares of the organs that are kept, the surest first.
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.3)


@dataclass(frozen=True, kw_only=True)
class StatedOrgan:
    """What a model stated of an organ in one case, beside what the labels say."""

    #: Names of the case and of the organ.
    case: str
    organ: str
    dice: float  # against the labels, on the scan's grid; NaN where neither holds the organ
    #: Volume of the mask and of the labels, in millilitres.
    volume_ml: float
    true_ml: float
    confidence: OrganConfidence  # what the model stated of its mask
    #: Between which millilitres the true volume was said to lie; None where the mask holds nothing.
    interval_ml: tuple[float, float] | None
    needs_review: bool  # whether a person was asked to look


def gather_rows(
    models: Iterable[tuple[Model, tuple[Case, ...]]],
    organs: tuple[str, ...],
    calibration: Calibration,
    progress: ShowProgress = unwatched,
) -> tuple[StatedOrgan, ...]:
    """Segment each model's cases, and gather what it states of each organ under `calibration` beside the labels."""
    rows = []
    for model, cases in models:
        calibrated = replace(model, files=replace(model.files, calibration=calibration))
        for done, case in enumerate(cases):
            progress("masks against labels", done, len(cases))
            read = read_case(case, organs)
            made = segment(calibrated, read.scan)
            measured = organ_statistics(read.volume, made.mask, made.labels)
            reviews = review_organs(measured, made.confidence, calibration)
            for organ, index in organ_ids(organs).items():
                true, review = read.mask.array == index, reviews[organ]
                rows.append(
                    StatedOrgan(
                        case=case.name,
                        organ=organ,
                        dice=dice(made.mask.array == made.labels[organ], true),
                        volume_ml=measured[organ].volume_ml,
                        true_ml=float(np.count_nonzero(true)) * read.mask.voxel_ml,
                        confidence=made.confidence[organ],
                        interval_ml=review.interval_ml,
                        needs_review=review.needs_review,
                    )
                )
    return tuple(rows)


def fit(
    reliability: Reliability, measure: Callable[[Calibration], tuple[StatedOrgan, ...]], fitted_on: str
) -> tuple[Calibration, tuple[StatedOrgan, ...]]:
    """The calibration of models, from cases that they had not seen.

    The temperature is the one with the least calibration error. Then the expected Dice is mapped to the true one by
    isotonic regression, `spread` is chosen to hold a share `LEVEL` of the true volumes, and `review_below` to catch a
    share `CAUGHT` of the bad masks.

    Parameters
    ----------
    reliability
        How often the models' likeliest label is right, from `gather_reliability`.
    measure
        `gather_rows` of the same models and cases, under the calibration that it is given.
    fitted_on
        Description of the cases, for people.

    Returns
    -------
    The calibration, and the rows that it was fitted on, as it judges them.
    """
    temperature = reliability.temperatures[int(np.argmin(reliability.expected_error()))]
    open_ended = replace(UNCALIBRATED, temperature=temperature, floor=FLOOR, fitted_on=fitted_on)
    rows = measure(open_ended)
    calibration = replace(open_ended, spread=_spread(rows), dice=_true_dice(rows))
    calibration = replace(calibration, review_below=_review_below([judged(row, calibration) for row in rows]))
    return calibration, tuple(judged(row, calibration) for row in rows)


def judged(row: StatedOrgan, calibration: Calibration) -> StatedOrgan:
    """A row as a calibration states it; its expected Dice must be the one that the shares themselves give."""
    confidence = calibration.corrected(row.confidence)
    expected = confidence.expected_dice
    return replace(
        row,
        confidence=confidence,
        interval_ml=calibration.interval_ml(row.volume_ml, row.confidence),
        needs_review=expected is None or expected < calibration.review_below,
    )


def _spread(rows: tuple[StatedOrgan, ...]) -> float:
    """The split-conformal quantile of |log(true / mask)| over the softness, of organs that both hold."""
    scores = sorted(
        abs(math.log(row.true_ml / row.volume_ml)) / (softness(row.volume_ml, row.confidence) + FLOOR)
        for row in rows
        if row.volume_ml > 0 and row.true_ml > 0
    )
    rank = math.ceil((len(scores) + 1) * LEVEL)
    return scores[min(rank, len(scores)) - 1] if scores else 0.0


def _true_dice(rows: tuple[StatedOrgan, ...]) -> tuple[tuple[float, float], ...]:
    """Expected Dice -> true Dice, as points: the blocks of an isotonic regression, each at the mean of its block."""
    known = [row for row in rows if row.confidence.expected_dice is not None and not math.isnan(row.dice)]
    if not known:
        return AS_STATED
    # What was stated, each value once and in ascending order, and what it came to on average.
    stated, where, counts = np.unique(
        [row.confidence.expected_dice for row in known], return_inverse=True, return_counts=True
    )
    true = np.bincount(where, [row.dice for row in known]) / counts

    # Each block of the regression has one true Dice, which belongs to the middle of what was stated in it.
    fitted = isotonic_regression(true, weights=counts)
    blocks = pairwise(fitted.blocks.tolist())
    return tuple(
        (float(np.average(stated[first:end], weights=counts[first:end])), float(fitted.x[first]))
        for first, end in blocks
    )


def _review_below(rows: Sequence[StatedOrgan]) -> float:
    """The smallest expected Dice under which a share `CAUGHT` of the bad masks lie, those without a mask apart."""
    bad = sorted(
        row.confidence.expected_dice for row in rows if row.dice < BAD_DICE and row.confidence.expected_dice is not None
    )
    if not bad:
        return 0.0
    return float(np.nextafter(bad[math.ceil(CAUGHT * len(bad)) - 1], np.inf))


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How far what was stated of organs is true."""

    organs: int  # rows with a Dice: the organ is in the mask or in the labels
    #: Those with a Dice under `BAD_DICE`, and how many of them were said to need a review.
    bad: int
    caught: int
    #: The others, and how many of them were said to need one.
    good: int
    false_alarms: int
    #: Organs that neither mask nor labels hold, and how many of them were said to need a review.
    absent: int
    absent_flagged: int
    #: Volumes with an interval whose organ the labels hold, and how many it holds.
    intervals: int
    covered: int
    half_width: float  # median of the intervals' upper end over the mask's volume, less 1
    dice_error: float  # mean distance of expected and true Dice where both are known
    risk: dict[float, float]  # mean of 1 - Dice over the share of rows that are most sure, by that share


def figures(rows: tuple[StatedOrgan, ...]) -> Figures:
    """Count and average over organs and cases."""
    known = [row for row in rows if not math.isnan(row.dice)]
    absent = [row for row in rows if math.isnan(row.dice)]
    bad = [row for row in known if row.dice < BAD_DICE]
    good = [row for row in known if row.dice >= BAD_DICE]
    spans = [(row, row.interval_ml) for row in known if row.interval_ml is not None and row.true_ml > 0]
    widths = [high / row.volume_ml - 1.0 for row, (_, high) in spans]
    pairs = [(row.confidence.expected_dice, row.dice) for row in known if row.confidence.expected_dice is not None]
    surest = sorted(known, key=lambda row: -(row.confidence.expected_dice or 0.0))
    kept = {share: surest[: max(1, round(share * len(surest)))] for share in COVERAGES} if surest else {}
    return Figures(
        organs=len(known),
        bad=len(bad),
        caught=sum(row.needs_review for row in bad),
        good=len(good),
        false_alarms=sum(row.needs_review for row in good),
        absent=len(absent),
        absent_flagged=sum(row.needs_review for row in absent),
        intervals=len(spans),
        covered=sum(low <= row.true_ml <= high for row, (low, high) in spans),
        half_width=float(np.median(widths)) if widths else math.nan,
        dice_error=float(np.mean([abs(stated - true) for stated, true in pairs])) if pairs else math.nan,
        risk={share: float(np.mean([1.0 - row.dice for row in part])) for share, part in kept.items()},
    )
