"""Limits on the size of uploads, on the queue and on time."""

from __future__ import annotations

from dataclasses import dataclass

from meddelinea.serving.job import Kind


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
        Maximum number of scans that are being uploaded, waiting or being segmented; and of corrections and of learnings
        alike.
    job_seconds
        Maximum time for one scan or correction, from reading to writing.
    learn_seconds
        Maximum time for learning from corrected scans.
    keep_hours
        Time after which a finished job is deleted with its files.
    """

    upload_bytes: int = 1 << 30
    upload_seconds: float = 900.0
    upload_rate: float = 1 << 14
    unpacked_bytes: int = 2 << 30
    queue_length: int = 32
    job_seconds: float = 1800.0
    learn_seconds: float = 4 * 3600.0
    keep_hours: float = 24.0

    def seconds_for(self, kind: Kind) -> float:
        """Maximum time for a job of a kind."""
        return self.learn_seconds if kind == "learning" else self.job_seconds
