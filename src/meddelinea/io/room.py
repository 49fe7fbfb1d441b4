"""How much room a scan may take while it is read: what a stranger sends is counted as it grows, before it is taken.

Files are small and what they stand for is large: packed bytes, counts in a header, one byte a voxel that becomes four.
Every reader asks `require_room` before it takes memory or disk; without `at_most` around it, all is granted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from meddelinea.errors import InputRefusedError

_most_bytes: ContextVar[int | None] = ContextVar("most_bytes", default=None)


@contextmanager
def at_most(most_bytes: int) -> Iterator[None]:
    """Whatever is read inside may become so many bytes of voxels, and unpack to so many."""
    token = _most_bytes.set(most_bytes)
    try:
        yield
    finally:
        _most_bytes.reset(token)


def room(otherwise: int) -> int:
    """Bytes that there is room for; `otherwise` where nobody has set less."""
    most = _most_bytes.get()
    return otherwise if most is None else min(otherwise, most)


def require_room(held: int, what: str) -> None:
    """Refuse to take `held` bytes for `what`, which ends in a verb.

    Raises
    ------
    InputRefusedError
        If that is more than there is room for.
    """
    most = _most_bytes.get()
    if most is not None and held > most:
        raise InputRefusedError(
            f"{what} {held >> 20} MiB or more; expected at most {most >> 20} MiB; send a smaller scan, or ask for a "
            "higher limit",
            "too_large",
        )
