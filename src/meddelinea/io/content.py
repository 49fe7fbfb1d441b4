"""What kind of file this is, by its first bytes: names are changed, copied wrongly and lost; contents are not."""

from __future__ import annotations

import bz2
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

from meddelinea.endings import ending
from meddelinea.errors import InputRefusedError

#: The kinds that are read: by the ending that each has by itself.
Kind = Literal[".nii", ".hdr", ".nrrd", ".mha", ".zip", ".dcm"]
#: A NIfTI-2 header has so many bytes, and the marks of all other kinds lie within them.
HEAD_BYTES = 540
#: Endings of the two files of an Analyze image, which has no mark of its own.
PAIR_SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
_SUFFIX_KINDS: dict[str, Kind] = {
    ".nii": ".nii",
    ".nii.gz": ".nii",
    ".hdr": ".hdr",
    ".img": ".hdr",
    ".hdr.gz": ".hdr",
    ".img.gz": ".hdr",
    ".nrrd": ".nrrd",
    ".nhdr": ".nrrd",
    ".mha": ".mha",
    ".mhd": ".mha",
    ".zip": ".zip",
    ".dcm": ".dcm",
}
_META_IMAGE = re.compile(rb"\s*(ObjectType|NDims|Comment)\s*=", re.IGNORECASE)


def kind_of(path: Path) -> Kind | None:
    """The kind that a file says it is, else the one that its name says; None where neither says any.

    Raises
    ------
    InputRefusedError
        If it cannot be opened.
    """
    head = first_bytes(path)
    if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0":
        return ".nii"
    if head[344:348] == b"ni1\0" or head[4:8] == b"ni2\0":
        return ".hdr"
    if head[:4] == b"NRRD":
        return ".nrrd"
    if head[:4] == b"PK\x03\x04":
        return ".zip"
    if head[128:132] == b"DICM":
        return ".dcm"
    if _META_IMAGE.match(head):
        return ".mha"
    suffix = ending(path, tuple(_SUFFIX_KINDS))
    return None if suffix is None else _SUFFIX_KINDS[suffix]


def first_bytes(path: Path) -> bytes:
    """The first `HEAD_BYTES` of a file, unpacked where it is a gzip or a bzip2 file; fewer where it has no more.

    Raises
    ------
    InputRefusedError
        If it cannot be opened.
    """
    try:
        with unpacking(path) as stream:
            return stream.read(HEAD_BYTES)
    except OSError as error:
        if error.errno is not None:
            raise InputRefusedError(
                f"{path}: cannot be opened ({error.strerror}); check its permissions", "unreadable"
            ) from error
    except (EOFError, ValueError, zlib.error):
        pass
    return b""  # packed, and damaged from the beginning


@contextmanager
def unpacking(path: Path) -> Iterator[BinaryIO]:
    """A file opened for reading, and unpacked on the way where it is a gzip or a bzip2 file."""
    packing = packing_of(path)
    with path.open("rb") as plain, ExitStack() as stack:
        match packing:
            case "gzip":
                yield cast("BinaryIO", stack.enter_context(gzip.GzipFile(fileobj=plain)))
            case "bzip2":
                yield cast("BinaryIO", stack.enter_context(bz2.BZ2File(plain)))
            case None:
                yield plain


def packing_of(path: Path) -> Literal["gzip", "bzip2"] | None:
    """How a file is packed as a whole, by its first bytes."""
    with path.open("rb") as stream:
        mark = stream.read(3)
    if mark[:2] == b"\x1f\x8b":
        return "gzip"
    return "bzip2" if mark == b"BZh" else None
