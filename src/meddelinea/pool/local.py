"""Work in this process, or in processes of this machine."""

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
from multiprocessing.connection import Connection
from typing import Generic

from meddelinea.errors import MedDelineaError
from meddelinea.pool.pool import Answer, Item, Make, Outcome, Outcomes, Progress, WorkerDiedError, attempt, dispatch
from meddelinea.temporary import TERMINATIONS, remove_abandoned_folders, remove_own_folders

#: What a worker sends: an outcome, how far an item is, or why there will be no outcomes at all.
_Message = Outcome[Item, Answer] | tuple[str, int, int] | Exception


def in_this_process(make: Make[Item, Answer], items: Sequence[Item], progress: Progress) -> Outcomes[Item, Answer]:
    """One item after the other; here the death of the process ends all."""
    work = make(None)
    return (attempt(work, item, progress) for item in items)


def on_this_machine(
    make: Make[Item, Answer], items: Sequence[Item], progress: Progress, *, workers: int = 1
) -> Outcomes[Item, Answer]:
    """In `workers` processes, started afresh: the calling script needs `if __name__ == "__main__":`."""
    threads = None if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    return dispatch(items, lambda: _Process(make, threads, progress), workers)


class _Process(Generic[Item, Answer]):
    """A process of this machine, and the pipe to it."""

    def __init__(self, make: Make[Item, Answer], threads: int | None, progress: Progress) -> None:
        # Spawned: a forked worker would hold its siblings' pipes open, and not see this process die.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(make, threads, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._progress = progress
        self._lock = threading.Lock()
        self._pending: dict[str, Future[Outcome[Item, Answer]]] = {}
        self._ended: Exception | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def submit(self, item: Item) -> Future[Outcome[Item, Answer]]:
        future: Future[Outcome[Item, Answer]] = Future()
        with self._lock:
            if self._ended is not None:
                future.set_exception(self._ended)
                return future
            self._pending[item.name] = future
        with suppress(OSError):  # it has just died, which the listener will find
            self._pipe.send(item)
        return future

    def stop(self) -> None:
        self._process.terminate()  # it finishes what it is writing
        with suppress(OSError):  # a signal that comes just before a read does not end it: a message does
            self._pipe.send(None)
        self._process.join()
        remove_abandoned_folders()  # it may have been killed
        self._listener.join()
        self._pipe.close()

    def _listen(self) -> None:
        """Take what the process sends until it ends; then no pending item is left waiting, whatever the reason."""
        try:
            while True:
                message = self._receive()
                if isinstance(message, Exception):
                    raise message
                if isinstance(message, Outcome):
                    with self._lock:
                        future = self._pending.pop(message.item.name)
                    future.set_result(message)
                else:
                    self._progress(*message)
        except Exception as error:  # of `progress` too, such as a closed screen
            with self._lock:
                self._ended = error
                pending, self._pending = self._pending, {}
            for future in pending.values():
                future.set_exception(error)

    def _receive(self) -> _Message[Item, Answer]:
        try:
            message: _Message[Item, Answer] = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerDiedError(_cause_of_death(self._process.exitcode or 0)) from None
        return message


def _serve(make: Make[Item, Answer], threads: int | None, pipe: Connection) -> None:
    """What a process of this machine runs: items come in, outcomes go out."""
    logging.disable(logging.WARNING)  # libraries' remarks, on a screen that all workers share
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard interrupts the parent too, which ends its workers
    sending = threading.Lock()

    def send(message: _Message[Item, Answer]) -> None:
        with sending, suppress(OSError):  # the parent is gone
            pipe.send(message)

    try:
        work = make(threads)
    except MedDelineaError as error:
        send(error)
        return
    except Exception as error:  # a foreign one may not be known on the other side
        send(RuntimeError(f"{type(error).__name__}: {error}"))
        return

    def finish(*_: object) -> None:
        for asked in TERMINATIONS:  # or one that comes now would wait for the lock that this thread holds
            signal.signal(asked, signal.SIG_IGN)
        with work.writing:
            remove_own_folders()
            os._exit(0)

    for asked in TERMINATIONS:
        if signal.getsignal(asked) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(asked, finish)
    executor = ThreadPoolExecutor()  # no more threads than the parent has items pending here
    with suppress(EOFError, OSError):  # the parent is gone
        while (item := pipe.recv()) is not None:
            executor.submit(lambda item: send(attempt(work, item, lambda *step: send(step))), item)
    finish()


def _cause_of_death(code: int) -> str:
    ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    hint = "; probably out of memory: try fewer workers" if code == -signal.SIGKILL else ""
    return f"the worker process ended with {ending}{hint}"
