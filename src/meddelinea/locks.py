"""Locks that the system lets go of when their process ends, however it ends, so that none is ever left behind.

Where a file system knows no locks, as some shared ones do not, work goes on without; nothing is then taken for left.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

#: A lock file goes by this name in the folder that it is about.
LOCK_FILE = ".meddelinea.lock"


class LockedError(Exception):
    """Another process holds the lock; the message says which, as far as that is known."""


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock file `path`, which is made for it and removed afterwards; False where locks are not known.

    Parameters
    ----------
    wait
        Whether to wait for another process that holds it.

    Raises
    ------
    LockedError
        If another process holds it and is not waited for.
    OSError
        If the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        certain = _lock(descriptor, wait=wait)
        if certain is None:
            holder = os.read(descriptor, 200).decode(errors="replace")
            os.close(descriptor)
            raise LockedError(holder or "another process")
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # its former holder has removed it meanwhile
    try:
        with suppress(OSError):  # only for messages
            os.truncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield certain
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Let others know that a file in `folder` is being written, see `nobody_writes_in`."""
    with _opened(folder) as descriptor:
        if descriptor is not None and sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


@contextmanager
def nobody_writes_in(folder: Path) -> Iterator[bool]:
    """Whether no process is between `writing_in` and its end; while this is so, none begins."""
    with _opened(folder) as descriptor:
        if descriptor is None or sys.platform == "win32":
            yield False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of a folder; None where it has none."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        descriptor = None
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool | None:
    """Whether there is a lock; None where another process holds it and is not waited for."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        return None if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else False
    return True
