"""What is wrong with a dataset, found before time is spent on it: each fault with its case, and what to do about it.

A case is compared with all the others: by the median and the median absolute deviation (MAD), which a few faulty ones
do not move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from meddelinea.data.fingerprint import read_sketch
from meddelinea.data.likeness import LEAST_MARKS, likenesses
from meddelinea.fitting.survey import CaseFacts, OrganFacts, Survey

#: Cases from which on one can be told from the others.
ENOUGH = 5
#: MADs, each taken for the deviation of normal values, that are far; and that separate two organs in all others.
FAR, APART = 6.0, 3.0
TO_DEVIATION = 1.4826
#: Least deviation that is believed: of places in millimetres, of logarithms of sizes, of CT values in HU.
LEAST_MM, LEAST_LOG, LEAST_HU = 1.0, 0.35, 20.0
#: Voxels more times smaller or larger than the usual one's are remarked on.
SPACING_FACTOR = 3.0
#: Share of the cases that show an organ, from which on a case without it is remarked on.
USUAL = 0.8
ENDS = (("left", "right"), ("back", "front"), ("head", "feet"))

Code = Literal[
    # nothing may be trained on such a case
    "unreadable",
    "grey_values",
    "no_organ",
    "duplicate",
    "sides",
    "exchanged",
    "mirrored",
    # what a person should look at
    "modalities",
    "spacing",
    "grey_far",
    "size_far",
    "place_far",
    "missing_organ",
]


Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a case, or with the dataset where `case` is empty."""

    case: str
    code: Code
    level: Literal["refuse", "warn"]  # whether nothing may be trained on it
    message: str  # what was found, what was expected, and what to do

    def __str__(self) -> str:
        return f"{self.case or 'the dataset'}: {self.code}: {self.message}"


def find_faults(survey: Survey) -> tuple[Fault, ...]:
    """All faults of a dataset, those that refuse first, each group in order of the cases.

    Of a case that is refused nothing is remarked on besides.
    """
    found = [_refuse(name, "unreadable", reason) for name, reason in survey.broken.items()]
    for refusing in (_grey_scales, _empty, _duplicates, _sides, _exchanged):
        found += refusing(survey.cases)
    for remarking in (_modalities, _spacings, _greys, _sizes, _places):
        found += remarking(survey.cases)
    found += _missing(survey)
    refused = {fault.case for fault in found if fault.level == "refuse" and fault.case}
    kept = [fault for fault in found if fault.level == "refuse" or fault.case not in refused]
    return tuple(sorted(kept, key=lambda fault: (fault.level != "refuse", fault.case)))


def _refuse(case: str, code: Code, message: str) -> Fault:
    return Fault(case=case, code=code, level="refuse", message=message)


def _warn(case: str, code: Code, message: str) -> Fault:
    return Fault(case=case, code=code, level="warn", message=message)


