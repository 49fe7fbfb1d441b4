"""Work on many cases: in this process, in several of this machine, or in those of a cluster.

Each engine yields an outcome for every case, in the order in which they end. Whatever befalls a case, the death of the
process that worked on it included, costs that case alone.
"""

from __future__ import annotations

import copyreg
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import MappingProxyType

from meddelinea.data.case import Case
from meddelinea.data.cluster import joined
from meddelinea.errors import MedDelineaError

#: What is done with a case; it returns what became of it, in a word.
Work = Callable[[Case], str]


def _read_only(content: dict[object, object]) -> MappingProxyType[object, object]:
    return MappingProxyType(content)


# Datasets' numberings are read-only mappings, which Python can hand to another process only when told how.
copyreg.pickle(MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))


@dataclass(frozen=True)
class Outcome:
    """What became of a case: what the work returned or, where it failed, None and the reason."""

    case: Case
    answer: str | None
    reason: str = ""


Engine = Callable[[Work, Sequence[Case]], Iterator[Outcome]]


def attempt(work: Work, case: Case) -> Outcome:
    """The outcome of a case; no error of one case is one of the others, so all are caught."""
    try:
        return Outcome(case, work(case))
    except MedDelineaError as error:
        return Outcome(case, None, str(error))
    except Exception as error:
        return Outcome(case, None, f"{type(error).__name__}: {error} (unexpected)")


def in_this_process(work: Work, cases: Sequence[Case]) -> Iterator[Outcome]:
    """One case after the other; here the death of the process ends all."""
    return (attempt(work, case) for case in cases)


def on_this_machine(work: Work, cases: Sequence[Case], workers: int) -> Iterator[Outcome]:
    """In `workers` processes, started afresh: the calling script needs `if __name__ == "__main__":`."""
    waiting = iter(cases)
    busy: dict[Connection, tuple[BaseProcess, Case]] = {}

    def hand_out(connection: Connection, process: BaseProcess) -> None:
        case = next(waiting, None)
        if case is None:
            connection.close()  # ends the worker
            process.join()
            return
        with suppress(OSError):  # it died idle: receiving its answer will tell
            connection.send(case)
        busy[connection] = process, case

    try:
        for _ in range(min(workers, len(cases))):
            hand_out(*_start(work))
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                process, case = busy[connection]
                try:
                    outcome = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    outcome = Outcome(case, None, _cause_of_death(process))
                    connection.close()
                    del busy[connection]
                    hand_out(*_start(work))
                else:
                    del busy[connection]
                    hand_out(connection, process)
                yield outcome
    finally:
        for process, _ in busy.values():
            process.terminate()


def on_cluster(work: Work, cases: Sequence[Case], address: str) -> Iterator[Outcome]:
    """On the cores of a ray cluster, whose machines see source and store under the same paths.

    Parameters
    ----------
    address
        The cluster's head; raises as `joined` does.
    """
    with joined(address) as ray:
        # Not tried again: a case that its machine has no memory for would go round and round; a second run resumes.
        task = ray.remote(max_retries=0)(attempt)
        shared = ray.put(work)
        pending = {task.remote(shared, case): case for case in cases}
        while pending:
            for done in ray.wait(list(pending))[0]:
                case = pending.pop(done)
                try:
                    yield ray.get(done)
                except ray.exceptions.RayError as error:
                    reason = " ".join(str(error).split())
                    yield Outcome(case, None, f"its worker on the cluster died: {reason}")


def _start(work: Work) -> tuple[Connection, BaseProcess]:
    # Spawned: a forked worker would hold its siblings' pipes open, and not see this process die.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _serve(work: Work, connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keyboard interrupts the parent too, which ends its workers
    with suppress(EOFError, OSError):  # the parent has no more cases, or is gone
        while True:
            connection.send(attempt(work, connection.recv()))


def _cause_of_death(process: BaseProcess) -> str:
    code = process.exitcode or 0
    ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    hint = "; probably out of memory: try fewer workers" if code == -signal.SIGKILL else ""
    return f"its worker process died of {ending}{hint}"
