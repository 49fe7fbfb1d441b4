"""A bound on the memory of this process while strangers' files are decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def at_most_more(more_bytes: int) -> Iterator[None]:
    """Inside, this process gets so many more bytes of memory; what asks for more fails, also in decoders written in C.

    Readers count what they take by themselves. This holds where a decoder does not, on Linux; elsewhere nothing holds.
    """
    statistics = Path("/proc/self/statm")
    if not statistics.is_file():
        yield
        return
    import resource

    held = int(statistics.read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [limit for limit in (soft, held + more_bytes) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
