"""Volume files: what the user names is read or written by its kind.

Patient coordinates are RAS everywhere outside this package.
"""

from __future__ import annotations

import re
import stat
import tempfile
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Literal

from meddelinea.errors import InputRefusedError
from meddelinea.volume import Volume

#: Endings of the files that `write_volume` writes.
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
#: How a DICOM-SEG stores voxels: one image of ids, or for each organ one of bits or one of shares.
SegmentationType = Literal["labelmap", "binary", "fractional"]
#: An archive that unpacks to more than this is refused: a long CT is under 2 GB.
MAX_UNZIPPED_BYTES = 16 * 1024**3


def read_volume(path: Path) -> Volume:
    """Read a scan: `.nii`, `.nii.gz`, `.nrrd`, `.nhdr`, a DICOM folder, a zip of one, or one multi-frame DICOM file.

    The voxels are read when this returns, so a truncated file is found out here. The modality is known from DICOM
    only; other formats do not say it.

    Raises
    ------
    InputRefusedError
        If `path` does not exist, is of another kind, is damaged, or is not one 3D volume placed in the patient.
    """
    if not path.exists():
        raise InputRefusedError(f"{path}: no such file or folder; expected a scan; check the path", "not_found")
    name = path.name.lower()
    if path.is_file() and name.endswith((".nii", ".nii.gz")):
        from meddelinea.io.nifti import read_nifti

        return read_nifti(path)
    if path.is_file() and name.endswith((".nrrd", ".nhdr")):
        from meddelinea.io.nrrd import read_nrrd

        return read_nrrd(path)

    if not may_be_dicom(path):
        raise InputRefusedError(
            f"{path}: not a kind of file that is read; expected .nii, .nii.gz, .nrrd, .nhdr, .zip, or a DICOM folder; "
            "convert it",
            "unknown_kind",
        )
    from meddelinea.io.dicom import read_dicom

    with dicom_place(path) as place:
        return read_dicom(place)


def may_be_dicom(path: Path) -> bool:
    """Whether a path that exists is a folder, a zip, or a file that says it is DICOM by its name or its mark."""
    if path.is_dir() or not path.is_file():  # what is neither, such as a pipe, may never end
        return path.is_dir()
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz", ".nrrd", ".nhdr")):
        return False
    return name.endswith((".zip", ".dcm")) or _has_dicom_mark(path)


@contextmanager
def dicom_place(path: Path) -> Iterator[Path]:
    """Folder or file of a DICOM series: `path` itself, or a temporary folder with what a zip holds."""
    if path.is_file() and path.name.lower().endswith(".zip"):
        with unzipped(path) as folder:
            yield folder
    else:
        yield path


def write_volume(volume: Volume, path: Path) -> None:
    """Write a `.nii`, `.nii.gz` or `.nrrd` file whole or not at all; a file already there is replaced.

    Raises
    ------
    InputRefusedError
        If the ending is another, or the folder is missing, not writable or full.
    """
    from meddelinea.io.nifti import write_nifti
    from meddelinea.io.nrrd import write_nrrd

    ensure_writable(path)
    suffix = next(suffix for suffix in VOLUME_SUFFIXES if path.name.lower().endswith(suffix))
    with whole(path, suffix) as part:
        (write_nrrd if suffix == ".nrrd" else write_nifti)(volume, part)


@contextmanager
def whole(path: Path, suffix: str) -> Iterator[Path]:
    """A hidden name to write to that becomes `path` when all is written; nothing is left where writing fails.

    It ends with `suffix`, and stands beside `path`, so that the move is atomic; not by tempfile, whose files are closed
    to other users.

    Raises
    ------
    InputRefusedError
        If the folder is missing, not writable or full.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{suffix}")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise InputRefusedError(
            f"{path}: cannot be written ({error.strerror or error}); choose another", "output"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what writers of `path` that were killed left; none may be writing it now."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.[a-z.]+")
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        if name.fullmatch(entry.name):
            entry.unlink(missing_ok=True)


def ensure_writable(path: Path, suffixes: tuple[str, ...] = VOLUME_SUFFIXES) -> None:
    """Refuse an output path that cannot be written, before any long work; leaves nothing behind.

    Parameters
    ----------
    path
        The file to come; one that exists may be replaced.
    suffixes
        Endings that the name may have, in lower case.

    Raises
    ------
    InputRefusedError
        If the name ends otherwise, is a folder's, or its folder is missing or not writable.
    """
    if not path.name.lower().endswith(suffixes):
        raise InputRefusedError(f"{path}: unknown ending for the output; expected {' or '.join(suffixes)}", "output")
    if path.is_dir():
        raise InputRefusedError(f"{path}: the output is a folder; expected a file's name", "output")
    if not path.parent.is_dir():
        raise InputRefusedError(f"{path}: the output's folder {path.parent} does not exist; create it first", "output")
    try:
        # Only trying tells: permission bits say nothing of read-only mounts, and nothing to an administrator.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".meddelinea-"):
            pass
    except OSError as error:
        raise InputRefusedError(
            f"{path}: its folder cannot be written ({error.strerror}); choose another", "output"
        ) from error


@contextmanager
def unzipped(path: Path) -> Iterator[Path]:
    """A temporary folder with the files of a zip, removed afterwards; errors inside name the zip in its place.

    Raises
    ------
    InputRefusedError
        If the archive is damaged or encrypted, a member would land outside the folder, is a link, or would overwrite
        another, or all would unpack to more than `MAX_UNZIPPED_BYTES`.
    """
    with tempfile.TemporaryDirectory(prefix="meddelinea-") as name:
        try:
            with zipfile.ZipFile(path) as archive:
                _check_members(path, archive.infolist())
                archive.extractall(name)
        except InputRefusedError:
            raise
        except Exception as error:  # besides BadZipFile: zlib's, the disk's, and those of unknown compression methods
            raise InputRefusedError(
                f"{path}: the zip cannot be unpacked ({error}); expected a whole archive: is it complete?", "unreadable"
            ) from error
        try:
            yield Path(name)
        except InputRefusedError as error:
            raise InputRefusedError(str(error).replace(name, str(path)), error.code) from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """All members of an archive are plain files that stay in its folder and fit on a disk."""
    seen: set[str] = set()
    for member in members:
        place = PureWindowsPath(member.filename)  # knows both slashes and drive letters
        if place.anchor or ".." in place.parts:
            raise InputRefusedError(
                f"{path}: member {member.filename!r} leaves the folder; expected none that does; do not trust the zip",
                "unsafe_archive",
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputRefusedError(
                f"{path}: member {member.filename!r} is a link; expected files; zip the files themselves",
                "unsafe_archive",
            )
        if member.flag_bits & 1:
            raise InputRefusedError(
                f"{path}: member {member.filename!r} is encrypted; expected plain files; unpack it with its password",
                "unsafe_archive",
            )
        if member.filename in seen:
            raise InputRefusedError(
                f"{path}: member {member.filename!r} occurs twice; expected it once; zip the folder again",
                "unsafe_archive",
            )
        seen.add(member.filename)
    size = sum(member.file_size for member in members)
    if size > MAX_UNZIPPED_BYTES:
        raise InputRefusedError(
            f"{path}: unpacks to {size} bytes; expected at most {MAX_UNZIPPED_BYTES}; unpack it and give the folder",
            "unsafe_archive",
        )


def _has_dicom_mark(path: Path) -> bool:
    """Whether a file begins as DICOM does: 128 bytes of any kind, then `DICM`."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError as error:
        raise InputRefusedError(
            f"{path}: cannot be opened ({error.strerror}); check its permissions", "unreadable"
        ) from error
