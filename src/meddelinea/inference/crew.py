"""Many scans on several workers: processes of this machine, or of a ray cluster.

A worker has two scans in its hands, so that one is read and written while the other is on the network. The death of a
worker, by a scan too large for the memory or from outside, costs nothing: its scans are tried once more, each alone in
a worker, and only one that is alone with a dying worker fails.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from meddelinea.errors import InputRefusedError, MedDelineaError, UsageError
from meddelinea.inference.folder import ScanCase

#: Scans in a worker's hands.
AT_ONCE = 2

#: Called with (name of the case, slices done, slices in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Parameters
    ----------
    state
        `done`; `present`: it was done before; `refused`: its input would give a wrong mask; `failed`.
    reason
        Why it was refused or failed.
    seconds
        Time spent on it; waiting for the network does not count.
    warnings
        What is to be taken care of in its mask.
    """

    case: ScanCase
    state: str
    reason: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


class Work(Protocol):
    """What a worker does; made once in each, with whatever it needs loaded. Called from several threads."""

    #: Held while a result is written.
    writing: threading.Lock

    def __call__(self, case: ScanCase, progress: Progress) -> Outcome: ...


#: Makes the work of a worker that may use so many threads; None: as many as it likes.
Make = Callable[[int | None], Work]
Outcomes = Generator[Outcome, None, None]
Engine = Callable[[Make, Sequence[ScanCase], Progress], Outcomes]


def attempt(work: Work, case: ScanCase, progress: Progress) -> Outcome:
    """The outcome of a case; no error of one case is one of the others, so all are caught."""
    try:
        return work(case, progress)
    except InputRefusedError as error:
        return Outcome(case, "refused", str(error))
    except MedDelineaError as error:
        return Outcome(case, "failed", str(error))
    except Exception as error:
        return Outcome(case, "failed", f"{type(error).__name__}: {error} (unexpected)")


def in_this_process(make: Make, cases: Sequence[ScanCase], progress: Progress) -> Outcomes:
    """One case after the other; here the death of the process ends all."""
    work = make(None)
    return (attempt(work, case, progress) for case in cases)


def on_this_machine(make: Make, cases: Sequence[ScanCase], progress: Progress, *, workers: int = 1) -> Outcomes:
    """In `workers` processes, started afresh: the calling script needs `if __name__ == "__main__":`."""
    threads = None if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
    return _share_out(cases, lambda: _ProcessWorker(make, progress, threads), workers)


def on_cluster(
    make: Make, cases: Sequence[ScanCase], progress: Progress, *, address: str = "local", workers: int | None = None
) -> Outcomes:
    """On a ray cluster, whose machines see scans, masks and the model under the same paths.

    `progress` is not called: slices are not counted across machines.

    Parameters
    ----------
    address
        The cluster's head, as `ray.init` takes it: HOST:PORT, `auto`, or `local` for a cluster of this machine alone.
    workers
        One a GPU where the cluster has some, else one a core, by default.

    Raises
    ------
    UsageError
        If ray is not installed, no cluster answers, or it has fewer cores than workers.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("work on a cluster needs ray; install it with: pip install 'meddelinea[cluster]'") from error
    own = workers if address == "local" else None
    try:
        ray.init(address=address, num_cpus=own, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # a plain one where the machine is too busy to start a cluster in time
        reason = " ".join(str(error).split())
        raise UsageError(f"no ray cluster at '{address}' ({reason}); start one with: ray start --head") from error
    try:
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cores, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
        count = workers or gpus or cores
        if count > cores:
            raise UsageError(f"{count} workers, but the cluster at '{address}' has {cores} cores; take fewer")
        # Not restarted by ray: a new worker is hired for what is left, and what killed the old one is kept apart.
        actor = ray.remote(_ClusterWorker).options(
            num_cpus=1,
            num_gpus=1 if 0 < count <= gpus else 0,
            max_concurrency=AT_ONCE + 1,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        yield from _share_out(cases, lambda: _RayWorker(actor, make, max(1, cores // count)), count)
    finally:
        ray.shutdown()


class _Worker(Protocol):
    """A process that works on cases, seen from here."""

    #: What the future of a case raises when the process has died.
    death: type[Exception]

    def submit(self, case: ScanCase) -> Future[Outcome]: ...

    def stop(self) -> None:
        """End the process; a result that is being written is finished first."""


def _share_out(cases: Sequence[ScanCase], hire: Callable[[], _Worker], workers: int) -> Outcomes:
    """Outcomes in the order in which they end, of cases that at most `workers` workers take up as they get free."""
    fresh, suspects = deque(cases), deque[ScanCase]()  # suspects were in the hands of a worker that died
    crew: list[_Worker] = []
    in_hand: dict[Future[Outcome], tuple[_Worker, ScanCase, bool]] = {}

    def hand_out() -> None:
        while fresh or suspects:
            held = Counter(worker for worker, _, _ in in_hand.values())
            apart = {worker for worker, _, alone in in_hand.values() if alone}
            idle = [worker for worker in crew if not held[worker]]
            free = [worker for worker in crew if held[worker] < AT_ONCE and worker not in apart]
            if not idle and len(crew) < workers:
                crew.append(hire())
            elif fresh and free:
                worker, case = min(free, key=lambda worker: held[worker]), fresh.popleft()
                in_hand[worker.submit(case)] = worker, case, False
            elif suspects and idle:
                worker, case = idle[0], suspects.popleft()
                in_hand[worker.submit(case)] = worker, case, True
            else:
                return

    try:
        hand_out()
        while in_hand:
            for future in wait(in_hand, return_when=FIRST_COMPLETED).done:
                worker, case, alone = in_hand.pop(future)
                try:
                    outcome = future.result()
                except worker.death as error:
                    if worker in crew:
                        crew.remove(worker)
                        worker.stop()
                    if alone:
                        reason = " ".join(str(error).split())
                        yield Outcome(case, "failed", f"its worker died twice, the second time over it alone: {reason}")
                    else:
                        suspects.append(case)
                else:
                    yield outcome
            hand_out()
    finally:
        for worker in crew:
            worker.stop()


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


class _ClusterWorker:
    """What a process of the cluster runs."""

    def __init__(self, make: Make, threads: int) -> None:
        self._error: Exception | None = None
        try:
            self._work = make(threads)
        except Exception as error:  # an actor that fails to begin would look like one that died
            self._error = error

    def work(self, case: ScanCase) -> Outcome | Exception:
        """The outcome of a case, or why this worker cannot work."""
        return self._error or attempt(self._work, case, lambda *step: None)

    def finish_writing(self) -> None:
        """Return when nothing is being written, after which nothing will be."""
        if self._error is None:
            self._work.writing.acquire()


class _RayWorker:
    """An actor of a ray cluster."""

    def __init__(self, actor: Any, make: Make, threads: int) -> None:
        import ray

        self.death: type[Exception] = ray.exceptions.RayError
        self._actor = actor.remote(make, threads)

    def submit(self, case: ScanCase) -> Future[Outcome]:
        answer: Future[Outcome] = Future()

        def receive(there: Future[Outcome | Exception]) -> None:
            error = there.exception()
            news = error if error is not None else there.result()
            if isinstance(news, Outcome):
                answer.set_result(news)
            else:
                answer.set_exception(news)

        self._actor.work.remote(case).future().add_done_callback(receive)
        return answer

    def stop(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # it may have died
            ray.get(self._actor.finish_writing.remote(), timeout=60)
        ray.kill(self._actor)
