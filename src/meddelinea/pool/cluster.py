"""Work in actors of a ray cluster."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, Generic

from meddelinea.errors import PartialFailureError, UsageError
from meddelinea.pool.pool import (
    PENDING,
    Answer,
    Item,
    Make,
    Outcome,
    Outcomes,
    Progress,
    WorkerDiedError,
    attempt,
    dispatch,
)
from meddelinea.temporary import remove_own_folders

#: So often is looked whether the cluster lives, and after so long without a sign it is lost.
LOOK_SECONDS, LOST_SECONDS = 5.0, 40.0


def on_cluster(
    make: Make[Item, Answer],
    items: Sequence[Item],
    progress: Progress,
    *,
    address: str = "local",
    workers: int | None = None,
    use_gpus: bool = True,
) -> Outcomes[Item, Answer]:
    """On a ray cluster, whose machines see all files under the same paths.

    `progress` is not called: steps are not counted across machines.

    Parameters
    ----------
    address
        The cluster's head, as `ray.init` takes it: HOST:PORT, `auto`, or `local` for a cluster of this machine alone.
    workers
        By default one a GPU where the cluster has some and they are used, else one a core.
    use_gpus
        Whether workers are given a GPU each where there are enough.

    Raises
    ------
    UsageError
        If ray is not installed, no cluster answers, or it has fewer cores than workers.
    PartialFailureError
        If its last node is lost: a node ends when one of ray's own processes on it does.
    """
    with _joined(address, workers) as ray:
        there = ray.cluster_resources()
        cores, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0)) if use_gpus else 0
        count = workers or gpus or cores
        if not 0 < count <= cores:
            raise UsageError(
                f"the cluster at '{address}' has {cores} cores, expected one for each of {count or 'the'} workers; "
                "take fewer workers, or add machines"
            )
        # Not restarted by ray: a new worker is started for what is left, and what killed the old one is kept apart.
        actor = ray.remote(_Actor).options(
            num_cpus=1,
            num_gpus=1 if count <= gpus else 0,
            max_concurrency=PENDING + 1,
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        with _watched(ray, address) as watch:
            yield from dispatch(
                items, lambda: _ActorHandle(actor.remote(make, max(1, cores // count)), ray, watch), count
            )


@contextmanager
def _joined(address: str, cores: int | None) -> Iterator[ModuleType]:
    """The module ray, connected to a cluster, which has so many cores where it is a `local` one."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("work on a cluster needs ray; install it with: pip install 'meddelinea[cluster]'") from error
    own = cores if address == "local" else None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a hospital's machine reports to nobody
    try:
        ray.init(address=address, num_cpus=own, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # a plain one where the machine is too busy to start a cluster in time
        remedy = "try again, or work on this machine without ray" if own else "start one with: ray start --head"
        raise UsageError(f"no ray cluster at '{address}' ({_line(error)}); {remedy}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Watch:
    """Tells all who wait for the cluster that nothing will come any more."""

    def __init__(self) -> None:
        self.lost = False
        self._waiting: set[Future[Any]] = set()
        self._lock = threading.Lock()

    def add(self, future: Future[Any]) -> None:
        """Let a future end with the cluster, if it has not ended before."""
        with self._lock:
            self._waiting.add(future)

    def settle(self, future: Future[Any], end: Callable[[Future[Any]], None]) -> None:
        """End a future once."""
        with self._lock:
            if future in self._waiting:
                self._waiting.discard(future)
                end(future)

    def lose(self, error: Exception) -> None:
        """End all with an error."""
        self.lost = True
        for future in tuple(self._waiting):
            self.settle(future, lambda future: future.set_exception(error))


@contextmanager
def _watched(ray: ModuleType, address: str) -> Iterator[_Watch]:
    """Look every few seconds whether the cluster lives: ray itself would wait for another node for ever."""
    watch, ended, seen = _Watch(), threading.Event(), [time.monotonic()]
    error = PartialFailureError(
        f"the ray cluster at '{address}' has lost its last node, or does not answer; what is done is kept: run the "
        "same again to go on, on a cluster that lives or on this machine alone"
    )

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            with suppress(Exception):  # which says that it does not answer, as silence does
                if any(node["Alive"] and node["Resources"].get("CPU") for node in ray.nodes()):
                    seen[0] = time.monotonic()

    def judge() -> None:
        while not ended.wait(LOOK_SECONDS):
            if time.monotonic() - seen[0] > LOST_SECONDS:
                watch.lose(error)

    looking, judging = (threading.Thread(target=work, daemon=True) for work in (look, judge))
    looking.start()
    judging.start()
    try:
        yield watch
    finally:
        ended.set()
        looking.join(LOOK_SECONDS)  # a question to ray during its shutdown ends the process


class _Actor(Generic[Item, Answer]):
    """What a process of the cluster runs."""

    def __init__(self, make: Make[Item, Answer], threads: int) -> None:
        self._error: Exception | None = None
        try:
            self._work = make(threads)
        except Exception as error:  # an actor that fails to begin would look like one that died
            self._error = error

    def work(self, item: Item) -> Outcome[Item, Answer] | Exception:
        """The outcome of an item, or why this worker cannot work."""
        return self._error or attempt(self._work, item, lambda *step: None)

    def finish_writing(self) -> None:
        """Return when nothing is being written, after which nothing will be, and when unpacked files are removed."""
        if self._error is None:
            self._work.writing.acquire()
        remove_own_folders()


class _ActorHandle(Generic[Item, Answer]):
    """An actor of the cluster, seen from here."""

    def __init__(self, actor: Any, ray: Any, watch: _Watch) -> None:
        self._actor, self._ray, self._watch = actor, ray, watch

    def submit(self, item: Item) -> Future[Outcome[Item, Answer]]:
        future: Future[Outcome[Item, Answer]] = Future()
        self._watch.add(future)

        def receive(reply: Future[Outcome[Item, Answer] | Exception]) -> None:
            answer = reply.exception() or reply.result()
            if isinstance(answer, Outcome):
                self._watch.settle(future, lambda future: future.set_result(answer))
            else:
                died = isinstance(answer, self._ray.exceptions.RayError)
                error = WorkerDiedError(_line(answer)) if died else answer
                self._watch.settle(future, lambda future: future.set_exception(error))

        self._actor.work.remote(item).future().add_done_callback(receive)
        return future

    def stop(self) -> None:
        if self._watch.lost:
            return
        with suppress(self._ray.exceptions.RayError):  # it may have died
            self._ray.get(self._actor.finish_writing.remote(), timeout=60)
        self._ray.kill(self._actor)


def _line(error: BaseException) -> str:
    """An error's words on one line."""
    return " ".join(str(error).split())
