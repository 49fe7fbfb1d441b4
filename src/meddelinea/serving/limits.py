"""What a server takes on: how much, for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds on what one server holds and does.

    Parameters
    ----------
    upload_bytes
        Largest body of a request.
    upload_seconds
        Longest time in which a request's body must have arrived.
    unpacked_bytes
        Most that an upload may unpack to, and that its header may claim.
    queue_length
        Scans that may wait at once, those still arriving and the one being segmented included.
    job_seconds
        Longest time that one scan may take, from reading to writing.
    keep_hours
        How long a finished job is kept before it is deleted with its files.
    """

    upload_bytes: int = 1 << 30
    upload_seconds: float = 900.0
    unpacked_bytes: int = 2 << 30
    queue_length: int = 32
    job_seconds: float = 1800.0
    keep_hours: float = 24.0
