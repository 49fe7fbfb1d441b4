"""A process for work on scans: it does one task at a time, and keeps the model that it loaded last.

It is a process rather than a thread, because a scan is untrusted data for decoders. A scan that crashes one, or takes
too much time or memory, must not bring the server down, and only a process can be killed from outside at any moment.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import tempfile
import warnings
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from meddelinea.errors import MedDelineaError
from meddelinea.serving.job import JobOutcome, Trouble
from meddelinea.serving.limits import Limits
from meddelinea.serving.tasks import Bench, Task

if TYPE_CHECKING:
    from meddelinea.segmentation.model import Model

#: Seconds that a worker gets to stop by itself.
GRACE_SECONDS = 5.0


class CancelledError(Exception):
    """The job was cancelled."""


class Worker:
    """A process. It is started when it is first needed, and again after it has ended.

    Parameters
    ----------
    device
        Where models run, see `load_model`.
    limits
        Only `unpacked_bytes` is used.
    """

    def __init__(self, device: str, limits: Limits) -> None:
        self._device, self._limits = device, limits
        self._context = multiprocessing.get_context("spawn")  # a fork would share the server's sockets and locks
        self._process: Any = None
        self._cancelled: Any = None
        self._channel: Connection | None = None

    def begin(self, task: Task) -> Connection:
        """Pass a task to the process. The connection delivers the arguments of `Progress`, then what `run` returned.

        If the process ends before that, reading from the connection raises `EOFError` or `OSError`.
        """
        if self._process is None or not self._process.is_alive():
            self.stop()
            self._cancelled = self._context.Event()
            self._channel, theirs = self._context.Pipe()
            self._process = self._context.Process(
                target=work, args=(theirs, self._cancelled, self._device, self._limits), daemon=True
            )
            self._process.start()
            theirs.close()
        assert self._channel is not None
        self._cancelled.clear()
        with contextlib.suppress(OSError):  # it has just ended, which the reader will notice
            self._channel.send(task)
        return self._channel

    def cancel(self) -> None:
        """Ask the process to drop its task; it answers with an outcome, or must be stopped."""
        if self._cancelled is not None:
            self._cancelled.set()

    def stop(self) -> None:
        """Kill the process."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.kill()
            self._process.join(GRACE_SECONDS)
        self._process = self._channel = self._cancelled = None


def work(channel: Connection, cancelled: Any, device: str, limits: Limits) -> None:
    """Run the process: do the tasks that come through `channel` until its other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when this process ends
    _be_quiet()

    loaded: dict[str, Model] = {}

    def load(source: str) -> Model:
        from meddelinea.segmentation.model import load_model

        if source not in loaded:
            loaded.clear()  # one at a time: a model may take gigabytes
            loaded[source] = load_model(source, device)
        return loaded[source]

    def progress(done: int, total: int, stage: str = "") -> None:
        if cancelled.is_set():
            raise CancelledError
        channel.send((done, total, stage))

    bench = Bench(limits=limits, load=load, progress=progress)
    with contextlib.suppress(EOFError, OSError):  # the server has ended
        while True:
            task: Task = channel.recv()
            tempfile.tempdir = str(task.folder)  # unpacked files are deleted with the job's folder in any case
            outcome: JobOutcome | Trouble
            try:
                outcome = task.run(bench)
            except MedDelineaError:  # names a folder of the server
                outcome = Trouble("the server cannot load its model; `meddelinea predict` tells its operator why")
            except CancelledError:
                outcome = JobOutcome(state="cancelled")
            except MemoryError:
                outcome = JobOutcome(state="failed", message="the scan needs more memory than this computer has")
            except BrokenPipeError:
                return
            except Exception as error:  # its text may quote the scan's header, so only its type is reported
                outcome = JobOutcome(
                    state="failed", message=f"unexpected {type(error).__name__}; the server cannot segment this scan"
                )
            channel.send(outcome)


def _be_quiet() -> None:
    """Print and log nothing: libraries quote what they read, and the header of a scan names its patient."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
