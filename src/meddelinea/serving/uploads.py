"""Checks of an upload: what kind of file it is by its first bytes, and whether it is safe to read.

The name of an upload cannot be trusted, so it is stored under a new one. The size that its header claims is compared
with the limits before any reader allocates memory for it.
"""

from __future__ import annotations

import bz2
import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path

from meddelinea.endings import SCAN_SUFFIXES, ending
from meddelinea.errors import InputRefusedError
from meddelinea.io.content import HEAD_BYTES, kind_of, packing_of
from meddelinea.io.nrrd_header import NrrdHeader

#: Maximum number of members of a zip: a long dynamic series has some thousands of slices.
ZIP_MEMBERS = 20_000
_CHUNK_BYTES = 1 << 20
_LISTED = b"PK\x01\x02"


def recognise(path: Path) -> str:
    """The file name extension that fits a file's content: `.nii`, `.nii.gz`, `.nrrd`, `.mha`, `.zip` or `.dcm`.

    Raises
    ------
    InputRefusedError
        If it is of no supported kind.
    """
    if not path.stat().st_size:
        raise InputRefusedError("the upload is empty; choose the scan again")
    kind, packed = kind_of(path), packing_of(path)
    if kind == ".nii" and packed == "gzip":
        return ".nii.gz"
    if kind not in (None, ".hdr") and not packed:  # of an image in two files one is not here
        return str(kind)
    raise InputRefusedError(
        "the upload is not a NIfTI (.nii, .nii.gz), NRRD, MetaImage (.mha) or DICOM file, nor a zip of one or a series"
    )


def screen(path: Path, most_bytes: int) -> None:
    """Refuse a file, named after `recognise`, that would take more than `most_bytes` of memory or disk to read.

    Raises
    ------
    InputRefusedError
        If its header claims more voxels, if it unpacks to more bytes, or if it refers to other files.
    """
    match ending(path, SCAN_SUFFIXES):
        case ".nii.gz":
            _check_nifti(_gzip_head(path), most_bytes)
            with gzip.open(path) as stream:
                _check_unpacked(stream, most_bytes)
        case ".nii":
            with path.open("rb") as stream:
                _check_nifti(stream.read(HEAD_BYTES), most_bytes)
        case ".nrrd":
            _check_nrrd(path, most_bytes)
        case ".zip":
            _check_zip(path, most_bytes)


def _gzip_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            return stream.read(HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def _check_nifti(head: bytes, most_bytes: int) -> None:
    """Check the size that a NIfTI header claims, in both versions and byte orders."""
    if len(head) < 348:
        raise InputRefusedError("the NIfTI header is cut short; upload the file again")
    if head[4:8] == b"n+2\0":
        order = "<" if head[:4] == struct.pack("<i", 540) else ">"
        dim = struct.unpack_from(f"{order}8q", head, 16)
        bits = struct.unpack_from(f"{order}h", head, 14)[0]
    else:
        order = "<" if head[:4] == struct.pack("<i", 348) else ">"
        dim = struct.unpack_from(f"{order}8h", head, 40)
        bits = struct.unpack_from(f"{order}h", head, 72)[0]
    if not 1 <= dim[0] <= 7:
        raise InputRefusedError(f"the NIfTI header claims {dim[0]} dimensions; expected 3: the file is damaged")
    _check_claim(dim[1 : dim[0] + 1], max(1, bits // 8), most_bytes)


def _check_claim(sizes: tuple[int, ...], voxel_bytes: int, most_bytes: int) -> None:
    if math.prod(max(1, size) for size in sizes) * voxel_bytes > most_bytes:
        shape = " x ".join(map(str, sizes))
        raise InputRefusedError(
            f"the header claims {shape} voxels of {voxel_bytes} bytes; expected at most {most_bytes >> 20} MiB"
        )


def _check_unpacked(stream: gzip.GzipFile | bz2.BZ2File, most_bytes: int) -> None:
    """Unpack a stream without keeping anything, and stop when it exceeds the limit."""
    total = 0
    try:
        while chunk := stream.read(_CHUNK_BYTES):
            total += len(chunk)
            if total > most_bytes:
                raise InputRefusedError(f"the upload unpacks to more than {most_bytes >> 20} MiB")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputRefusedError(f"the upload cannot be unpacked ({error}); is it complete?") from error


def _check_nrrd(path: Path, most_bytes: int) -> None:
    """Check that a NRRD file holds its own voxels, and that its size is within the limit, unpacked as well."""
    header = NrrdHeader.read(path)
    elsewhere = {"data file", "line skip", "byte skip"}.intersection(header.fields)
    if elsewhere:
        raise InputRefusedError(
            f"the voxels of the NRRD do not follow its header ({elsewhere.pop()}); upload a file that contains them"
        )
    _check_claim(header.sizes, header.dtype.itemsize, most_bytes)
    with path.open("rb") as stream:
        stream.seek(header.length)
        if header.packing == "gzip":
            _check_unpacked(gzip.GzipFile(fileobj=stream), most_bytes)
        elif header.packing == "bzip2":
            _check_unpacked(bz2.BZ2File(stream), most_bytes)


def _check_zip(path: Path, most_bytes: int) -> None:
    """Check the number of members before they are listed, and the sizes that they claim, which unpacking enforces."""
    count = _count_members(path)
    if count > ZIP_MEMBERS:
        raise InputRefusedError(
            f"the zip has {count} members or more; expected one DICOM series of at most {ZIP_MEMBERS}", "unsafe_archive"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except Exception as error:  # not only BadZipFile: also errors of struct, of the disk and of unknown features
        raise InputRefusedError(f"the zip cannot be opened ({error}); is it complete?") from error
    if unpacked > most_bytes:
        raise InputRefusedError(f"the zip unpacks to {unpacked >> 20} MiB; expected at most {most_bytes >> 20} MiB")


def _count_members(path: Path) -> int:
    """Entries in the listing of a zip, or some more, counted by their marks: the record at its end may lie about both.

    To read the listing itself takes half a kilobyte of memory for each of them.
    """
    count, rest = 0, b""
    with path.open("rb") as stream:
        while count <= ZIP_MEMBERS and (chunk := stream.read(_CHUNK_BYTES)):
            count += (rest + chunk).count(_LISTED)
            rest = chunk[-len(_LISTED) + 1 :]
    return count
