"""The process that segments: it loads the model once and processes one scan at a time.

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
from pathlib import Path
from typing import Any

from meddelinea.errors import MedDelineaError
from meddelinea.scan import Modality
from meddelinea.serving.jobs import JobOutcome, Trouble
from meddelinea.serving.limits import Limits

#: Seconds that a worker gets to stop by itself.
GRACE_SECONDS = 5.0


class CancelledError(Exception):
    """The job was cancelled."""


class Worker:
    """A process with a loaded model. It is started when it is first needed, and again after it has ended.

    Parameters
    ----------
    model, device
        See `load_model`.
    limits
        Only `unpacked_bytes` is used.
    """

    def __init__(self, model: str, device: str, limits: Limits) -> None:
        self._model, self._device, self._limits = model, device, limits
        self._context = multiprocessing.get_context("spawn")  # a fork would share the server's sockets and locks
        self._process: Any = None
        self._cancelled: Any = None
        self._channel: Connection | None = None

    def begin(self, upload: Path, modality: Modality | None) -> Connection:
        """Pass a scan to the process. The connection delivers pairs (slices done, slices in all), then an `JobOutcome`.

        If the process ends before that, reading from the connection raises `EOFError` or `OSError`.
        """
        if self._process is None or not self._process.is_alive():
            self.stop()
            self._cancelled = self._context.Event()
            self._channel, theirs = self._context.Pipe()
            self._process = self._context.Process(
                target=work, args=(theirs, self._cancelled, self._model, self._device, self._limits), daemon=True
            )
            self._process.start()
            theirs.close()
        assert self._channel is not None
        self._cancelled.clear()
        with contextlib.suppress(OSError):  # it has just ended, which the reader will notice
            self._channel.send((upload, modality))
        return self._channel

    def cancel(self) -> None:
        """Ask the process to drop its scan; it answers with an outcome, or must be stopped."""
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


def work(channel: Connection, cancelled: Any, model_name: str, device: str, limits: Limits) -> None:
    """Run the process: segment the scans that come through `channel` until its other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server decides when this process ends
    _be_quiet()
    from meddelinea.segmentation.model import load_model
    from meddelinea.serving.segmenting import segment_upload

    model = None

    def progress(done: int, slices: int) -> None:
        if cancelled.is_set():
            raise CancelledError
        channel.send((done, slices))

    with contextlib.suppress(EOFError, OSError):  # the server has ended
        while True:
            upload, modality = channel.recv()
            tempfile.tempdir = str(upload.parent)  # unpacked files are deleted with the job's folder in any case
            outcome: JobOutcome | Trouble
            try:
                model = model or load_model(model_name, device)
                outcome = segment_upload(model, upload, modality, limits, progress)
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
