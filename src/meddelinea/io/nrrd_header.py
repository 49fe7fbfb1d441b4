"""What the text at the beginning of a NRRD says: the one parser for its reader and for whoever screens files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError, reason_of
from meddelinea.io.stored_voxels import Packing, numbered

#: A header is no longer: that of a segmentation with hundreds of segments is a tenth of it.
HEADER_BYTES = 1 << 20
_TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_KINDS = {name: kind for kind, names in _TYPES.items() for name in names.split("|")}
_PACKINGS: dict[str, Packing] = {
    **{"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"},
    **{"ascii": "text", "text": "text", "txt": "text"},
}
# Fields that may be written without their blank, and those whose values are words of the format.
_BLANKS = {name.replace(" ", ""): name for name in ("data file", "line skip", "byte skip")}
_WORDS = ("type", "encoding", "endian")
_PATTERN = re.compile(r"(\S.*%\d*d\S*)((?:\s+-?\d+){2,4})")


@dataclass(frozen=True, kw_only=True)
class NrrdHeader:
    """What the text before the voxels says.

    Parameters
    ----------
    fields
        Typed values of the format's own fields, by their names in lower case.
    extra
        Values of all other keys (`key:=value`), as they are written.
    sizes
        Number of voxels along each axis, at least 1.
    dtype, packing
        Kind of the voxels, and how they are packed.
    data_files
        Names of the files with the voxels; empty where they follow the header.
    length
        Bytes of the header, with the empty line at its end.
    """

    fields: Mapping[str, Any]
    extra: Mapping[str, str]
    sizes: tuple[int, ...]
    dtype: np.dtype[Any]
    packing: Packing
    data_files: tuple[str, ...]
    length: int

    @property
    def directions(self) -> NDArray[np.float64]:
        """(axes, 3) one step along each axis; NaN for one that is none of space."""
        missing = np.full((len(self.sizes), 3), np.nan)
        return np.asarray(self.fields.get("space directions", missing), np.float64)

    @property
    def aside(self) -> list[int]:
        """The axes that are none of space, where there are more than three."""
        if len(self.sizes) <= 3:
            return []
        return [axis for axis, direction in enumerate(self.directions) if np.isnan(direction).all()]

    @classmethod
    def read(cls, path: Path) -> NrrdHeader:
        """The header of a file; none of its voxels is read.

        Raises
        ------
        InputRefusedError
            If it is none, says a thing twice, or leaves out what is needed to read voxels.
        """
        try:
            with path.open("rb") as stream:
                return _parsed(stream.read(HEADER_BYTES))
        except InputRefusedError as error:
            raise InputRefusedError(f"{path}: {error}", error.code) from error
        except Exception as error:  # the parser raises whatever a foreign or damaged header leads it to
            raise not_readable(path, error) from error


def not_readable(path: Path, error: Exception) -> InputRefusedError:
    """The refusal of a file that another library stumbled over."""
    return InputRefusedError(
        f"{path}: not a readable NRRD file ({reason_of(error)}); expected a whole one: is it complete?", "unreadable"
    )


def _parsed(head: bytes) -> NrrdHeader:
    stream = io.BytesIO(head)
    magic = stream.readline().decode("ascii", "replace").rstrip()
    fields: dict[str, str] = {}
    extra: dict[str, str] = {}
    files: list[str] = []
    ended = False
    for raw in stream:
        line = raw.decode("utf-8", "replace").rstrip()
        if not line:
            ended = True
            break
        if line.startswith("#"):
            continue
        if fields.get("data file", "").split()[:1] == ["LIST"]:
            files.append(line)
            continue
        name, mark, value = re.fullmatch(r"([^:]*)(:=?|$)(.*)", line, re.DOTALL).groups()  # type: ignore[union-attr]
        if not mark:
            raise _damaged(f"a line of its header is {line[:40]!r}; expected `field: value`")
        kept, key = (extra, name) if mark == ":=" else (fields, _canonical(name))
        if key in kept:
            raise _damaged(f"its header has '{key}' twice, with {kept[key]!r} and {value.strip()!r}; expected it once")
        kept[key] = value.strip()
    if len(head) == HEADER_BYTES and not ended:
        raise _damaged(f"its header does not end within {HEADER_BYTES >> 10} KiB; expected it to")

    values = nrrd.read_header([magic, *(f"{key}: {_words(key, value)}" for key, value in fields.items())])
    for key in ("dimension", "type", "encoding", "sizes"):
        if key not in values:
            raise _damaged(f"its header has no '{key}'; expected one")
    sizes = tuple(int(size) for size in fields["sizes"].split())  # the parser rounds fractions
    if len(sizes) != values["dimension"] or min(sizes) < 1:
        raise _damaged(
            f"its header gives {values['dimension']} dimensions and sizes {fields['sizes']}; expected as many"
        )
    packing, kind = _PACKINGS.get(values["encoding"]), _KINDS.get(values["type"])
    if packing is None or kind is None:
        raise _damaged(f"its voxels are '{values['type']}' in '{values['encoding']}'; expected numbers, raw or gzip")
    if kind[1] != "1" and packing != "text" and values.get("endian") not in ("little", "big"):
        raise _damaged(f"its header has endian {values.get('endian', 'missing')}; expected little or big")
    if not files and "data file" in fields:
        pattern = _PATTERN.fullmatch(fields["data file"])
        files = numbered(pattern[1], pattern[2].split()) if pattern else [fields["data file"]]
    if files == ["LIST"]:
        raise _damaged("its header names no data file; expected some after LIST")
    if not files and not ended:
        raise _damaged("its header does not end; expected an empty line, and voxels after it")
    return NrrdHeader(
        fields=values,
        extra=extra,
        sizes=sizes,
        dtype=np.dtype(kind).newbyteorder(">" if values.get("endian") == "big" else "<"),
        packing=packing,
        data_files=tuple(files),
        length=stream.tell(),
    )


def _canonical(name: str) -> str:
    name = " ".join(name.lower().split())
    return _BLANKS.get(name, name)


def _words(key: str, value: str) -> str:
    return value.lower() if key in _WORDS else value


def _damaged(what: str) -> InputRefusedError:
    return InputRefusedError(f"not a readable NRRD file: {what}; is it complete?", "unreadable")
