"""The one place that writes files: each appears whole or not at all, under names that are checked before the work.

A file is written under a hidden name in its own folder and then renamed, so that no reader ever meets half of it, and a
full disk or a killed process leaves what stood there before. Files that belong together are replaced together.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from meddelinea.endings import MASK_SUFFIXES, VOLUME_SUFFIXES, ending
from meddelinea.errors import InputRefusedError
from meddelinea.json_files import json_text
from meddelinea.locks import locked, nobody_writes_in, writing_in

#: Bytes of a file's name that its hidden name repeats: with what is added it stays below any file system's limit.
_REPEATED_BYTES = 90
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{32}[.a-z0-9]*")
#: Held while files that belong together are moved into a folder.
_MOVING = ".meddelinea.moving"
#: The hidden names in `whole_together`: what is written there by a writer of single files is written in place.
_PARTS: set[Path] = set()


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden name to write to that becomes `path` when all is written; nothing is left where writing fails.

    It stands beside `path`, so that the move is atomic, and ends as `path` does, by which writers choose a format. Not
    by tempfile, whose files are closed to other users. A name that `whole_together` gave is one already.

    Raises
    ------
    InputRefusedError
        If the folder is missing, not writable or full.
    """
    if path in _PARTS:
        yield path
        return
    part = _hidden(path)
    try:
        with writing_in(path.parent):
            yield part
            part.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_together(path: Path, *others: Path) -> Iterator[tuple[Path, ...]]:
    """Hidden names for files that belong together, such as a mask and its sidecar: all are replaced, or none.

    Nothing is replaced before all are written. Whoever finds `path` finds the others that were written with it: an
    older `path` is removed before the others change in their order, and the new one comes last. Where one cannot be
    replaced, those that were are put back.

    Raises
    ------
    InputRefusedError
        If a folder is missing, not writable or full.
    """
    targets = (path, *others)
    parts = tuple(_hidden(target) for target in targets)
    _PARTS.update(parts)
    try:
        with ExitStack() as folders:
            for folder in {target.parent for target in targets}:
                folders.enter_context(writing_in(folder))
            yield parts
            with locked(path.with_name(_MOVING), wait=True):  # of two writers, each replaces all
                _replace_all(parts, targets)
    except OSError as error:
        failed = dict(zip(map(str, parts), targets, strict=True)).get(str(error.filename), path)
        raise _cannot_write(failed, error) from error
    except InputRefusedError as error:
        said = str(error)
        for part, target in zip(parts, targets, strict=True):
            said = said.replace(str(part), str(target))
        raise InputRefusedError(said, error.code, parameter=error.parameter) from error
    finally:
        _PARTS.difference_update(parts)
        for part in parts:
            part.unlink(missing_ok=True)


def _replace_all(parts: tuple[Path, ...], targets: tuple[Path, ...]) -> None:
    """Move each part to its target, the first target last; where one cannot be moved, all is as before."""
    for part, target in zip(parts, targets, strict=True):  # what could fail is found out before anything is moved
        part.stat()
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(part))
    older: dict[Path, Path] = {}
    moved: list[Path] = []

    def set_aside(target: Path) -> None:
        aside = _hidden(target)
        with suppress(FileNotFoundError):
            target.rename(aside)
            older[target] = aside

    try:
        set_aside(targets[0])
        for part, target in zip((*parts[1:], parts[0]), (*targets[1:], targets[0]), strict=True):
            set_aside(target)
            part.replace(target)
            moved.append(target)
    except BaseException:
        for target in moved:
            target.unlink(missing_ok=True)
        for target, aside in reversed(older.items()):
            aside.replace(target)
        raise
    for aside in older.values():
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden, empty folder that becomes `path` when all of it is written; one that stood there before is replaced.

    Its files can then be read by whoever may read new files.

    Raises
    ------
    InputRefusedError
        If it cannot be made, or the disk is full.
    """
    part = _hidden(path)
    try:
        part.mkdir(parents=True)
        with writing_in(path.parent):
            yield part
            _share(part)
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


def _share(folder: Path) -> None:
    """Give each file in a folder the permissions of any new one: safetensors closes its files to other users."""
    probe = folder / f".{uuid.uuid4().hex}"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for entry in folder.rglob("*"):
        if entry.is_file() and not entry.is_symlink() and stat.S_IMODE(entry.stat().st_mode) != mode:
            with suppress(OSError):  # a file system may know no permissions
                entry.chmod(mode)


def write_text(text: str, path: Path) -> None:
    """Write `text` as UTF-8, whole or not at all; bytes of file names that are not UTF-8 as JSON escapes them."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write `document` as indented UTF-8 JSON, whole or not at all. NaN and infinity raise ValueError."""
    write_text(json_text(document), path)


def append_line(text: str, path: Path) -> None:
    """Add a line to a file, which is made if absent; it is there when this returns, or nothing of it is.

    Raises
    ------
    InputRefusedError
        If the folder is missing, not writable or full.
    """
    try:
        with path.open("ab", buffering=0) as file:
            length, line = file.tell(), f"{text}\n".encode(errors="backslashreplace")
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.truncate(length)
                raise
    except OSError as error:
        raise _cannot_write(path, error) from error


def remove_unfinished(*paths: Path) -> None:
    """Remove what writers of `paths` that were killed left; none may be writing them now."""
    for folder in {path.parent for path in paths}:
        names = {_repeated(path) for path in paths if path.parent == folder}
        _remove(folder, names)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove what killed writers of `paths` left, but in folders that somebody writes in now."""
    paths = tuple(paths)
    for folder in {path.parent for path in paths}:
        with nobody_writes_in(folder) as alone:
            if alone:
                remove_unfinished(*(path for path in paths if path.parent == folder))


def remove_all_unfinished(folder: Path) -> None:
    """Remove what killed writers left in `folder`, whatever they wrote; none may be writing there now."""
    _remove(folder, None)


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
    ensure_name(path)
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


def ensure_name(path: Path) -> None:
    """Refuse the name of a file to come that is a folder's, or that its file system cannot have.

    Raises
    ------
    InputRefusedError
        If it is.
    """
    try:
        there = path.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputRefusedError(
                f"{path}: the output's name of {len(os.fsencode(path.name))} bytes is too long for its folder; "
                "choose a shorter one",
                "output",
            ) from error
    else:
        if stat.S_ISDIR(there.st_mode):
            raise InputRefusedError(f"{path}: the output is a folder; expected a file's name", "output")


def _hidden(path: Path) -> Path:
    """A name of its own for each writer, so that what a killed one left cannot meet the next one's."""
    suffix = ending(path, MASK_SUFFIXES) or path.suffix.lower()
    return path.with_name(f".{_repeated(path)}.{uuid.uuid4().hex}{suffix if len(suffix) < 10 else ''}")


def _repeated(path: Path) -> str:
    """As much of a file's name as its hidden names repeat."""
    name = path.name
    while len(os.fsencode(name)) > _REPEATED_BYTES:
        name = name[:-1]
    return name


def _remove(folder: Path, names: Set[str] | None) -> None:
    for entry in folder.iterdir() if folder.is_dir() else ():
        name = _UNFINISHED.fullmatch(entry.name)
        if name and (names is None or name[1] in names):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> InputRefusedError:
    return InputRefusedError(f"{path}: cannot be written ({error.strerror or error}); choose another", "output")
