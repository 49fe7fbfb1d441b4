"""The thread that passes jobs from the store to the worker, one at a time, and enforces their time limit."""

from __future__ import annotations

import logging
import threading
import time
from multiprocessing.connection import Connection

from meddelinea.serving.jobs import Job, JobOutcome, JobStore, Trouble
from meddelinea.serving.limits import Limits
from meddelinea.serving.worker import GRACE_SECONDS, Worker

_log = logging.getLogger(__name__)

#: Seconds between two looks at the state of a job.
POLL_SECONDS = 0.1
#: Seconds of pause after an error outside a job.
PAUSE_SECONDS = 1.0
#: Seconds between two searches for old jobs.
TIDY_SECONDS = 10.0


class Dispatcher:
    """Runs the jobs of a store, the oldest first.

    Parameters
    ----------
    store
        The waiting jobs and their states.
    worker
        The process that segments them.
    limits
        Only `job_seconds` is used.
    """

    def __init__(self, store: JobStore, worker: Worker, limits: Limits) -> None:
        self._store, self._worker, self._limits = store, worker, limits
        self._stopping = threading.Event()
        self._tidied = 0.0
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Start to run jobs."""
        self._thread.start()

    def stop(self) -> None:
        """Stop; a running job is interrupted and waits for the next start."""
        self._stopping.set()
        self._thread.join()
        self._worker.stop()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._tidy()
                job = self._store.claim()
                if job is None:
                    self._stopping.wait(POLL_SECONDS)
                else:
                    self._try(job)
            except Exception as error:  # such as a full disk, which may have room again later
                _log.error("unexpected %s", type(error).__name__)
                self._stopping.wait(PAUSE_SECONDS)

    def _try(self, job: Job) -> None:
        """Run a job; an error in it does not affect the next one."""
        _log.info("job %s: started, attempt %d", job.id, job.attempts)
        try:
            self._run_job(job)
        except Exception as error:
            self._worker.stop()
            self._store.finish(
                job.id, JobOutcome(state="failed", message=f"unexpected {type(error).__name__} in the server")
            )
        ended = self._store.get(job.id)
        _log.info("job %s: %s", job.id, ended.state if ended is not None else "removed")

    def _run_job(self, job: Job) -> None:
        """Segment one scan; returns when it is finished, cancelled, deleted or too slow, or the worker has died."""
        channel = self._worker.begin(self._store.upload_of(job), job.modality)
        deadline = time.monotonic() + self._limits.job_seconds
        while True:
            try:
                message = channel.recv() if channel.poll(POLL_SECONDS) else None
            except (EOFError, OSError):
                self._worker.stop()
                self._store.requeue(job.id)
                return
            if isinstance(message, JobOutcome):
                self._store.finish(job.id, message)
                return
            if isinstance(message, Trouble):
                self._store.requeue(job.id, message.message)
                self._stopping.wait(PAUSE_SECONDS)
                return
            if message is not None:
                self._store.progress(job.id, *message)
            self._tidy()
            current = self._store.get(job.id)
            if self._stopping.is_set():
                self._worker.stop()
                self._store.release(job.id)
                return
            if current is None or current.state != "running":
                self._abandon(channel)
                self._store.sweep(job.id)
                return
            if time.monotonic() > deadline:
                self._worker.stop()
                minutes = self._limits.job_seconds / 60
                self._store.finish(
                    job.id,
                    JobOutcome(
                        state="failed", message=f"not done within {minutes:g} minutes; ask for a longer time limit"
                    ),
                )
                return

    def _abandon(self, channel: Connection) -> None:
        """Ask the worker to drop its scan, and kill it if it does not: to load the model again takes only seconds."""
        self._worker.cancel()
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            while time.monotonic() < deadline:
                if channel.poll(POLL_SECONDS) and isinstance(channel.recv(), JobOutcome | Trouble):
                    return
        except (EOFError, OSError):
            pass
        self._worker.stop()

    def _tidy(self) -> None:
        if time.monotonic() - self._tidied > TIDY_SECONDS:
            self._tidied = time.monotonic()
            self._store.tidy()
