"""The time that a run has taken."""

from __future__ import annotations

import time


class Clock:
    """Seconds of a run over all its sittings, by the wall and by the processor.

    Parameters
    ----------
    seconds, cpu_seconds
        What earlier sittings took. The processor's time is that of all threads of this process; processes that load
        data beside it are not counted.
    """

    def __init__(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self._wall = time.monotonic() - seconds
        self._processor = time.process_time() - cpu_seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._wall

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self._processor
