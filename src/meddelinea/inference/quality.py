"""May this scan be segmented? One answer for `check` and `predict`.

A network segments whatever it is given: grey values on another scale give an empty or an absurd mask without an error.
So a scan is refused, with its remedy, where its values or its grid cannot be those of the scans a model was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meddelinea.volume import Modality, Volume

#: Voxels that the distribution of values is judged on; a strided subset of this size is plenty.
SAMPLE_VOXELS = 1_000_000
#: Fat begins near -100 HU and air is at -1000: a CT of a body has voxels below this, an MR or a rescaled CT has not.
FAT_OR_AIR_BELOW_HU = -60.0
#: Unenhanced and enhanced soft tissue and blood.
SOFT_TISSUE_HU = (-20.0, 200.0)
#: Smallest share of voxels that counts as "has some".
SOME = 0.01
#: What scanners add to Hounsfield units to store them without a sign.
STORED_OFFSET_HU = 1024.0
#: Different values that a sample may hold and still be a label mask rather than a scan.
LABEL_VALUES = 128


@dataclass(frozen=True)
class Finding:
    """Something to know about a scan before it is segmented.

    Parameters
    ----------
    code
        Stable name of the reason, such as `"rescaled"`, for programs.
    level
        `"refuse"`: a mask would be wrong; `"warn"`: it is made, with care.
    message
        One sentence for people: the value met, what was expected, and the remedy.
    """

    code: str
    level: Literal["refuse", "warn"]
    message: str


def check_volume(volume: Volume, modalities: tuple[Modality, ...] = ("CT",)) -> list[Finding]:
    """Reasons to refuse `volume`, or to take care with it; empty when there is nothing to say.

    Parameters
    ----------
    volume
        The scan as read from its file.
    modalities
        What the model was trained on. Where the file names no modality and the model knows CT only, the values must
        look like Hounsfield units.

    Returns
    -------
    list of Finding
        Refusals first.
    """
    findings = _grid(volume)
    array = volume.array
    if array.dtype.kind not in "iuf":
        findings.append(_refuse("not_numbers", f"the voxels are {array.dtype}; expected real numbers"))
    elif array.size:
        findings += _values(volume, modalities)
    return sorted(findings, key=lambda finding: finding.level != "refuse")


def _refuse(code: str, message: str) -> Finding:
    return Finding(code, "refuse", message)


def _warn(code: str, message: str) -> Finding:
    return Finding(code, "warn", message)


def _grid(volume: Volume) -> list[Finding]:
    """Findings about the shape and the spacing."""
    shape, spacing = volume.array.shape, volume.spacing_mm
    findings = []
    size = " x ".join(f"{mm:.3g}" for mm in spacing)
    if min(shape) < 3:
        count = " x ".join(map(str, shape))
        findings.append(
            _refuse("too_few_slices", f"the volume is {count} voxels; expected 3 or more slices along each axis")
        )
    if min(spacing) < 0.1 or max(spacing) > 20.0:
        findings.append(
            _refuse(
                "spacing", f"the voxel spacing is {size} mm; expected 0.1 to 20 mm along each axis: repair the header"
            )
        )
    elif max(spacing) > 10.0:
        findings.append(_warn("thick_slices", f"the voxel spacing is {size} mm: small organs fall between such slices"))
    extent_mm = sorted(n * mm for n, mm in zip(shape, spacing, strict=True))
    if extent_mm[1] < 60.0:
        seen = " x ".join(f"{mm:.0f}" for mm in extent_mm)
        findings.append(
            _refuse(
                "small_extent",
                f"the volume covers {seen} mm; expected at least 60 x 60 mm of a body: check the spacing in the header",
            )
        )
    if np.array_equal(volume.affine, np.eye(4)):
        findings.append(
            _warn(
                "no_geometry",
                "the affine is the identity, as in a file that lost its header: left and right are guesses",
            )
        )
    return findings


def _values(volume: Volume, modalities: tuple[Modality, ...]) -> list[Finding]:
    """Findings about the grey values, the first refusal only: one wrong scale would raise several."""
    array = volume.array
    lowest, highest = float(array.min()), float(array.max())  # NaN and infinity surface here, without a second array
    if not np.isfinite([lowest, highest]).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        return [
            _refuse(
                "not_finite",
                f"{count} of {array.size} voxels are NaN or infinite; replace them, in a CT by -1024 (air)",
            )
        ]
    if lowest == highest:
        return [_refuse("constant", f"every voxel is {lowest:g}; the scan is empty")]
    trained = " and ".join(modalities)
    if volume.modality is not None and volume.modality not in modalities:
        return [
            _refuse(
                "modality",
                f"the scan is {volume.modality}, the model was trained on {trained}: use a model for {volume.modality}",
            )
        ]
    if "CT" in (volume.modality or modalities) and (volume.modality == "CT" or "MR" not in modalities):
        return _hounsfield(_sample(array), lowest, highest)
    return []


def _sample(array: NDArray[Any]) -> NDArray[np.float32]:
    """About `SAMPLE_VOXELS` voxels on a regular grid, flattened."""
    step = max(1, round((array.size / SAMPLE_VOXELS) ** (1 / 3)))
    return np.asarray(array[::step, ::step, ::step], np.float32).ravel()


def _looks_like_ct(values: NDArray[np.float32]) -> bool:
    """True where there is soft tissue near 0 HU and fat or air well below it."""
    has_low = float(np.mean(values < FAT_OR_AIR_BELOW_HU)) >= SOME
    low, high = SOFT_TISSUE_HU
    has_soft = float(np.mean((values > low) & (values < high))) >= SOME
    return has_low and has_soft


def _hounsfield(values: NDArray[np.float32], lowest: float, highest: float) -> list[Finding]:
    """Findings about values that should be Hounsfield units; the refusals name what they look like instead."""
    met = f"the values run from {lowest:g} to {highest:g}"
    remedy = "pass the original CT in Hounsfield units (air -1000, water 0)"
    if _looks_like_ct(values):
        if lowest >= -400.0:
            return [_warn("windowed", f"{met}: a CT clipped to a window; the original values are better, if kept")]
        return []
    if lowest >= -1.001 and highest <= 1.001:
        scale = "[0, 1]" if lowest >= 0.0 else "[-1, 1]"
        return [_refuse("rescaled", f"{met}: rescaled to {scale}, or a mask; {remedy}")]
    whole = bool((values == np.round(values)).all())
    if lowest == 0.0 and whole and len(np.unique(values)) <= LABEL_VALUES and float(np.mean(values == 0.0)) > 0.5:
        return [_refuse("label_mask", f"{met} in few whole steps: a label mask, not a scan; {remedy}")]
    if lowest >= 0.0 and highest <= 255.5:
        return [_refuse("rescaled", f"{met}: rescaled to grey values 0 to 255; {remedy}")]
    dense = values[values > STORED_OFFSET_HU / 2] - STORED_OFFSET_HU
    # Soft tissue of a CT is a narrow peak; an MR with values in the thousands is spread out.
    narrow = dense.size > 0 and float(np.mean((dense > -20.0) & (dense < 120.0))) > 0.25
    if lowest >= 0.0 and narrow and _looks_like_ct(values - STORED_OFFSET_HU):
        return [
            _refuse(
                "stored_offset",
                f"{met} with soft tissue near 1024: a CT stored without its rescale intercept; subtract 1024",
            )
        ]
    return [
        _refuse(
            "not_hounsfield",
            f"{met}, with neither the fat and air (below {FAT_OR_AIR_BELOW_HU:g}) nor the soft tissue (near 50) "
            f"of a CT: an MR, or another scale; {remedy}",
        )
    ]
