"""The last lines of the server's log, which names jobs by id and errors by kind and quotes nothing of a request."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

#: Lines that are kept.
LINES = 1000


class KeptLog(logging.Handler):
    """Keeps what is logged; `lines` has the latest last."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(self.format(record))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what the server logs inside."""
        logger = logging.getLogger("meddelinea.serving")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)
