"""Which files belong to an input: all that is read when it is, whatever its header or its folder calls them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from meddelinea.endings import ending
from meddelinea.errors import InputRefusedError

#: Fields of the headers of NRRD and MetaImage that name files with the voxels. What follows can be a list of names.
_DATA_FIELD = re.compile(rb"(?:data ?file:=?|elementdatafile\s*=)\s*(.*?)\s*$", re.IGNORECASE)
#: Longer headers than this are no headers; the names of their files come last.
_HEADER_BYTES = 4 * 1024**2
#: A volume has no more files.
MOST_FILES = 100_000


def files_of(source: Path, *, without: Path | None = None) -> tuple[Path, ...]:
    """The files of a scan, sorted: itself, or all below a folder, links followed; data files that its header names.

    Parameters
    ----------
    source
        Need not exist; then it has no files.
    without
        A folder that does not count where it lies below `source`: that of the results.

    Raises
    ------
    InputRefusedError
        If a folder cannot be listed, or a header not be read.
    """
    try:
        if source.is_dir():
            left_out = None if without is None else os.path.realpath(without)
            return tuple(sorted(_below(source, {os.path.realpath(source)}, left_out)))
        if not source.is_file():
            return ()
        return tuple(sorted({source, *_named_by_header(source)}))
    except OSError as error:
        raise InputRefusedError(
            f"{error.filename or source}: cannot be opened ({error.strerror}); check its permissions", "unreadable"
        ) from error


def _below(folder: Path, seen: set[str], left_out: str | None) -> Iterator[Path]:
    """Files below a folder, each real folder once: links can lead round in a circle."""
    for entry in folder.iterdir():
        if entry.is_dir():
            place = os.path.realpath(entry)
            if place not in seen and place != left_out:
                seen.add(place)
                yield from _below(entry, seen, left_out)
        elif entry.is_file():
            yield entry


def _named_by_header(path: Path) -> Iterator[Path]:
    """Files beside a header that hold its voxels; those that exist."""
    match ending(path, (".nrrd", ".nhdr", ".mhd", ".mha", ".hdr", ".img", ".img.gz")):
        case ".nrrd" | ".nhdr" | ".mhd" | ".mha":
            names = _listed_in(path)
        case ".hdr" | ".img" | ".img.gz":
            stem = re.sub(r"\.(hdr|img|img\.gz)$", "", path.name, flags=re.IGNORECASE)
            names = [f"{stem}{suffix}" for suffix in (".hdr", ".img", ".img.gz", ".HDR", ".IMG")]
        case _:
            return
    for name in names:
        if (file := path.parent / name).is_file():
            yield file


def _listed_in(header: Path) -> list[str]:
    """Names of the data files that a NRRD or MetaImage header gives: one, a list, or a pattern of numbers."""
    with header.open("rb") as stream:
        lines = stream.read(_HEADER_BYTES).splitlines()
    for number, line in enumerate(lines):
        if not line.strip() and ending(header, (".nrrd", ".nhdr")):
            return []  # the voxels follow
        found = _DATA_FIELD.match(line.strip())
        if found is None:
            continue
        value = os.fsdecode(found[1])
        if value.upper().split()[:1] == ["LIST"]:
            return [os.fsdecode(line.strip()) for line in lines[number + 1 :]]
        pattern = re.fullmatch(r"([^%]*%\d{0,3}d[^%\s]*)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(?:\s+\d+)?", value)
        if pattern is None or int(pattern[4]) == 0:
            return [value]
        first, last, step = (int(pattern[number]) for number in (2, 3, 4))
        numbers = range(first, last + (1 if step > 0 else -1), step)
        return [pattern[1] % number for number in numbers[:MOST_FILES]]
    return []
