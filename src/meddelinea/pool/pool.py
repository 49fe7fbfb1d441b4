"""Work on many items, dispatched to a pool of workers: processes of this machine, or actors of a ray cluster.

A worker has two items pending, so that one can be read and written while the other is computed. The death of a worker,
by an item too large for the memory or from outside, loses nothing: its pending items are retried, each alone in a
worker, and only an item that is alone with a dying worker fails.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from meddelinea.errors import MedDelineaError

#: Items that a worker has pending.
PENDING = 2


class Named(Protocol):
    """An item of work. Items and answers travel between processes, so they can be pickled."""

    @property
    def name(self) -> str:
        """Unique among the items."""


Item = TypeVar("Item", bound=Named)
Answer = TypeVar("Answer")
ItemIn = TypeVar("ItemIn", bound=Named, contravariant=True)
AnswerOut = TypeVar("AnswerOut", covariant=True)

#: Called with (name of the item, steps done, steps in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Outcome(Generic[Item, Answer]):
    """What became of an item: the work's answer or, where it failed, None and the reason."""

    item: Item
    answer: Answer | None
    reason: str = ""


class Work(Protocol[ItemIn, AnswerOut]):
    """What a worker does with an item; made once in each worker, with whatever it needs loaded, and called from
    several threads."""

    #: Held while a result is written: a worker that is stopped finishes it first.
    writing: threading.Lock

    def __call__(self, item: ItemIn, progress: Progress, /) -> AnswerOut: ...


#: Makes the work of a worker that may use so many threads; None: as many as it likes. It can be pickled.
Make = Callable[[int | None], Work[Item, Answer]]
Outcomes = Generator[Outcome[Item, Answer], None, None]
#: Yields the outcome of each item in the order in which they end. An error of `Make` is raised to the caller.
Engine = Callable[[Make[Item, Answer], Sequence[Item], Progress], Outcomes[Item, Answer]]


def attempt(work: Work[Item, Answer], item: Item, progress: Progress) -> Outcome[Item, Answer]:
    """The outcome of an item; no error of one item is one of the others, so all are caught."""
    try:
        return Outcome(item, work(item, progress))
    except MedDelineaError as error:
        return Outcome(item, None, str(error))
    except Exception as error:
        return Outcome(item, None, f"{type(error).__name__}: {error} (unexpected)")


class WorkerDiedError(Exception):
    """A worker has ended before its pending items were done."""


class Worker(Protocol[Item, Answer]):
    """Another process that works on items, seen from here."""

    def submit(self, item: Item) -> Future[Outcome[Item, Answer]]:
        """The outcome to come; the future raises `WorkerDiedError` where the worker dies before."""

    def stop(self) -> None:
        """End the worker; a result that is being written is finished first."""


def dispatch(
    items: Sequence[Item], start_worker: Callable[[], Worker[Item, Answer]], workers: int
) -> Outcomes[Item, Answer]:
    """Yield the outcomes of items that at most `workers` workers, one or more, take up as they get free."""
    new, retry = deque(items), deque[Item]()  # retry: pending with a worker that died
    places: dict[Worker[Item, Answer], int] = {}  # the free ones of each worker, of PENDING
    pending: dict[Future[Outcome[Item, Answer]], tuple[Worker[Item, Answer], Item, int]] = {}

    def submit(worker: Worker[Item, Answer], item: Item, taken: int) -> None:
        pending[worker.submit(item)] = worker, item, taken
        places[worker] -= taken

    def stop(worker: Worker[Item, Answer]) -> None:
        if places.pop(worker, None) is not None:
            worker.stop()

    def assign() -> None:
        while new or retry:
            if PENDING not in places.values() and len(places) < workers:
                places[start_worker()] = PENDING
            least_busy = max(places, key=lambda worker: places[worker])
            if new and places[least_busy]:
                submit(least_busy, new.popleft(), 1)
            elif retry and places[least_busy] == PENDING:
                submit(least_busy, retry.popleft(), PENDING)  # alone: no place is left
            else:
                return
        for worker in [worker for worker, free in places.items() if free == PENDING]:
            stop(worker)  # what it holds in memory may be what the others lack

    try:
        assign()
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                worker, item, taken = pending.pop(future)
                if worker in places:
                    places[worker] += taken
                try:
                    yield future.result()
                except WorkerDiedError as death:
                    stop(worker)
                    if taken == PENDING:
                        yield Outcome(item, None, f"its worker died twice, the second time over it alone: {death}")
                    else:
                        retry.append(item)
            assign()
    finally:
        for worker in places:
            worker.stop()
