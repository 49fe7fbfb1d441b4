"""The files of a DICOM series: which they are, and their headers and pixels, also as odd programs write them."""

from __future__ import annotations

import io
import math
import os
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_preamble
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels import iter_pixels
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from meddelinea.errors import InputRefusedError, reason_of
from meddelinea.io.room import room

#: A deflated file that inflates to more than this is refused: a multi-frame CT of 2000 slices has as much.
MAX_INFLATED_BYTES = 1024**3
_CHUNK_BYTES = 1 << 20
_UNDEFINED_LENGTH = 0xFFFFFFFF
# The markers of JPEG and JPEG-LS that the size of the image follows.
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises on a damaged file into a refusal, and keep its notes on odd values to itself.

    Scanners write many values that break the standard's form (over-long numbers, odd UIDs, excess padding); pydicom
    notes them as warnings and reads them all the same. What a volume needs is checked where it is read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pydicom|highdicom")
        try:
            yield
        except InputRefusedError:
            raise
        except Exception as error:
            raise InputRefusedError(
                f"{path}: not a readable DICOM file ({reason_of(error)}); expected a whole one; copy or export it "
                "again",
                "unreadable",
            ) from error


def files_below(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones, sorted. Linked folders are followed, each folder once.

    A link to a folder that holds `folder` is not followed: it would lead to all that lies beside it.

    Raises
    ------
    InputRefusedError
        If a folder cannot be listed, or a link leads nowhere.
    """

    def refuse(error: OSError) -> None:
        raise InputRefusedError(
            f"{error.filename}: cannot be listed ({error.strerror}); expected a folder; check its permissions",
            "unreadable",
        ) from error

    files, seen = [], {folder.resolve()}
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        inner = {name: Path(place, name).resolve() for name in sorted(folders)}
        folders[:] = []
        for name, real in inner.items():
            if real not in seen and real not in folder.resolve().parents:
                folders.append(name)
                seen.add(real)
        files += [Path(place, name) for name in names if not name.startswith(".")]
    for file in files:
        if file.is_symlink() and not file.exists():
            raise InputRefusedError(
                f"{file}: a link to {file.readlink()}, which is not there; expected a file; fetch it, or remove the "
                "link",
                "unreadable",
            )
    return sorted(file for file in files if file.is_file())


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, with its mark or, as older programs wrote it, without.

    Without it a file begins at once with an element of group 2 or 8, the lowest that there are.

    Raises
    ------
    InputRefusedError
        If the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError as error:
        raise InputRefusedError(
            f"{path}: cannot be opened ({error.strerror}); expected a file; check its permissions", "unreadable"
        ) from error
    if head[128:] == b"DICM":
        return True
    if len(head) < 8 or head[:2] not in (b"\x08\x00", b"\x02\x00", b"\x00\x08"):
        return False
    return (head[4:6].isalpha() and head[4:6].isupper()) or int.from_bytes(head[4:8], "little") < 1 << 12


def read_header(path: Path) -> Any:
    """The header of a DICOM file.

    Its transfer syntax is the one that was met where the file does not say it, and never the deflated one.

    Raises
    ------
    InvalidDicomError
        If the file is not DICOM.
    InputRefusedError
        If it is damaged, or inflates to more than `MAX_INFLATED_BYTES`.
    """
    if not is_dicom(path):
        raise InvalidDicomError
    with decoding(path), opened(path) as stream:
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        header.buffer = None  # of a deflated file it holds all the pixels
        if not header.file_meta.get("TransferSyntaxUID"):
            header.file_meta.TransferSyntaxUID = _transfer_syntax(header)
        return header


def read_pixels(path: Path, header: Any, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """(rows, columns) stored values of frames of a file, in the order of `indices`.

    Raises
    ------
    InputRefusedError
        If they cannot be decoded, or the file holds more of them than its header says.
    """
    with decoding(path), opened(path) as stream:
        require_sizes(path, stream, header)
        syntax = header.file_meta.TransferSyntaxUID
        yield from iter_pixels(stream, indices=list(indices), transfer_syntax_uid=syntax)


def inflate(path: Path, most_bytes: int) -> BinaryIO | None:
    """A deflated DICOM file as the plain one that it stands for, in memory; None for one that is not deflated.

    Raises
    ------
    InputRefusedError
        If it inflates to more than `most_bytes`, or is cut short.
    """
    with _bounded(path) as stream:
        read_preamble(stream, force=True)
        meta = FileMetaDataset(read_dataset(stream, False, True, stop_when=lambda tag, *_: tag.group != 2))
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return None
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        plain = io.BytesIO()
        plain.write(b"\0" * 128 + b"DICM")
        write_file_meta_info(plain, meta, enforce_standard=False)
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        packed = b""
        while not inflating.eof and (packed := inflating.unconsumed_tail or stream.read(_CHUNK_BYTES)):
            plain.write(inflating.decompress(packed, _CHUNK_BYTES))
            if plain.tell() > most_bytes:
                raise InputRefusedError(
                    f"{path}: a deflated DICOM file that inflates to more than {most_bytes} bytes; expected one image; "
                    "do not trust it, or save it without deflation",
                    "unsafe_archive",
                )
    if not inflating.eof:
        raise InputRefusedError(
            f"{path}: the deflated data set ends too early; expected a whole file; copy it again", "unreadable"
        )
    plain.seek(0)
    return plain


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A DICOM file, a deflated one as the plain one that it stands for."""
    plain = inflate(path, room(MAX_INFLATED_BYTES))
    if plain is not None:
        yield plain
        return
    with _bounded(path) as stream:
        yield stream


class _Bounded(io.BufferedReader):
    """A file that takes no more memory than it holds, whatever length an element of it claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _CHUNK_BYTES:
            size = min(size, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(size)


def _bounded(path: Path) -> BinaryIO:
    return cast("BinaryIO", _Bounded(io.FileIO(path)))


def _transfer_syntax(header: Any) -> UID:
    """How a header was found to be written."""
    implicit, little_endian = header.original_encoding
    if not little_endian:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def require_sizes(path: Path, stream: BinaryIO, header: Any) -> None:
    """Refuse more pixel data than the header says, before anything is decoded.

    Some bytes more are padding; a row or a column more is a picture that would be sheared or cut. A compressed frame
    says its own size, which is what a decoder would take memory for. The stream is left at its beginning.

    Raises
    ------
    InputRefusedError
        If a row, a column or a frame is too many.
    """
    rows, columns = int(header.Rows), int(header.Columns)
    # This leaves the stream at the pixels.
    pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=["Rows"])
    implicit, little_endian = header.original_encoding
    element = stream.read(8 if implicit else 12)
    length = int.from_bytes(element[-4:], "little" if little_endian else "big")
    frames = int(header.get("NumberOfFrames") or 1)
    voxel_bits = int(header.get("BitsAllocated") or 0) * int(header.get("SamplesPerPixel") or 1)
    if length != _UNDEFINED_LENGTH:
        expected = math.ceil(rows * columns * frames * voxel_bits / 8)
        if length - expected >= max(2, min(rows, columns) * voxel_bits // 8):
            raise InputRefusedError(
                f"{path}: {length} bytes of PixelData; expected {expected} for Rows {rows}, Columns {columns}, "
                f"BitsAllocated {header.get('BitsAllocated')} and {frames} frame(s); export it again",
                "broken_header",
            )
    elif element:
        for frame in generate_frames(stream, number_of_frames=frames):
            size = _frame_size(frame)
            if size not in (None, (rows, columns)):
                raise InputRefusedError(
                    f"{path}: a compressed frame of {size} rows and columns; expected Rows {rows} and Columns "
                    f"{columns}; export it again",
                    "broken_header",
                )
    stream.seek(0)


def _frame_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 frame says that it has; None where it does not."""
    start = frame.find(b"\xff\x4f\xff\x51", 0, 256)
    if start >= 0:
        right, bottom, left, top = (int.from_bytes(frame[start + k : start + k + 4], "big") for k in (8, 12, 16, 20))
        return bottom - top, right - left
    place = 2
    while frame[:2] == b"\xff\xd8" and frame[place : place + 1] == b"\xff":
        marker = frame[place + 1]
        if marker in _START_OF_FRAME:
            rows, columns = (int.from_bytes(frame[place + k : place + k + 2], "big") for k in (5, 7))
            return (rows, columns) if rows else None
        place += 1 if marker == 0xFF else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    return None
