"""Workers that are actors of a ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from meddelinea.data.cluster import joined
from meddelinea.errors import UsageError
from meddelinea.folders.crew import AT_ONCE, Make, Outcome, Outcomes, Progress, attempt, share_out
from meddelinea.folders.found import ScanCase


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
    with joined(address, workers) as ray:
        there = ray.cluster_resources()
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
        yield from share_out(cases, lambda: _RayWorker(actor, make, max(1, cores // count)), count)


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
