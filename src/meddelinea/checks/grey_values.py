"""Can these grey values be those of a CT or an MR? What they are instead is named.

A CT is told by what every body has: soft tissue near 0 Hounsfield units, and fat or air well below it. A scale that
was shifted, stretched, turned over or clipped is recognised by where air and soft tissue lie in it (`ct_scale`). What a
message tells the user to do restores Hounsfield units; where that is not certain, it asks for the original CT.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from meddelinea.checks.ct_scale import NEAR_HU, OFFSETS_HU, PILE, Peaks, Values, find_modes, find_peaks
from meddelinea.findings import Finding, Refusal, refuse, warn
from meddelinea.scan import Modality

#: Fat begins near -100 HU and air is at -1000: a CT of a body has voxels below this, an MR or a rescaled CT has not.
FAT_OR_AIR_BELOW_HU = -60.0
#: Unenhanced and enhanced soft tissue and blood.
SOFT_TISSUE_HU = (-20.0, 200.0)
#: Smallest share of voxels that counts as "has some".
SOME = 0.01
#: A CT is moved where its air is further than this from -1000, and its soft tissue further than that from 0.
MOVED_AIR_HU, MOVED_TISSUE_HU = 100.0, 150.0
#: No tissue peaks above this, and only padding lies below that.
NO_TISSUE_ABOVE_HU, NOTHING_BELOW_HU = 300.0, -1150.0
#: Least share of air for the peak of it to be believed; the larger one where nothing but the peaks says so.
AIR_SHARE, MUCH = 0.03, 0.15
#: Where the air around a patient lies: calibration and lungs alone in view stay inside the inner range.
AIR_HU = (-1150.0, -750.0)
AIR_LIMITS_HU = (-1400.0, -600.0)
#: Larger shares of voxels are never denser than 500 HU (bone) in a body.
DENSE_SHARE = 0.25
#: Metal is denser than any bone.
METAL_ABOVE_HU = 2500.0
#: Shares of voxels at the very lowest and highest value that show that values beyond were cut off.
CLIPPED_LOW, CLIPPED_HIGH = PILE, 0.005
#: Different values that a sample may hold and still be a label mask rather than a scan.
LABEL_VALUES = 128

_REMEDY = "expected Hounsfield units (air -1000, water 0); pass the original CT"


def check_grey_values(values: Values, lowest: float, highest: float, modality: Modality) -> list[Finding]:
    """Findings about grey values, the first refusal only: one wrong scale would raise several.

    Parameters
    ----------
    values
        (N,) finite voxels drawn evenly from the scan.
    lowest, highest
        Of the whole scan; different.
    modality
        What the scan is, or is taken for.
    """
    met = f"the values run from {lowest:g} to {highest:g}"
    return _echoes(values, met) if modality == "MR" else _hounsfield(values, lowest, highest, met)


def metal(dense_ml: float, limit_ml: float) -> list[Finding]:
    """A remark where more of a CT than `limit_ml` is denser than `METAL_ABOVE_HU`."""
    if dense_ml <= limit_ml:
        return []
    return [
        warn(
            "metal",
            f"{dense_ml:.1f} ml are denser than {METAL_ABOVE_HU:g} HU, which only metal is: look twice at organs in "
            "its streaks",
        )
    ]


def _share(condition: NDArray[np.bool_]) -> float:
    return float(np.mean(condition))


def _looks_like_ct(values: Values) -> bool:
    """True where there is soft tissue near 0 HU, fat or air well below it, and not more bone than a body has."""
    low, high = SOFT_TISSUE_HU
    return (
        _share(values < FAT_OR_AIR_BELOW_HU) >= SOME
        and _share((values > low) & (values < high)) >= SOME
        and _share(values > 500.0) <= DENSE_SHARE
    )


def _is_narrow(values: Values) -> bool:
    """Whether what is denser than -512 HU piles up at soft tissue, as in a CT; an MR in the thousands is spread out."""
    dense = values[values > -512.0]
    return dense.size > 0 and _share((dense > -20.0) & (dense < 120.0)) > 0.25


def _air(values: Values, lowest: float) -> float | None:
    """Where the darkest tenth of what is far below fat begins; None where there is hardly any.

    A value that many voxels share at the lower end is padding or a clip, and no measurement.
    """
    dark = values[values < -300.0]
    if _share(values == lowest) >= CLIPPED_LOW:
        dark = dark[dark > lowest]
    return float(np.percentile(dark, 10)) if dark.size >= SOME * values.size else None


def _is_label_mask(values: Values, lowest: float) -> bool:
    whole = bool((values == np.round(values)).all())
    return lowest == 0.0 and whole and len(np.unique(values)) <= LABEL_VALUES and _share(values == 0.0) > 0.5


def _echoes(values: Values, met: str) -> list[Finding]:
    """Findings about the values of an MR, whose scale is arbitrary."""
    if _is_label_mask(values, float(values.min())):
        return [refuse("label_mask", f"{met} in few whole steps: a label mask; expected a scan; pass the MR itself")]
    air = _air(values, float(values.min()))
    below_zero = _looks_like_ct(values) and _is_narrow(values)
    if below_zero and air is not None and AIR_HU[0] <= air <= AIR_HU[1]:
        return [refuse("looks_like_ct", f"{met} with air near {air:.0f}: a CT; expected an MR; use a model for CT")]
    return []


def _hounsfield(values: Values, lowest: float, highest: float, met: str) -> list[Finding]:
    """Findings about values that should be Hounsfield units; the refusals name what they look like instead."""
    looks_right = _looks_like_ct(values)
    if not looks_right and (preset := _known_range(values, lowest, highest, met)) is not None:
        return [preset]
    if (moved := _moved(values, met, looks_right=looks_right)) is not None:
        return [moved]
    on_top = _share(values == highest)  # more than at the other end: air that a window cut off
    if lowest < 0.0 and on_top > max(DENSE_SHARE, _share(values == lowest)) and _looks_like_ct(-values):
        return [refuse("inverted", f"{met} with air on top: a CT turned over; {_REMEDY}, or multiply by -1")]
    return _calibration(values, lowest, highest, met) if looks_right else [_other_scale(values, lowest, highest, met)]


def _moved(values: Values, met: str, *, looks_right: bool) -> Finding | None:
    """Why values in steps of Hounsfield units are none: an offset, or black and white exchanged; None where neither."""
    peaks = find_peaks(values)
    if peaks is None or not peaks.in_hounsfield_steps:
        return None
    undone = peaks.hounsfield(values)
    if not (_looks_like_ct(undone) and _is_narrow(undone) and _share(undone < AIR_LIMITS_HU[1]) >= AIR_SHARE):
        return None
    where = f"{met} with air near {peaks.air:.0f} and soft tissue near {peaks.tissue:.0f}"
    if peaks.inverted:
        below = _share((values < NOTHING_BELOW_HU) & (values > values.min()))
        impossible = peaks.air > NO_TISSUE_ABOVE_HU or below > SOME / 3
        if not (impossible if looks_right else _share(undone < AIR_LIMITS_HU[1]) >= MUCH):
            return None
        exact = ", or multiply by -1" if abs(peaks.air - 1000.0) <= NEAR_HU else ""
        return refuse("inverted", f"{where}: a CT with black and white exchanged; {_REMEDY}{exact}")
    if abs(peaks.air + 1000.0) <= MOVED_AIR_HU or (looks_right and abs(peaks.tissue) <= MOVED_TISSUE_HU):
        return None
    return _offset(peaks, where)


def _offset(peaks: Peaks, where: str) -> Finding:
    offset = peaks.offset
    expected = "expected Hounsfield units (air -1000, soft tissue near 50)"
    if offset > 0.0:
        return refuse(
            "stored_offset",
            f"{where}: a CT stored with an offset, without its rescale intercept; {expected}; export it with its "
            f"intercept, or subtract {offset:g} (estimated from these two)",
        )
    return refuse(
        "offset_twice",
        f"{where}: an intercept applied twice, or a wrong one; {expected}; export it with its intercept once, or add "
        f"{-offset:g} (estimated from these two)",
    )


def _calibration(values: Values, lowest: float, highest: float, met: str) -> list[Finding]:
    """Findings about a CT that has soft tissue where it should be."""
    findings = []
    modes = find_modes(values)
    bright = 0.0 if modes is None else modes[1]
    if bright > NO_TISSUE_ABOVE_HU and _share(abs(values - bright) < MOVED_TISSUE_HU) >= MUCH:
        where = f"{met}, many of them near {bright:.0f}, where no tissue lies"
        return [refuse("rescaled", f"{where}: a CT on another scale; {_REMEDY}")]
    air = _air(values, lowest)
    if air is not None and not AIR_LIMITS_HU[0] <= air <= AIR_LIMITS_HU[1]:
        return [
            refuse("rescaled", f"{met} with air near {air:.0f}: Hounsfield units times {-air / 1000:.2g}; {_REMEDY}")
        ]
    if air is not None and not AIR_HU[0] <= air <= AIR_HU[1]:
        findings.append(
            warn("air_outside_range", f"air lies near {air:.0f}; expected -1000: check the rescale slope, look twice")
        )
    below = lowest >= -400.0 and _share(values == lowest) >= CLIPPED_LOW
    if below or (highest < 1000.0 and _share(values == highest) >= CLIPPED_HIGH):
        findings.append(warn("windowed", f"{met}: a CT clipped to a window; the original values are better, if kept"))
    return findings


def _known_range(values: Values, lowest: float, highest: float, met: str) -> Finding | None:
    """Scales that are told by their range."""
    if lowest >= -1.001 and highest <= 1.001:
        scale = "[0, 1]" if lowest >= 0.0 else "[-1, 1]"
        return refuse("rescaled", f"{met}: rescaled to {scale}, or a mask; {_REMEDY}")
    if _is_label_mask(values, lowest):
        return refuse("label_mask", f"{met} in few whole steps: a label mask; {_REMEDY}")
    if lowest >= 0.0 and highest <= 255.5:
        return refuse("rescaled", f"{met}: rescaled to grey values 0 to 255; {_REMEDY}")
    if abs(float(values.mean())) < 0.05 and abs(float(values.std()) - 1.0) < 0.05:
        return refuse("rescaled", f"{met}: normalised to mean 0 and deviation 1; {_REMEDY}")
    return None


def _other_scale(values: Values, lowest: float, highest: float, met: str) -> Finding:
    """Why values are no Hounsfield units, as precisely as they tell."""
    for bits in (12, 16, 32):
        signed = np.where(values >= 2.0 ** (bits - 1), values - 2.0**bits, values)
        if lowest >= 0.0 and 2.0 ** (bits - 1) <= highest < 2.0**bits and _is_signed_ct(signed, met):
            return refuse(
                "unsigned_wrap",
                f"{met}: negative numbers without their sign; expected -1024 and more; read them as signed numbers of "
                f"{bits} bits",
            )
    for offset in (*OFFSETS_HU, -OFFSETS_HU[1]):  # of a window without air, which alone tells the offset
        if _is_narrow(values - offset) and _looks_like_ct(values - offset):
            code: Refusal = "stored_offset" if offset > 0.0 else "offset_twice"
            return refuse(code, f"{met}, about {offset:g} off: a wrong rescale intercept, or none; {_REMEDY}")
    peaks = find_peaks(values)
    undone = None if peaks is None else peaks.hounsfield(values)
    if peaks is not None and undone is not None and _is_narrow(undone) and _looks_like_ct(undone):
        apart = f"air near {peaks.air:.3g} and soft tissue near {peaks.tissue:.3g}"
        if not peaks.inverted:
            return refuse("rescaled", f"{met} with {apart}: a CT on another scale; {_REMEDY}")
        if _share(undone < AIR_LIMITS_HU[1]) >= MUCH:
            return refuse("inverted", f"{met} with {apart}: a CT with black and white exchanged; {_REMEDY}")
    thousandths = values * 1000.0
    if _is_narrow(thousandths) and _looks_like_ct(thousandths):
        return refuse("rescaled", f"{met}: Hounsfield units divided by about 1000; {_REMEDY}")
    if -60.0 <= lowest < 0.0 and _share(values == lowest) >= CLIPPED_LOW and _share(values == highest) >= CLIPPED_HIGH:
        return refuse("narrow_window", f"{met}, with many at both ends: clipped to a window without fat; {_REMEDY}")
    return refuse(
        "not_hounsfield",
        f"{met}, with neither the fat and air (below {FAT_OR_AIR_BELOW_HU:g}) nor the soft tissue (near 50) "
        f"of a CT: an MR, or another scale; {_REMEDY}",
    )


def _is_signed_ct(values: Values, met: str) -> bool:
    return (_is_narrow(values) and _looks_like_ct(values)) or _moved(values, met, looks_right=False) is not None
