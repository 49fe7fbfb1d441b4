"""Many scans on several workers, wherever these are: `processes` of this machine, or of a ray `cluster`.

A worker has two scans in its hands, so that one is read and written while the other is on the network. The death of a
worker, by a scan too large for the memory or from outside, costs nothing: its scans are tried once more, each alone in
a worker, and only one that is alone with a dying worker fails.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Protocol

from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.folders.found import ScanCase

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


class Worker(Protocol):
    """A process that works on cases, seen from here."""

    #: What the future of a case raises when the process has died.
    death: type[Exception]

    def submit(self, case: ScanCase) -> Future[Outcome]: ...

    def stop(self) -> None:
        """End the process; a result that is being written is finished first."""


def share_out(cases: Sequence[ScanCase], hire: Callable[[], Worker], workers: int) -> Outcomes:
    """Outcomes in the order in which they end, of cases that at most `workers` workers take up as they get free."""
    fresh, suspects = deque(cases), deque[ScanCase]()  # suspects were in the hands of a worker that died
    crew: list[Worker] = []
    in_hand: dict[Future[Outcome], tuple[Worker, ScanCase, bool]] = {}

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
