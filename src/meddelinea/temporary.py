"""Temporary folders for what is unpacked: they hold patients' files, so none outlives its process for long."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from meddelinea.locks import LOCK_FILE, LockedError, locked

#: Signals that ask a process to end. One that is asked removes its temporary folders first.
TERMINATIONS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGHUP") if name in signal.Signals.__members__)

_PREFIX = "meddelinea-unpacked-"
#: Those of this process.
_OWN: set[Path] = set()
#: Held while a folder and its lock are made or removed: one of the two without the other is taken for somebody else's.
_CHANGING = threading.RLock()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder, removed afterwards. A process that is killed leaves its own to `remove_abandoned_folders`."""
    remove_abandoned_folders()
    with ExitStack() as stack:
        with _CHANGING:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=_PREFIX)))
            stack.enter_context(locked(folder / LOCK_FILE, wait=True))
            place = folder / "files"
            place.mkdir()
            _OWN.add(place)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)  # while it is locked: nothing is left that nobody would remove
            with _CHANGING:
                _OWN.discard(place)
                stack.close()


def remove_abandoned_folders() -> None:
    """Remove the temporary folders of processes that have ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        lock = folder / LOCK_FILE
        if not re.fullmatch(r"[a-z0-9_]{8}", folder.name.removeprefix(_PREFIX)) or not lock.is_file():
            continue
        with suppress(LockedError, OSError), locked(lock, wait=False) as certain:
            if certain:
                shutil.rmtree(folder, ignore_errors=True)


def remove_own_folders() -> None:
    """Remove what this process, which is about to end, has unpacked: it will not leave `temporary_folder`.

    The folders' locks stay, and no thread removes one from now on, so that `remove_abandoned_folders` finds what a
    thread that unpacks still puts there.
    """
    _CHANGING.acquire()
    for place in tuple(_OWN):
        while place.exists():
            shutil.rmtree(place, ignore_errors=True)
