"""Limits on the size of uploads, on the queue and on time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one server.

    Parameters
    ----------
    upload_bytes
        Maximum size of the body of a request.
    upload_seconds
        Maximum time for the body of a request to arrive.
    upload_rate
        Bytes of a body that must arrive in a second, on average, once `SLOW_START_SECONDS` are over.
    unpacked_bytes
        Maximum size of an unpacked upload, and of the voxels that its header claims.
    queue_length
        Maximum number of scans that are being uploaded, waiting or being segmented.
    job_seconds
        Maximum time for one scan, from reading to writing.
    keep_hours
        Time after which a finished job is deleted with its files.
    """

    upload_bytes: int = 1 << 30
    upload_seconds: float = 900.0
    upload_rate: float = 1 << 14
    unpacked_bytes: int = 2 << 30
    queue_length: int = 32
    job_seconds: float = 1800.0
    keep_hours: float = 24.0
