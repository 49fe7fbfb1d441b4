"""Work on many items, dispatched to a pool of workers: processes of this machine, or actors of a ray cluster.

A worker has two items pending, so that one can be read and written while the other is computed. The death of a worker,
by an item too large for the memory or from outside, loses nothing: its pending items are retried, each alone in a
worker, and only an item that is alone with a dying worker fails.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from meddelinea.errors import MedDelineaError

#: Items that a worker has pending.
PENDING = 2


class Named(Protocol):
    """An item of work. It is sent to other processes, so it can be pickled."""

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


class _Task(NamedTuple, Generic[Item, Answer]):
    """An item that is pending; `alone` where its worker gets no second one."""

    item: Item
    worker: Worker[Item, Answer]
    alone: bool


def dispatch(
    items: Sequence[Item], start_worker: Callable[[], Worker[Item, Answer]], workers: int
) -> Outcomes[Item, Answer]:
    """Yield the outcomes of items that at most `workers` workers take up as they get free."""
    new, retry = deque(items), deque[Item]()  # to retry: what was pending with a worker that died
    pool: list[Worker[Item, Answer]] = []
    pending: dict[Future[Outcome[Item, Answer]], _Task[Item, Answer]] = {}

    def submit(worker: Worker[Item, Answer], item: Item, alone: bool) -> None:
        pending[worker.submit(item)] = _Task(item, worker, alone)

    def assign() -> None:
        while new or retry:
            load = Counter(task.worker for task in pending.values())
            taken = {task.worker for task in pending.values() if task.alone}
            worker = min((worker for worker in pool if worker not in taken), key=lambda each: load[each], default=None)
            if (worker is None or load[worker]) and len(pool) < workers:
                pool.append(start_worker())
            elif worker is not None and new and load[worker] < PENDING:
                submit(worker, new.popleft(), alone=False)
            elif worker is not None and retry and not load[worker]:
                submit(worker, retry.popleft(), alone=True)
            else:
                return

    try:
        assign()
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                item, worker, alone = pending.pop(future)
                try:
                    yield future.result()
                except WorkerDiedError as death:
                    if worker in pool:
                        pool.remove(worker)
                        worker.stop()
                    if alone:
                        yield Outcome(item, None, f"its worker died twice, the second time over it alone: {death}")
                    else:
                        retry.append(item)
            assign()
    finally:
        for worker in pool:
            worker.stop()
