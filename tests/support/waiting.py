"""What the tests wait for other processes and threads: only what hangs reaches the limit, however slow the machine."""

import time
from collections.abc import Callable

#: Seconds, less than the time limit of a test. Importing torch alone has taken minutes where a machine gives a tenth of
#: its processor.
PATIENCE = 540


def wait_until(true: Callable[[], object]) -> None:
    """Until something holds, looked at a thousand times a second."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, f"not so within {PATIENCE} s"
        time.sleep(0.001)
