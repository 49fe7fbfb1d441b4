"""Copies of an image among the files of a series, as a folder that was copied into itself holds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meddelinea.findings import Finding, warn
from meddelinea.io.dicom_files import read_pixels

Files = list[tuple[Path, Any]]


def pass_over_copies(files: Files, keywords: Sequence[str]) -> tuple[Files, list[Finding]]:
    """The files without those that repeat another, and a remark where there are some.

    A copy has the SOPInstanceUID of another file, the same values of `keywords`, and the same pixels. A file that has
    only the first of these is kept: some anonymisers give every image of a series one SOPInstanceUID.

    Raises
    ------
    InputRefusedError
        If the pixels of what may be a copy cannot be read.
    """
    kept: Files = []
    copies: list[tuple[Path, Path]] = []
    first: dict[tuple[str, str], tuple[Path, Any]] = {}
    for path, header in files:
        uid = str(header.get("SOPInstanceUID") or "")
        other = first.setdefault((uid, str(header.get("ImagePositionPatient"))), (path, header)) if uid else None
        if other is not None and other[0] != path and _is_copy(other, (path, header), keywords):
            copies.append((path, other[0]))
        else:
            kept.append((path, header))
    if not copies:
        return kept, []
    copy, original = copies[0]
    return kept, [
        warn(
            "copied_files",
            f"{len(copies)} file(s) repeat others (same SOPInstanceUID and pixels), such as {copy.name} the file "
            f"{original.name}: passed over",
        )
    ]


def _is_copy(one: tuple[Path, Any], other: tuple[Path, Any], keywords: Sequence[str]) -> bool:
    (path, header), (other_path, other_header) = one, other
    if any(header.get(keyword) != other_header.get(keyword) for keyword in keywords):
        return False
    frames = range(int(header.get("NumberOfFrames") or 1))
    pairs = zip(
        read_pixels(path, header, frames), read_pixels(other_path, other_header, frames), strict=True
    )  # one frame at a time
    return all(np.array_equal(stored, other_stored) for stored, other_stored in pairs)
