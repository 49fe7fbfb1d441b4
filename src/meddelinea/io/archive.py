"""Zip files: unpacked into a temporary folder, once it is sure that they stay in it and fit."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from meddelinea.errors import InputRefusedError
from meddelinea.files import ending
from meddelinea.temporary import temporary_folder

#: An archive that unpacks to more than this is refused: a long CT is under 2 GB.
MAX_UNZIPPED_BYTES = 16 * 1024**3


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A file or folder itself, or of a zip the temporary folder that `unzipped` makes."""
    if path.is_file() and ending(path, (".zip",)):
        with unzipped(path) as folder:
            yield folder
    else:
        yield path


@contextmanager
def unzipped(path: Path) -> Iterator[Path]:
    """A temporary folder with the files of a zip, removed afterwards; errors inside name the zip in its place.

    Raises
    ------
    InputRefusedError
        If the archive is damaged or encrypted, a member would land outside the folder, is a link, or would overwrite
        another, or all would unpack to more than `MAX_UNZIPPED_BYTES`.
    """
    with temporary_folder() as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                _check_members(path, archive.infolist())
                archive.extractall(folder)
        except InputRefusedError:
            raise
        except Exception as error:  # besides BadZipFile: zlib's, the disk's, and those of unknown compression methods
            raise InputRefusedError(
                f"{path}: the zip cannot be unpacked ({error}); expected a whole archive: is it complete?", "unreadable"
            ) from error
        try:
            yield folder
        except InputRefusedError as error:
            raise InputRefusedError(str(error).replace(str(folder), str(path)), error.code) from error


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
