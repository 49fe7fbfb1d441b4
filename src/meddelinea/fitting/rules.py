"""The rules by which a plan decides what a network sees of scans, how that is drawn and changed, and by what network.

They say what `docs/design-notes.md` found on abdominal CTs, and carry it over to scans of other sizes. Each gives its
settings and, for each decision, a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from meddelinea.data.preprocess import Preprocessing
from meddelinea.fitting.survey import CaseFacts

#: A step of four slices of `small` on one core, in float32: seconds, of which Muon and tilted planes have 0.23
#: (docs/history/round-9.md), and seconds for a pixel of a side squared (docs/history/round-7.md).
STEP_SECONDS, PIXEL_SECONDS = 0.27, 1.335e-5
#: Steps that a grid must leave time for.
STEPS = 2000
#: Sides of a slice are multiples of the first, which can be halved, and at most the second.
SIDE, LARGEST_SIDE = 64, 512
#: A body that reaches so far across the field of view fills it.
FILLS = 0.9
#: CT window of the abdomen's recipe, and grey values of organs that it is for.
WINDOW_HU, SOFT_TISSUE_HU = (-125.0, 275.0), (-175.0, 325.0)
#: How many times more slices the commonest organ has than the rarest where the draw evens that out.
UNEVEN = 3.0
#: Share of slices without any organ from which on fewer of them are drawn.
OFTEN_EMPTY = 0.2
#: Scans whose slices differ more than so many times in thickness vary.
VARIED = 1.25
#: Largest tilt of a slice's plane, and the thickest slices between which a tilted plane can be drawn.
TILT_DEG, TILTED_MM = 8.0, 5.0
#: Organs that the finest features of `small` suffice for.
FEW_ORGANS = 31


@dataclass(frozen=True)
class Decision:
    """What was decided, and why."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True)
class Chosen:
    """Settings of a section of a run file, and the decisions behind them."""

    settings: Mapping[str, Any]
    decisions: tuple[Decision, ...]


def choose_grid(cases: Sequence[CaseFacts], seconds: float) -> tuple[Preprocessing, tuple[Decision, ...]]:
    """How scans become slices.

    Parameters
    ----------
    seconds
        Time for the last stage of a training, on a core like the one that `STEP_SECONDS` was measured on.
    """
    # What has to fit into a slice.
    filled = float(np.median([min(np.divide(c.body_mm, np.maximum(c.field_mm[:2], 1e-6))) for c in cases]))
    centre: Literal["body", "field"] = "field" if filled >= FILLS else "body"
    extents = [max(c.field_mm[:2] if centre == "field" else c.body_mm) for c in cases]
    need_mm = max(extents) if centre == "field" else float(np.percentile(extents, 90))
    decisions = [
        Decision(
            "centre",
            "the whole field of view" if centre == "field" else "the body in the middle",
            f"what is not air reaches across {min(filled, 1.0):.0%} of the field of view (median)",
        )
    ]

    # Features of two pixels show each voxel where a pixel is half of one: more pixels than that are never needed.
    voxel_mm = float(np.median([max(c.spacing_mm[:2]) for c in cases]))
    full = SIDE * math.ceil((2 * need_mm / voxel_mm + 1) / SIDE)
    steps_of = math.sqrt(max(seconds / STEPS - STEP_SECONDS, 0.0) / PIXEL_SECONDS)
    side = min(full, max(SIDE, SIDE * int(steps_of / SIDE)), LARGEST_SIDE)
    if side == full:
        pixel_mm, why = voxel_mm / 2, f"half a voxel of {voxel_mm:.3g} mm: features of two pixels show each voxel"
    elif need_mm / (side - 1) <= voxel_mm:
        pixel_mm, why = voxel_mm, "the scans' own voxels, which need no interpolation"
    else:
        pixel_mm = math.ceil(20 * need_mm / (side - 1)) / 20
        why = f"{need_mm:.0f} mm fit, which {'all fields' if centre == 'field' else 'nine in ten bodies'} are within"
    if side < full:
        why += f"; more than {side} pixels leave fewer than {STEPS} steps in the time (half a voxel takes {full})"
    decisions.append(Decision("slices", f"{side} x {side} pixels of {pixel_mm:.3g} mm", why))

    slice_mm, decision = _thickness(cases, pixel_mm)
    decisions.append(decision)
    planes = sorted({str(c.plane) for c in cases} - {"None", "axial"})
    if planes:
        met = f"some scans have {' and '.join(planes)} slices, which are coarse in the axial plane"
        decisions.append(Decision("plane", "axial", met))

    window = WINDOW_HU
    if cts := [c for c in cases if c.modality == "CT"]:
        window, decision = _window(cts)
        decisions.append(decision)
    if any(c.modality == "MR" for c in cases):
        value = "percentiles 0.5 to 99.5 of each scan"
        decisions.append(Decision("grey values of MR", value, "an MR's scale is its scanner's own"))
    grid = Preprocessing(size=side, spacing_mm=pixel_mm, slice_mm=slice_mm, window_hu=window, centre=centre)
    return grid, tuple(decisions)


def _thickness(cases: Sequence[CaseFacts], pixel_mm: float) -> tuple[float, Decision]:
    """Thickness of slices: no less than pixels make use of, unless the flattest organ would have too few of them."""
    apart = float(np.median([c.spacing_mm[2] for c in cases]))
    heights = [
        float(np.median([c.organs[organ].slices * c.spacing_mm[2] for c in cases if organ in c.organs]))
        for organ in sorted({organ for case in cases for organ in case.organs})
    ]
    wanted = min(1.5 * pixel_mm, min(heights) / 5)
    why = f"they lie {apart:.3g} mm apart (median)"
    if wanted > apart:
        why += f"; pixels of {pixel_mm:.3g} mm need no thinner ones; the flattest organ is {min(heights):.0f} mm high"
    return round(max(apart, wanted), 2), Decision("slice thickness", f"{max(apart, wanted):.3g} mm", why)


