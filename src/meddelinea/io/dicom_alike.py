"""Do all slices of a series mean the same? Every header that changes what voxels are, or where they lie, is compared.

What contradicts itself is refused. Slices may be coded differently (another slope, another number of bits), as each is
read by its own header; then their values tell whether those headers are true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.findings import Finding, Refusal, warn
from meddelinea.scan import Frame, Modality

#: Neighbouring slices of a CT differ by less than this on average, in Hounsfield units, however thick they are. A lost
#: intercept moves every voxel by 1000 and more.
JUMP_HU = 300.0
#: Smallest difference of two gantry tilts, in degrees, that is not rounding.
TILT_TOLERANCE_DEG = 0.5

# Whom and what the slices show. Values are not printed, as some are names.
_OF_ONE_PATIENT = ("PatientID", "PatientName", "StudyInstanceUID")
_OF_ONE_SPACE = ("Modality", "FrameOfReferenceUID", "PatientPosition")
# How values are stored. pydicom decodes each image by its own.
_CODING = ("PixelRepresentation", "BitsAllocated", "BitsStored", "HighBit", "PixelPaddingValue")


def compare_headers(frames: Sequence[Frame], headers: Mapping[Path, Any], modality: Modality) -> list[Finding]:
    """Compare the slices of a series in what their headers say of values, patient and space.

    Returns
    -------
    list of Finding
        A remark on what may be, but is rare: a CT none of whose slices has a rescale, and slices that are coded
        differently.

    Raises
    ------
    InputRefusedError
        If slices differ in a header that must be the same in all.
    """
    for what, of in _MEANINGS:
        _require_same(frames, what, of, "mixed_values")
    _require_same_header(headers, "PhotometricInterpretation", "mixed_values")
    for keyword in _OF_ONE_PATIENT:
        _require_same_header(headers, keyword, "mixed_slices", named=False)
    for keyword in _OF_ONE_SPACE:
        _require_same_header(headers, keyword, "mixed_slices")
    _require_one_tilt(headers)
    findings = []
    first = frames[0]
    if modality == "CT" and (first.slope is None or first.intercept is None):
        lost = " and ".join(
            keyword
            for keyword, value in (("RescaleSlope", first.slope), ("RescaleIntercept", first.intercept))
            if value is None
        )
        findings.append(
            warn(
                "no_rescale",
                f"no slice has a {lost}: the stored values are taken for Hounsfield units, as far as they look like "
                "them; export the series again",
            )
        )
    differing = _differing(frames, headers, modality)
    if differing:
        findings.append(
            warn(
                "mixed_coding",
                f"the slices differ in {', '.join(differing)}: each was read by its own header; look twice",
            )
        )
    return findings


def refuse_jumps(
    frames: Sequence[Frame], headers: Mapping[Path, Any], slices: NDArray[Any], modality: Modality
) -> None:
    """Refuse a CT whose values jump between two slices that are coded differently.

    Parameters
    ----------
    slices
        (S, rows, columns) Hounsfield units of the frames.

    Raises
    ------
    InputRefusedError
        If they differ by more than `JUMP_HU` on average.
    """
    codings = [_coding(frame, headers[frame.path], modality) for frame in frames]
    for k in range(len(frames) - 1):
        if modality != "CT" or codings[k] == codings[k + 1]:
            continue
        step = float(np.abs(slices[k + 1].astype(np.float32) - slices[k]).mean())
        if step > JUMP_HU:
            differing = ", ".join(
                f"{keyword} {ours} and {theirs}"
                for (keyword, ours), theirs in zip(codings[k].items(), codings[k + 1].values(), strict=True)
                if ours != theirs
            )
            raise InputRefusedError(
                f"{frames[k + 1].path}: the values jump by {step:.0f} HU from {frames[k].path.name}, from which it "
                f"differs in {differing}; expected one scale; export the series again",
                "mixed_values",
            )


_MEANINGS: tuple[tuple[str, Callable[[Frame], Any]], ...] = (
    ("RescaleSlope", lambda frame: "absent" if frame.slope is None else "present"),
    ("RescaleIntercept", lambda frame: "absent" if frame.intercept is None else "present"),
    ("RescaleType", lambda frame: frame.unit),
)


def _require_same(frames: Sequence[Frame], what: str, of: Callable[[Frame], Any], code: Refusal) -> None:
    """All slices share `of(frame)`; the odd one out of the majority is named."""
    values = [of(frame) for frame in frames]
    usual = max(set(values), key=values.count)
    odd = [frame for frame, value in zip(frames, values, strict=True) if value != usual]
    if odd:
        raise InputRefusedError(
            f"{odd[0].path}: {what} of frame {odd[0].index + 1} is {of(odd[0])}, but {usual} in "
            f"{len(frames) - len(odd)} of {len(frames)} slices; expected the same in all; export the series again",
            code,
        )


def _require_same_header(headers: Mapping[Path, Any], keyword: str, code: Refusal, *, named: bool = True) -> None:
    """All files that say it share the value of `keyword`, unless each has one of its own, as an anonymiser gives them.

    `named` is whether the values may be printed.
    """
    said = {path: _spelled(header.get(keyword)) for path, header in headers.items()}
    said = {path: value for path, value in said.items() if value}
    values = list(said.values())
    if len(set(values)) <= 1 or (len(set(values)) == len(headers) > 2):
        return
    usual = max(set(values), key=values.count)
    odd = next(path for path, value in said.items() if value != usual)
    like_most = next(path for path, value in said.items() if value == usual)
    what = (
        f"is {headers[odd][keyword].value}, but {headers[like_most][keyword].value}" if named else "differs from that"
    )
    raise InputRefusedError(
        f"{odd}: {keyword} {what} in {values.count(usual)} of {len(headers)} files; expected one scan of one patient; "
        "move the others elsewhere",
        code,
    )


def _spelled(value: Any) -> str:
    """A value as it is compared: a name may be in capitals or not, and have trailing parts and other scripts or not."""
    return str(value or "").split("=")[0].strip().rstrip("^ ").casefold()


def _require_one_tilt(headers: Mapping[Path, Any]) -> None:
    """No two files say tilts of the gantry further apart than `TILT_TOLERANCE_DEG`."""
    tilts = {path: header.get("GantryDetectorTilt") for path, header in headers.items()}
    said = {path: float(tilt) for path, tilt in tilts.items() if isinstance(tilt, (int, float))}
    if said and max(said.values()) - min(said.values()) > TILT_TOLERANCE_DEG:
        low, high = min(said, key=said.__getitem__), max(said, key=said.__getitem__)
        raise InputRefusedError(
            f"{high}: GantryDetectorTilt is {said[high]:g} degrees, but {said[low]:g} in {low.name}; expected one "
            "tilt; move the others elsewhere",
            "mixed_slices",
        )


def _coding(frame: Frame, header: Any, modality: Modality) -> dict[str, Any]:
    """How the values of a slice are stored. Some scanners scale each slice of an MR for itself, which is no sign."""
    scale = {"RescaleSlope": frame.slope, "RescaleIntercept": frame.intercept} if modality == "CT" else {}
    return scale | {keyword: header.get(keyword) for keyword in _CODING}


def _differing(frames: Sequence[Frame], headers: Mapping[Path, Any], modality: Modality) -> list[str]:
    codings = [_coding(frame, headers[frame.path], modality) for frame in frames]
    return [keyword for keyword in codings[0] if any(coding[keyword] != codings[0][keyword] for coding in codings)]