def _grey_scales(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    """Values on another scale than most of the others have, or that are no numbers."""
    counts = Counter(case.refusal.code for case in cases if case.refusal is not None)
    usual = {code for code, count in counts.items() if 2 * count > len(cases)}
    usual -= {"not_numbers", "not_finite", "constant"}
    for case in cases:
        if case.refusal is not None and case.refusal.code not in usual:
            yield _refuse(case.name, "grey_values", f"{case.refusal.message}; or leave the case out")
    for code in sorted(usual):
        yield _warn("", "grey_values", f"most scans: {code}; the model will take scans on this scale and no other")


def _empty(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    for case in cases:
        if not case.organs and (case.refusal is None or case.refusal.code not in ("not_finite", "constant")):
            yield _refuse(case.name, "no_organ", "its mask is empty; label it, or leave the case out")


def _duplicates(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    """Scans that are there twice: in training and in test, the second would be no test."""
    marked = [case for case in cases if np.count_nonzero(read_sketch(case.sketch)) >= LEAST_MARKS]
    for number, case in enumerate(cases):
        earlier = [other for other in cases[:number] if other.fingerprint == case.fingerprint]
        how = "has the same grey values as"
        if not earlier and case in marked:
            others = [other for other in marked[: marked.index(case)] if other.patient != case.patient]
            alike = likenesses(case.sketch, [other.sketch for other in others])
            earlier = [other for other, likeness in zip(others, alike, strict=True) if likeness > 0]
            how = "is a changed copy of"
        if earlier:
            yield _refuse(case.name, "duplicate", f"{how} {earlier[0].name}; keep one of them")


def _sides(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    """Organs of the left side that lie on the right in most cases: a fault of the numbering or of all headers."""
    for left, right in _named_pairs(cases):
        lies = [_between(case, left, right)[0] > 0 for case in cases if {left, right} <= case.organs.keys()]
        if 2 * sum(lies) < len(lies):
            wrong = f"{left} lies to the right of {right} in {len(lies) - sum(lies)} of {len(lies)} cases"
            yield _refuse("", "sides", f"{wrong}; correct the ids' names, or the headers")


def _exchanged(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    """Two organs that lie the other way round than in all other cases, and as usual once they are exchanged.

    A large spleen may well lie below a kidney; it does not lie as far below as a kidney usually lies below it.
    """
    turned: dict[str, list[tuple[str, str, int]]] = {}
    seen: Counter[tuple[str, int]] = Counter()  # pairs that an axis tells apart, by case
    for a, b in combinations(sorted({organ for case in cases for organ in case.organs}), 2):
        both = [case for case in cases if {a, b} <= case.organs.keys()]
        if len(both) < ENOUGH:
            continue
        apart = np.array([_between(case, a, b) for case in both])  # (cases, 3)
        middle, deviation = _spread(apart, LEAST_MM)
        for axis in np.flatnonzero(np.abs(middle) > APART * deviation).tolist():
            far = np.abs(apart[:, axis] - middle[axis]) > FAR * deviation[axis]
            usual = np.abs(apart[:, axis] + middle[axis]) < APART * deviation[axis]  # with the two exchanged
            for case, is_turned in zip(both, far & usual, strict=True):
                seen[case.name, axis] += 1
                if is_turned:
                    turned.setdefault(case.name, []).append((a, b, axis))
    named = set(_named_pairs(cases))
    for name, pairs in sorted(turned.items()):
        across = [(a, b) for a, b, axis in pairs if axis == 0]
        if len(across) == seen[name, 0] >= 3:
            message = "left and right of all organs are exchanged; correct the header, which is mirrored, or the mask"
            yield _refuse(name, "mirrored", f"{message}, or leave the case out")
            continue
        a, b, axis = next(((a, b, axis) for a, b, axis in pairs if {(a, b), (b, a)} & named), pairs[0])
        near, opposite = ENDS[axis]
        message = f"{a} and {b} lie the other way round, {near} and {opposite}, than in all other cases"
        yield _refuse(name, "exchanged", f"{message}; exchange their ids, or leave the case out")


def _named_pairs(cases: Sequence[CaseFacts]) -> list[tuple[str, str]]:
    """Organs that are told by their side, left before right."""
    organs = {organ for case in cases for organ in case.organs}
    lefts = sorted(organ for organ in organs if organ.startswith("left "))
    return [(left, right) for left in lefts if (right := f"right {left.removeprefix('left ')}") in organs]


def _between(case: CaseFacts, a: str, b: str) -> Floats:
    """From the centre of `b` to that of `a`, to the left, to the back and to the head, in millimetres."""
    return np.subtract(case.organs[a].centre_mm, case.organs[b].centre_mm, dtype=np.float64)


def _spread(values: Floats, least: float) -> tuple[Floats, Floats]:
    """Median and deviation of the columns, the latter by the MAD and at least `least`."""
    middle = np.median(values, axis=0)
    return middle, np.maximum(TO_DEVIATION * np.median(np.abs(values - middle), axis=0), least)


def _modalities(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    counts = Counter(case.modality for case in cases)
    if len(counts) > 1:
        met = " and ".join(f"{count} {modality}" for modality, count in sorted(counts.items()))
        yield _warn("", "modalities", f"{met}: one model is made for both; for better ones, fit a folder of each")


def _spacings(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    usual = np.median([case.spacing_mm for case in cases], axis=0) if cases else np.ones(3)
    for case in cases:
        factor = np.array(case.spacing_mm) / usual
        if factor.max() > SPACING_FACTOR or factor.min() < 1 / SPACING_FACTOR:
            sizes = [" x ".join(f"{mm:.3g}" for mm in spacing) for spacing in (case.spacing_mm, usual)]
            yield _warn(case.name, "spacing", f"voxels of {sizes[0]} mm; usual here are {sizes[1]} mm; see its header")


def _greys(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    """CTs whose organs have other Hounsfield units than in the others; an MR's scale is its own."""
    scans = [case for case in cases if case.modality == "CT"]
    for case, organ, usual in _outliers(scans, lambda organ: organ.grey[1], LEAST_HU):
        met = f"{organ} of {case.organs[organ].grey[1]:.0f} HU in the median, usual here are {usual:.0f}"
        yield _warn(case.name, "grey_far", f"{met}; look at its contrast and its scale")


def _sizes(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    for case, organ, usual in _outliers(cases, lambda organ: float(np.log(organ.ml)), LEAST_LOG):
        met = f"{organ} of {case.organs[organ].ml:.3g} ml, usual here are {np.exp(usual):.3g}"
        yield _warn(case.name, "size_far", f"{met}; look at its mask")


def _outliers(
    cases: Sequence[CaseFacts], value_of: Callable[[OrganFacts], float], least: float
) -> Iterable[tuple[CaseFacts, str, float]]:
    """Cases and organs whose value is far from that of the others, with the others' median."""
    for organ in sorted({organ for case in cases for organ in case.organs}):
        having = [case for case in cases if organ in case.organs]
        if len(having) < ENOUGH:
            continue
        values = np.array([value_of(case.organs[organ]) for case in having])
        middle, deviation = _spread(values, least)
        for case, value in zip(having, values, strict=True):
            if abs(value - middle) > FAR * deviation:
                yield case, organ, float(middle)


def _places(cases: Sequence[CaseFacts]) -> Iterable[Fault]:
    """Organs elsewhere in the field of view than in the others, by more than a quarter of it."""
    for organ in sorted({organ for case in cases for organ in case.organs}):
        having = [case for case in cases if organ in case.organs]
        if len(having) < ENOUGH:
            continue
        shares = np.array([np.divide(c.organs[organ].centre_mm, np.maximum(c.field_mm, 1e-6)) for c in having])
        middle, deviation = _spread(shares, 0.04)
        for case, share in zip(having, shares, strict=True):
            off = np.abs(share - middle)
            axis = int(np.argmax(off / deviation))
            if off[axis] > FAR * deviation[axis]:
                towards = ENDS[axis][0 if share[axis] > middle[axis] else 1]
                message = f"{organ} lies {off[axis]:.0%} of the field further to the {towards} than usual"
                yield _warn(case.name, "place_far", f"{message}; look at scan and mask")


def _missing(survey: Survey) -> Iterable[Fault]:
    cases = survey.cases
    for organ in survey.organs:
        without = [case.name for case in cases if organ not in case.organs]
        if cases and len(without) == len(cases):
            yield _warn("", "missing_organ", f"no case shows {organ}; it is left out")
        elif len(cases) >= ENOUGH and len(without) <= (1 - USUAL) * len(cases):
            for name in without:
                others = len(cases) - len(without)
                yield _warn(name, "missing_organ", f"no {organ}, which {others} others show; see that this is meant")
