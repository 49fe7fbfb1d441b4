"""The values in a DICOM header that a volume needs: each can be read, and numbers that are written oddly are mended.

Programs that run under a German or French locale write `0,75` for 0.75, and some write numbers under a value
representation of text. What is meant is plain, so it is read, and remarked upon.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement

from meddelinea.errors import InputRefusedError, reason_of
from meddelinea.findings import Finding, warn

_NUMBERS = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "SliceThickness",
    "GantryDetectorTilt",
)
# A scan is read without these.
_OPTIONAL = ("SliceThickness", "GantryDetectorTilt")
_FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def mend_numbers(path: Path, header: Any) -> dict[str, str]:
    """Read the geometry and the rescale of a header, in memory, as the numbers that they are.

    Returns
    -------
    dict
        What was written oddly, by its keyword.

    Raises
    ------
    InputRefusedError
        If one of them is no number; it is named.
    """
    odd = {}
    for dataset in _parts(header):
        for keyword in _NUMBERS:
            if keyword in dataset:
                text = _oddly_written(dataset, keyword)
                if text is not None:
                    _set(path, dataset, keyword, text)
                    odd[keyword] = text
    return odd


def describe_mended(mended: Mapping[Path, Mapping[str, str]]) -> list[Finding]:
    """A remark on each keyword that was written oddly in some files."""
    findings = []
    for keyword in sorted({keyword for odd in mended.values() for keyword in odd}):
        files = [path for path, odd in mended.items() if keyword in odd]
        text = mended[files[0]][keyword]
        read = f"read as '{_plain(text)}'" if _numbers(text) else "no number, so passed over"
        findings.append(
            warn(
                "odd_numbers",
                f"{keyword} '{_shown(text)}' is not written as DICOM writes numbers in {len(files)} file(s), such as "
                f"{files[0].name}: {read}; correct the program that wrote it",
            )
        )
    return findings


def require_readable(path: Path, dataset: Any, keywords: list[str]) -> None:
    """Refuse a header with a value that cannot be read among `keywords`; its tag is named.

    Raises
    ------
    InputRefusedError
        If there is one.
    """
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        if tag in dataset:
            try:
                element = dataset[tag]
                for item in element.value or () if element.VR == "SQ" else ():
                    for _ in item.iterall():
                        pass
            except Exception as error:  # values are converted on first use, by code for each representation
                raise InputRefusedError(
                    f"{path}: {keyword} {dataset.get_item(tag).tag} cannot be read ({reason_of(error)}); expected a "
                    "value of its kind; repair the header",
                    "broken_header",
                ) from error


def _parts(header: Any) -> Iterator[Any]:
    """A header, and the functional groups that describe the frames of a multi-frame one."""
    yield header
    for name in _FUNCTIONAL_GROUPS:
        for group in header.get(name) or ():
            for element in group:
                if element.VR == "SQ":
                    yield from element.value


def _oddly_written(dataset: Any, keyword: str) -> str | None:
    """The text of a value that pydicom gives no numbers for; None where it does, or there is none."""
    tag = tag_for_keyword(keyword)
    try:
        element = dataset[tag]
    except Exception:  # a number that it cannot convert
        return _decoded(dataset.get_item(tag).value)
    value = element.value
    items = [value] if isinstance(value, (bytes, str, Real)) else list(value or ())
    if all(isinstance(item, Real) for item in items):
        return None
    return "\\".join(map(_decoded, items))


def _decoded(value: Any) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.strip("\0 ")


def _shown(text: str) -> str:
    """The beginning of a text, in one line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:60])


def _plain(text: str) -> str:
    """Numbers with decimal points for commas, where a comma can be nothing else."""
    parts = text.split("\\")
    return "\\".join(part.replace(",", ".") if part.count(",") == 1 and "." not in part else part for part in parts)


def _numbers(text: str) -> list[str]:
    """The parts of a text if all of them are numbers, else none."""
    parts = _plain(text).split("\\")
    try:
        return parts if all(math.isfinite(float(part)) for part in parts) else []
    except ValueError:
        return []


def _set(path: Path, dataset: Any, keyword: str, text: str) -> None:
    """Set an element to the numbers that its text means; one that a scan is read without is removed if it has none."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    numbers = _numbers(text)
    if numbers:
        dataset[tag] = DataElement(tag, "DS", numbers)
    elif keyword in _OPTIONAL:
        del dataset[tag]
    else:
        raise InputRefusedError(
            f"{path}: {keyword} {dataset.get_item(tag).tag} is '{_shown(text)}'; expected numbers with decimal points; "
            "repair the header",
            "broken_header",
        )
