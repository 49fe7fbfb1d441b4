"""Zip files: unpacked into a temporary folder, once it is sure that they stay in it and fit."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath

from meddelinea.errors import InputRefusedError
from meddelinea.io.content import kind_of
from meddelinea.io.room import require_room, room
from meddelinea.temporary import temporary_folder

#: An archive that unpacks to more than this is refused: a long CT is under 2 GB.
MAX_UNZIPPED_BYTES = 16 * 1024**3
#: So many files and so deep folders are no export of a scan.
MAX_MEMBERS, MAX_FOLDERS, MAX_DEPTH = 100_000, 10_000, 32
_CHUNK_BYTES = 1 << 20


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A file or folder itself, or of a zip the temporary folder that `unzipped` makes."""
    if path.is_file() and kind_of(path) == ".zip":
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
                members = [member for member in archive.infolist() if not member.is_dir()]
                _check_members(members)
                _extract(archive, members, folder)
        except InputRefusedError as error:
            raise InputRefusedError(f"{path}: {error}", error.code) from error
        except Exception as error:  # besides BadZipFile: zlib's, the disk's, and those of unknown compression methods
            raise InputRefusedError(
                f"{path}: the zip cannot be unpacked ({error}); expected a whole archive: is it complete?", "unreadable"
            ) from error
        try:
            yield folder
        except InputRefusedError as error:
            raise InputRefusedError(str(error).replace(str(folder), str(path)), error.code) from error


def member_names(path: Path) -> list[str]:
    """Names of the files in a zip, without hidden ones; none where it cannot be read, which `unzipped` then says."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name for name in archive.namelist() if not is_hidden(_place(name))]
    except Exception:
        return []


def is_hidden(file: Path, folder: Path = Path()) -> bool:
    """Whether a file in an unpacked folder is one that a system keeps beside the files of its user."""
    parts = file.relative_to(folder).parts
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


def _place(name: str) -> Path:
    """Where a member goes; its name may have the slashes of either system."""
    return Path(*PureWindowsPath(name).parts)


def _extract(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    """Unpack members, counted as they are unpacked: what a zip says of their size may be a lie."""
    left = room(MAX_UNZIPPED_BYTES)
    for member in members:
        target = folder / _place(member.filename)
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as packed, target.open("xb") as file:
            while chunk := packed.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise _too_large(None)
                file.write(chunk)


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    """All members of an archive are plain files that stay in its folder and fit on a disk."""
    if len(members) > MAX_MEMBERS:
        raise _unsafe(f"{len(members)} files; expected at most {MAX_MEMBERS}; unpack it and give the folder")
    seen: set[Path] = set()
    folders: set[Path] = set()
    for member in members:
        place = PureWindowsPath(member.filename)  # knows both slashes and drive letters
        what = f"member {member.filename[:200]!r}"
        if place.anchor or ".." in place.parts:
            raise _unsafe(f"{what} leaves the folder; expected none that does; do not trust the zip")
        if len(place.parts) > MAX_DEPTH:
            raise _unsafe(f"{what} lies {len(place.parts)} folders deep; expected at most {MAX_DEPTH}; zip it again")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _unsafe(f"{what} is a link; expected files; zip the files themselves")
        if member.flag_bits & 1:
            raise _unsafe(f"{what} is encrypted; expected plain files; unpack it with its password")
        if _place(member.filename) in seen:
            raise _unsafe(f"{what} occurs twice; expected it once; zip the folder again")
        seen.add(_place(member.filename))
        folders.update(_place(member.filename).parents)
        if len(folders) > MAX_FOLDERS:
            raise _unsafe(f"more than {MAX_FOLDERS} folders; expected those of a scan; unpack it and give the folder")
    size = sum(member.file_size for member in members)
    require_room(size, "it unpacks to")
    if size > MAX_UNZIPPED_BYTES:
        raise _too_large(size)


def _too_large(size: int | None) -> InputRefusedError:
    found = "more than it says" if size is None else f"{size} bytes"
    return _unsafe(f"unpacks to {found}; expected at most {MAX_UNZIPPED_BYTES}; unpack it and give the folder")


def _unsafe(what: str) -> InputRefusedError:
    return InputRefusedError(what, "unsafe_archive")
