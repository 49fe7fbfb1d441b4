"""A thread that passes jobs from the store to a worker, one at a time, and enforces their time limit.

A server has two: one for what takes a moment, the checks of what has arrived, and one for what needs the model.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from meddelinea.serving.job import TAKEN, Job, JobOutcome, State, Trouble
from meddelinea.serving.jobs import JobStore
from meddelinea.serving.limits import Limits
from meddelinea.serving.tasks import Task
from meddelinea.serving.worker import GRACE_SECONDS, Worker

_log = logging.getLogger(__name__)

#: Seconds between two looks at the state of a job.
POLL_SECONDS = 0.1
#: Seconds of pause after an error outside a job.
PAUSE_SECONDS = 1.0
#: Seconds between two searches for old jobs.
TIDY_SECONDS = 10.0


class Dispatcher:
    """Runs the jobs of a store that wait in one state, the oldest first.

    Parameters
    ----------
    store
        The waiting jobs and their states.
    worker
        The process that does what is to be done.
    limits
        Only `seconds_for` is used.
    takes
        The state, one of `TAKEN`.
    task_of
        What is to be done for a job.
    """

    def __init__(
        self, store: JobStore, worker: Worker, limits: Limits, *, takes: State, task_of: Callable[[Job], Task]
    ) -> None:
        self._store, self._worker, self._limits = store, worker, limits
        self._takes, self._task_of = takes, task_of
        self._stopping = threading.Event()
        self._tidied = 0.0
        self._thread = threading.Thread(target=self._run, name=f"dispatcher of {takes}", daemon=True)

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
                job = self._store.claim(self._takes)
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
        """Do one job; returns when it is finished, cancelled, deleted or too slow, or the worker has died."""
        channel = self._worker.begin(self._task_of(job))
        seconds = self._limits.seconds_for(job.request.kind)
        deadline = time.monotonic() + seconds
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
            if current is None or current.state != TAKEN[self._takes]:
                self._abandon(channel)
                self._store.sweep(job.id)
                return
            if time.monotonic() > deadline:
                self._worker.stop()
                message = f"not done within {seconds / 60:g} minutes; ask for a longer time limit"
                self._store.finish(job.id, JobOutcome(state="failed", message=message))
                return

    def _abandon(self, channel: Connection) -> None:
        """Ask the worker to drop its task, and kill it if it does not: to load the model again takes only seconds."""
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
