"""Workers that are processes of this machine."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from meddelinea.errors import MedDelineaError
from meddelinea.folders.crew import AT_ONCE, Make, Outcome, Outcomes, Progress, attempt, share_out
from meddelinea.folders.found import ScanCase


def on_this_machine(make: Make, cases: Sequence[ScanCase], progress: Progress, *, workers: int = 1) -> Outcomes:
    """In `workers` processes, started afresh: the calling script needs `if __name__ == "__main__":`."""
    threads = None if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    return share_out(cases, lambda: _ProcessWorker(make, progress, threads), workers)


class _WorkerDiedError(Exception):
    """A worker process of this machine has ended."""


class _ProcessWorker:
    """A process of this machine and the pipe to it."""

    death: type[Exception] = _WorkerDiedError

    def __init__(self, make: Make, progress: Progress, threads: int | None) -> None:
        # Spawned: a forked worker would hold its siblings' pipes open, and not see this process die.
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, theirs, threads), daemon=True)
        self._process.start()
        theirs.close()
        self._progress = progress
        self._lock = threading.Lock()
        self._futures: dict[str, Future[Outcome]] = {}
        self._died: Exception | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def submit(self, case: ScanCase) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._lock:
            if self._died is not None:
                future.set_exception(self._died)
                return future
            self._futures[case.name] = future
        with suppress(OSError):  # it has just died: the listener will tell
            self._ours.send(case)
        return future

    def stop(self) -> None:
        self._process.terminate()  # it finishes what it is writing
        self._process.join()
        self._listener.join()
        self._ours.close()

    def _listen(self) -> None:
        """Take outcomes, errors that no case is to blame for, and counts of slices, until the process ends."""
        try:
            while (message := self._receive()) is not None:
                name, news = message
                if isinstance(news, Exception):
                    raise news
                if isinstance(news, Outcome):
                    with self._lock:
                        future = self._futures.pop(name)
                    future.set_result(news)
                else:
                    self._progress(name, *news)
            error: Exception = _WorkerDiedError(_cause_of_death(self._process.exitcode or 0))
        except Exception as problem:  # of `progress` too: a closed screen must not leave the cases waiting
            error = problem
        self._end(error)

    def _receive(self) -> Any:
        """What the process says next; None where it has ended."""
        try:
            return self._ours.recv()
        except (EOFError, OSError):
            self._process.join()
            return None

    def _end(self, error: Exception) -> None:
        with self._lock:
            self._died = error
            futures, self._futures = self._futures, {}
        for future in futures.values():
            future.set_exception(error)


def _serve(make: Make, connection: Any, threads: int | None) -> None:
    """What a process of this machine runs: cases come in, outcomes go out."""
    logging.disable(logging.WARNING)  # libraries' remarks, on a screen that all workers share
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard interrupts the parent too, which ends its workers
    sending = threading.Lock()

    def send(name: str, news: Any) -> None:
        with sending, suppress(OSError):  # the parent is gone
            connection.send((name, news))

    try:
        work = make(threads)
    except MedDelineaError as error:
        send("", error)
        return
    except Exception as error:  # a foreign one may not be known on the other side
        send("", RuntimeError(f"{type(error).__name__}: {error}"))
        return

    def end(*_: object) -> None:
        with work.writing:
            os._exit(0)

    signal.signal(signal.SIGTERM, end)
    pool = ThreadPoolExecutor(AT_ONCE)
    with suppress(EOFError, OSError):
        while True:
            case = connection.recv()
            pool.submit(lambda case: send(case.name, attempt(work, case, lambda *step: send(step[0], step[1:]))), case)
    end()


def _cause_of_death(code: int) -> str:
    ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    hint = "; probably out of memory" if code == -signal.SIGKILL else ""
    return f"the worker process ended with {ending}{hint}"