def _window(cases: Sequence[CaseFacts]) -> tuple[tuple[float, float], Decision]:
    """The CT window that shows the organs."""
    organs = sorted({organ for case in cases for organ in case.organs})
    greys = np.array([np.median([c.organs[o].grey for c in cases if o in c.organs], axis=0) for o in organs])
    low, high = float(greys[:, 0].min()), float(greys[:, 2].max())
    window, why = WINDOW_HU, "the usual window of the abdomen is for such"
    if low < SOFT_TISSUE_HU[0] or high > SOFT_TISSUE_HU[1]:
        step = 10 ** math.floor(math.log10(max(high - low, 1e-6))) / 4
        margin = 0.1 * (high - low)
        window = step * math.floor((low - margin) / step), step * math.ceil((high + margin) / step)
        why = "a tenth more at either end"
    value = f"{window[0]:g} to {window[1]:g} HU"
    return window, Decision("window of CT", value, f"organs have {low:.0f} to {high:.0f} HU (0.5 to 99.5 %); {why}")


def choose_view(cases: Sequence[CaseFacts], slice_mm: float, fixed: tuple[int, int, str] | None = None) -> Chosen:
    """How many slices the network sees together, and whether their thickness is varied.

    Parameters
    ----------
    slice_mm
        Of the grid.
    fixed
        Distance and pairs of neighbours that cannot be chosen, and why.
    """
    few = float(np.median([c.shape[2] for c in cases])) < 5
    reach, pairs, why = 1, 2, "what a slice leaves open its neighbours show"
    if few:
        pairs, why = 1, "the scans have fewer than five slices"
    reach, pairs, why = fixed or (reach, pairs, why)
    thickness = [c.spacing_mm[2] * max(1, round(slice_mm / c.spacing_mm[2])) for c in cases]
    low, high = min(thickness), max(thickness)
    varied = high > VARIED * low
    reason = f"the scans' differ, {low:.3g} to {high:.3g} mm" if varied else f"all scans have {low:.3g} mm or so"
    return Chosen(
        {"neighbours": reach, "neighbour_pairs": pairs, "thickest": 2 if varied else 1},
        (
            Decision("neighbours", f"{2 * pairs + 1} slices, {reach} apart", why),
            Decision("varied thickness", "at times two slices in one" if varied else "no", reason),
        ),
    )


def choose_draw(cases: Sequence[CaseFacts], organs: tuple[str, ...]) -> Chosen:
    """How slices are drawn for training."""
    slices = {o: float(np.mean([c.organs[o].slices if o in c.organs else 0 for c in cases])) for o in organs}
    rare, common = min(slices, key=lambda o: slices[o]), max(slices, key=lambda o: slices[o])
    empty = 1 - sum(c.shown for c in cases) / sum(c.shape[2] for c in cases)
    by_organ, kept = (0.7 if slices[common] > UNEVEN * slices[rare] else 0.3), (0.3 if empty > OFTEN_EMPTY else 1.0)
    value = f"{by_organ:.0%} of the slices by organ, each organ equally often"
    if kept < 1:
        value += f"; of those without any, {kept:.0%} stay in the draw"
    met = f"{rare} is in {slices[rare]:.0f} slices of a scan, {common} in {slices[common]:.0f}"
    reason = f"{met}; {empty:.0%} of all slices show none"
    return Chosen({"rare_organ_share": by_organ, "empty_share": kept}, (Decision("sampling", value, reason),))


def choose_augmentation(organs: tuple[str, ...], grid: Preprocessing) -> Chosen:
    """How slices are changed in training."""
    sided = [organ for organ in organs if {"left", "right"} & set(organ.split())]
    around = grid.centre == "body"
    settings = {"rotation_deg": 20, "scale": 0.25, "tone": 0.06, "sharpness": 0.6, "noise": 0.08}
    settings |= {"field": 0.25 if around else 0.0, "mirror": 0.0 if sided else 0.5}
    value = f"the recipe's, {'without' if sided else 'with'} mirroring{'' if around else ', no round field of view'}"
    why = f"{sided[0]} is told by its side" if sided else "no organ is told by its side"

    thin = grid.slice_mm <= TILTED_MM
    settings["tilt_deg"] = TILT_DEG if thin else 0.0
    tilt = f"by up to {TILT_DEG:g} degrees" if thin else "no"
    slices = f"slices of {grid.slice_mm:.3g} mm {'show' if thin else 'are too thick for'} what lies between them"
    return Chosen(settings, (Decision("augmentation", value, why), Decision("tilted planes", tilt, slices)))


def choose_network(organs: tuple[str, ...]) -> Chosen:
    """The sizes of the network."""
    if len(organs) <= FEW_ORGANS:
        why = f"{len(organs)} organs by 64 features; the best of the sizes that were tried for 4 to 70 minutes"
        return Chosen({}, (Decision("network", "that of small", why),))
    widths = {"stem_channels": [96, 128, 256, 512], "head_hidden": [96, 128, 256]}
    return Chosen(widths, (Decision("network", "small, half as wide again", f"{len(organs)} organs by 96 features"),))
