"""The one place that writes files: each appears whole or not at all, under names that are checked before the work.

A file is written under a hidden name in its own folder and then renamed, so that no reader ever meets half of it, and a
full disk or a killed process leaves what stood there before.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meddelinea.errors import InputRefusedError

#: Endings of the volume files that are written.
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
#: Endings of the volume files that are read.
READ_SUFFIXES = (*VOLUME_SUFFIXES, ".nhdr")
#: Endings of the files that hold one scan each.
SCAN_SUFFIXES = (*READ_SUFFIXES, ".zip")
#: Endings that a mask may have.
MASK_SUFFIXES = (*VOLUME_SUFFIXES, ".dcm")


def ending(path: Path, suffixes: tuple[str, ...]) -> str | None:
    """The one of `suffixes`, in lower case, that a file's name ends in; None where it has none of them, or no stem."""
    name = path.name.lower()
    return next((suffix for suffix in suffixes if name.endswith(suffix) and len(name) > len(suffix)), None)


def stem(path: Path, suffixes: tuple[str, ...] = SCAN_SUFFIXES) -> str:
    """A file's name without its ending: `scan.nii.gz` -> `scan`; the whole name where it has none of `suffixes`."""
    return path.name[: len(path.name) - len(ending(path, suffixes) or "")]


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, but for hidden entries: macOS leaves `._name.nii.gz` beside each file it packs."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files directly in a folder that end in one of `suffixes`, by their stem; none if there is no such folder.

    Raises
    ------
    InputRefusedError
        If two files differ in their ending only.
    """
    found: dict[str, Path] = {}
    for path in visible(folder) if folder.is_dir() else ():
        if ending(path, suffixes) is None:
            continue
        other = found.setdefault(stem(path, suffixes), path)
        if other is not path:
            raise InputRefusedError(f"{path} and {other.name}: two files of one name; keep one of them")
    return found


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden name to write to that becomes `path` when all is written; nothing is left where writing fails.

    It stands beside `path`, so that the move is atomic, and ends as `path` does, by which writers choose a format. Not
    by tempfile, whose files are closed to other users.

    Raises
    ------
    InputRefusedError
        If the folder is missing, not writable or full.
    """
    part = _hidden(path)
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_together(path: Path, *others: Path) -> Iterator[tuple[Path, ...]]:
    """Hidden names for files that belong together, such as a mask and its sidecar: they are replaced at once.

    Nothing is replaced before all are written. Whoever finds `path` finds the others that were written with it: an
    older `path` is removed before the others change, and the new one comes last.

    Raises
    ------
    InputRefusedError
        If a folder is missing, not writable or full.
    """
    parts = tuple(_hidden(each) for each in (path, *others))
    try:
        yield parts
        moves = list(zip(parts, (path, *others), strict=True))
        for part, each in moves:  # what could fail is found out before the older `path` is gone
            part.stat()
            if each.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.unlink(missing_ok=True)
        for part, each in reversed(moves):
            part.replace(each)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden, empty folder that becomes `path` when all of it is written; one that stood there before is replaced.

    Raises
    ------
    InputRefusedError
        If it cannot be made, or the disk is full.
    """
    part = _hidden(path)
    try:
        part.mkdir(parents=True)
        yield part
        if path.exists():
            old = _hidden(path)
            path.rename(old)
            try:
                part.rename(path)
            except OSError:
                old.rename(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(text: str, path: Path) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write `document` as indented UTF-8 JSON, whole or not at all. NaN and infinity raise ValueError."""
    write_text(json_text(document), path)


def json_text(document: Mapping[str, Any]) -> str:
    """`document` as the JSON that `write_json` writes."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def append_line(text: str, path: Path) -> None:
    """Add a line to a file, which is made if absent; it is there when this returns.

    Raises
    ------
    InputRefusedError
        If the folder is missing, not writable or full.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_json(path: Path) -> Any:
    """The content of a UTF-8 JSON file.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is not JSON: the caller knows what the file is for and says what to do.
    """
    return json.loads(path.read_text(encoding="utf-8"))


def read_object(path: Path, expected: str) -> dict[str, Any]:
    """The content of a JSON file that a user gives, which holds an object.

    Parameters
    ----------
    expected
        What it should hold, for the message.

    Raises
    ------
    InputRefusedError
        If it cannot be read, or holds something else.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputRefusedError(f"{path}: not readable as JSON ({error}); expected {expected}") from error
    if not isinstance(content, dict):
        raise InputRefusedError(f"{path}: a JSON {type(content).__name__}; expected {expected}")
    return content


def remove_unfinished(path: Path) -> None:
    """Remove what writers of `path` that were killed left; none may be writing it now."""
    _remove(path.parent, re.escape(path.name))


def remove_all_unfinished(folder: Path) -> None:
    """Remove what killed writers left in `folder`, whatever they wrote; none may be writing there now."""
    _remove(folder, ".+")


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
    if ending(path, suffixes) is None:
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


def _hidden(path: Path) -> Path:
    """A name of its own for each writer, so that what a killed one left cannot meet the next one's."""
    suffix = ending(path, MASK_SUFFIXES) or path.suffix
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{suffix}")


def _remove(folder: Path, name: str) -> None:
    unfinished = re.compile(rf"\.{name}\.[0-9a-f]{{32}}[.a-z0-9]*")
    for entry in folder.iterdir() if folder.is_dir() else ():
        if unfinished.fullmatch(entry.name):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> InputRefusedError:
    return InputRefusedError(f"{path}: cannot be written ({error.strerror or error}); choose another", "output")
