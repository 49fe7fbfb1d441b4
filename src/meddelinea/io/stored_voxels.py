"""Voxels behind or beside a text header, as NRRD and MetaImage keep them: found, unpacked and counted, then read."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.io.room import require_room

#: How voxels are packed; those of zlib may also be gzip's.
Packing = Literal["raw", "gzip", "bzip2", "zlib", "text"]
_CHUNK_BYTES = 1 << 22
#: Bytes that a number takes in a text at most: a 64-bit float in full, and a blank.
_NUMBER_BYTES = 32
#: Data files that a header may name: more than any scan has slices.
_MOST_FILES = 100_000


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a file with voxels, up to the file's end.

    Parameters
    ----------
    path
        The file.
    start, lines
        Bytes, and then lines, that come before it.
    skipped
        Bytes to be passed over then, counted as they are when unpacked.
    at_end
        Whether it is as much as is needed of the file's end, whatever comes before.
    """

    path: Path
    start: int = 0
    lines: int = 0
    skipped: int = 0
    at_end: bool = False


def read_voxels(parts: Sequence[Part], dtype: np.dtype[Any], shape: tuple[int, ...], packing: Packing) -> NDArray[Any]:
    """Voxels of that kind and shape, the first axis running fastest, from one part or as many of equal size.

    What the parts hold is counted before memory is taken for it.

    Raises
    ------
    InputRefusedError
        If they hold more or less than the shape, or what is no number of that kind.
    OSError, EOFError, zlib.error
        If they are damaged.
    """
    each, rest = divmod(math.prod(shape), len(parts))
    if rest:
        raise InputRefusedError(
            f"{len(parts)} data files for {_times(shape)} voxels; expected equal shares; copy all of them", "unreadable"
        )
    require_room(math.prod(shape) * (dtype.itemsize + (_NUMBER_BYTES if packing == "text" else 0)), "its voxels take")
    if packing == "text":
        return np.concatenate([_numbers(part, each, dtype) for part in parts]).reshape(shape, order="F")
    promised = each * dtype.itemsize
    for part in parts:
        held = _length(part, packing, promised)
        if held != promised:
            wrong = "is it complete?" if held < promised else "where it holds more, its header is damaged: export again"
            more = " or more" if held > promised and packing != "raw" else ""
            raise InputRefusedError(
                f"{part.path.name} holds {held} bytes of voxels{more}; expected {promised} "
                f"of the {_times(shape)} that the header promises; {wrong}",
                "unreadable",
            )
    array = np.empty(math.prod(shape), dtype)
    for number, part in enumerate(parts):
        there = array[number * each : (number + 1) * each].view(np.uint8).data
        with _opened(part, packing, promised) as stream:
            while there:
                count = stream.readinto(there)  # type: ignore[attr-defined]
                if not count:
                    raise EOFError("the voxels ended while they were read")
                there = there[count:]
    return array.reshape(shape, order="F")


def beside(header: Path, names: Sequence[str]) -> list[Path]:
    """The data files that a header names, which lie in its folder or below it.

    Raises
    ------
    InputRefusedError
        If one would lie elsewhere, also by a link, or is not there.
    """
    folder = header.parent.resolve()
    for name in names:
        path = header.parent / name
        if not path.resolve().is_relative_to(folder):
            raise InputRefusedError(
                f"its voxels are in {name!r}, outside its own folder; expected them in it; move both into one",
                "unreadable",
            )
        if not path.is_file():
            raise InputRefusedError(
                f"its voxels are in {name!r}, which is no file here; expected both; copy both", "unreadable"
            )
    return [header.parent / name for name in names]


def numbered(pattern: str, numbers: Sequence[str]) -> list[str]:
    """The names that `slice%03d.raw` stands for with its first and last number, and the step where there is one.

    Raises
    ------
    InputRefusedError
        If it has no single place for a number, or stands for none or too many.
    """
    try:
        first, last, step = (int(number) for number in [*numbers, "1"][:3])
        names = range(first, last + (1 if step > 0 else -1), step)
    except ValueError:
        names = range(0)
    if not 0 < len(names) <= _MOST_FILES or not re.fullmatch(r"[^%]*%(0?\d)?d[^%]*", pattern):
        raise InputRefusedError(
            f"its voxels are in {' '.join([pattern, *numbers])!r}; expected a pattern such as slice%03d.raw, and first "
            "and last number; repair the header",
            "unreadable",
        )
    return [pattern % number for number in names]


def _length(part: Part, packing: Packing, promised: int) -> int:
    """Bytes of voxels in a part; of packed ones no more are counted than is needed to tell that they are too many."""
    held = 0
    with _opened(part, packing, promised) as stream:
        if packing == "raw":
            return max(0, part.path.stat().st_size - stream.tell())
        while held <= promised and (chunk := stream.read(_CHUNK_BYTES)):
            held += len(chunk)
    return held


def _numbers(part: Part, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """So many numbers that are written out."""
    with _opened(part, "text", 0) as stream:
        text = stream.read(count * _NUMBER_BYTES + 1)
    values = np.fromstring(text.replace(b",", b" ").decode("ascii", "replace"), np.float64, sep=" ")
    if len(values) != count or len(text) > count * _NUMBER_BYTES:
        raise InputRefusedError(
            f"{part.path.name} has {len(values)} numbers; expected {count} as the header promises; is it complete?",
            "unreadable",
        )
    with np.errstate(invalid="ignore", over="ignore"):
        array = values.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(array, values):
        raise InputRefusedError(
            f"{part.path.name} has numbers from {values.min():g} to {values.max():g}; expected whole ones of the kind "
            f"{dtype}; export it again",
            "unreadable",
        )
    return array


@contextmanager
def _opened(part: Part, packing: Packing, promised: int) -> Iterator[BinaryIO]:
    """The part as a stream, unpacked, from its first voxel on."""
    with part.path.open("rb") as plain:
        plain.seek(part.start)
        for _ in range(part.lines):
            if not plain.readline():
                break
        if packing in ("raw", "text"):
            size = part.path.stat().st_size
            plain.seek(max(plain.tell(), size - promised) if part.at_end else plain.tell() + part.skipped)
            yield plain
            return
        unpacked: BinaryIO
        if packing == "gzip":
            unpacked = cast("BinaryIO", gzip.GzipFile(fileobj=plain))
        elif packing == "bzip2":
            unpacked = cast("BinaryIO", bz2.BZ2File(plain))
        else:
            unpacked = cast("BinaryIO", io.BufferedReader(_Inflating(plain)))
        with unpacked:
            left = part.skipped
            while left and (chunk := unpacked.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)
            yield unpacked


class _Inflating(io.RawIOBase):
    """A stream of zlib's or gzip's, unpacked as it is read; cut short, it raises EOFError."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._inflater = packed, zlib.decompressobj(wbits=47)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail or self._packed.read(_CHUNK_BYTES)
            if not packed:
                raise EOFError("the compressed voxels end before their end mark")
            if unpacked := self._inflater.decompress(packed, len(buffer)):
                buffer[: len(unpacked)] = unpacked
                return len(unpacked)
        return 0


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
