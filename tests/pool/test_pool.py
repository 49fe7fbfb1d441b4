"""A pool of workers: nothing is lost or done twice when one dies, and nothing is left half written.

The work is FAKE and quick: it writes a file for an item, and some items are the death of their worker.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from meddelinea.errors import InputRefusedError, PartialFailureError, UsageError, WeightsMissingError
from meddelinea.pool import pool
from meddelinea.pool.cluster import on_cluster
from meddelinea.pool.local import _Process, in_this_process, on_this_machine
from meddelinea.pool.pool import Outcome, Progress, WorkerDiedError
from support.ray_cluster import run_on_cluster
from support.waiting import PATIENCE, wait_until


@dataclass(frozen=True)
class Item:
    """Something with a name and nothing else."""

    name: str


class Writer:
    """FAKE: writes a file in two halves and a line in a journal; `killer` is the death of its worker, `victim` once."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        self.writing = threading.Lock()
        self._folder = folder

    def __call__(self, item: Item, progress: Progress) -> str:
        progress(item.name, 1, 1)
        if item.name == "refused":
            raise InputRefusedError("no scan")
        if item.name == "leaver":
            os._exit(7)
        if item.name == "broken":
            raise MemoryError("cannot allocate")
        once = self._folder / "killed"
        if item.name == "killer" or (item.name == "victim" and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with self.writing:
            with (self._folder / f"{item.name}.out").open("w") as stream:
                stream.write("half")
                stream.flush()
                time.sleep(0.02)
                stream.write(" and half")
            with (self._folder / "journal").open("a") as journal:  # appending a line is atomic
                journal.write(f"{item.name}\n")
        return f"{item.name} is done"


def items(names: str) -> list[Item]:
    return [Item(name) for name in names.split()]


def check(folder: Path, outcomes: Iterable[Outcome[Item, str]], names: str) -> dict[str, str]:
    """Each item has one outcome and, but for those that fail, one whole file that was written once; the reasons."""
    ended = list(outcomes)
    assert sorted(outcome.item.name for outcome in ended) == sorted(names.split())
    assert all(outcome.answer == f"{outcome.item.name} is done" for outcome in ended if outcome.item.name not in FAIL)
    failed = {outcome.item.name: outcome.reason for outcome in ended if outcome.answer is None}
    assert set(failed) == FAIL & set(names.split())
    made = sorted(set(names.split()) - FAIL)
    assert sorted((folder / "journal").read_text().split()) == made
    assert all((folder / f"{name}.out").read_text() == "half and half" for name in made)
    return failed


NAMES = "a b victim c refused d broken e leaver f killer g h"
FAIL = {"refused", "broken", "leaver", "killer"}
#: How a program of another process begins.
IMPORTS = (
    f"import sys; sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]}\n"
    "import test_pool as t; from functools import partial; from pathlib import Path"
)


def test_the_death_of_a_worker_costs_only_the_item_that_kills_again(tmp_path: Path) -> None:
    seen: list[str] = []
    make = partial(Writer, tmp_path)
    outcomes = on_this_machine(make, items(NAMES), lambda name, done, total: seen.append(name), workers=2)
    failed = check(tmp_path, outcomes, NAMES)
    # A dying worker's last words may be lost.
    assert set(NAMES.split()) - {"victim", "killer", "leaver"} <= set(seen)
    assert "died twice" in failed["killer"]
    assert "signal SIGKILL; probably out of memory" in failed["killer"]
    assert "exit code 7" in failed["leaver"]
    assert failed["refused"] == "no scan"
    assert failed["broken"] == "MemoryError: cannot allocate (unexpected)"


class FakeWorker:
    """FAKE: a worker whose items end, and which dies, when the test says so."""

    def __init__(self) -> None:
        self.pending: dict[str, Future[Outcome[Item, str]]] = {}
        self.stopped = False

    def submit(self, item: Item) -> Future[Outcome[Item, str]]:
        self.pending[item.name] = Future()
        return self.pending[item.name]

    def stop(self) -> None:
        self.stopped = True


@pytest.mark.parametrize("seed", range(10))
def test_whichever_workers_die_an_item_ends_once_and_fails_only_alone(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    workers: list[FakeWorker] = []
    deaths: dict[str, list[set[str]]] = {f"n{number}": [] for number in range(100)}  # what was pending each time

    def start_worker() -> FakeWorker:
        workers.append(FakeWorker())
        return workers[-1]

    def end_something(futures: Collection[Future[Outcome[Item, str]]], return_when: str) -> object:
        """Let an item of a worker end, or a worker die, before what has ended is waited for."""
        running = [worker for worker in workers if not worker.stopped]
        assert len(running) <= 3
        assert all(1 <= len(worker.pending) <= 2 for worker in running)
        worker = rng.choice(running)
        if rng.random() < 0.3:
            for name, future in worker.pending.items():
                deaths[name].append(set(worker.pending))
                future.set_exception(WorkerDiedError("killed"))
        else:
            name = rng.choice(sorted(worker.pending))
            worker.pending.pop(name).set_result(Outcome(Item(name), "done"))
        return wait(futures, return_when=return_when)

    monkeypatch.setattr(pool, "wait", end_something)
    outcomes = list(pool.dispatch([Item(name) for name in deaths], start_worker, 3))
    assert sorted(outcome.item.name for outcome in outcomes) == sorted(deaths)
    failed = {outcome.item.name for outcome in outcomes if outcome.answer is None}
    assert failed == {name for name, times in deaths.items() if len(times) == 2}
    assert all(deaths[name][1] == {name} for name in failed)
    assert any(len(times) == 1 and times[0] != {name} for name, times in deaths.items())  # died in company: not lost
    assert all(worker.stopped for worker in workers)


class Pair:
    """FAKE: an item goes on when another is pending with the same worker."""

    def __init__(self, threads: int | None) -> None:
        self.writing = threading.Lock()
        self._both = threading.Barrier(2)

    def __call__(self, item: Item, progress: Progress) -> str:
        self._both.wait(PATIENCE)
        return "done"


def test_a_worker_has_two_items_pending() -> None:
    outcomes = on_this_machine(Pair, items("a b c d"), print)
    assert [outcome.answer for outcome in outcomes] == ["done"] * 4


def test_workers_that_are_stopped_leave_whole_files(tmp_path: Path) -> None:
    names = " ".join(f"n{number}" for number in range(40))
    outcomes = on_this_machine(partial(Writer, tmp_path), items(names), lambda *step: None, workers=2)
    first = [next(outcomes) for _ in range(3)]
    outcomes.close()
    assert all(outcome.answer for outcome in first)
    files = list(tmp_path.glob("*.out"))
    assert 3 <= len(files) < 40
    assert {path.read_text() for path in files} == {"half and half"}
    time.sleep(0.2)
    assert len(list(tmp_path.glob("*.out"))) == len(files)  # nobody goes on


class Deaf:
    """FAKE: does nothing, in a process that no signal ends, as one that comes just before a read does not."""

    def __init__(self, threads: int | None) -> None:
        self.writing = threading.Lock()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def __call__(self, item: Item, progress: Progress) -> str:
        return "done"


def test_a_worker_that_missed_its_signal_ends_all_the_same() -> None:
    worker = _Process(Deaf, None, lambda *step: None)
    assert worker.submit(Item("a")).result(PATIENCE).answer == "done"
    stopping = threading.Thread(target=worker.stop, daemon=True)
    stopping.start()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()


def test_an_interrupt_from_the_keyboard_leaves_whole_files(tmp_path: Path) -> None:
    names = " ".join(f"n{number}" for number in range(4000))
    program = (
        f"{IMPORTS}\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"list(t.on_this_machine(partial(t.Writer, folder), t.items({names!r}), lambda *step: None))"
    )
    command = [sys.executable, "-c", program]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, preexec_fn=heard) as process:
        try:
            wait_until(lambda: len(list(tmp_path.glob("*.out"))) >= 3 or process.poll() is not None)
            assert process.poll() is None
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
            _, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()  # or the test would wait for all 4000
    assert process.returncode == -signal.SIGINT
    assert err.count(b"Traceback") == 1  # the workers keep still
    files = list(tmp_path.glob("*.out"))
    assert len(files) < 4000
    assert {path.read_text() for path in files} == {"half and half"}


def without_weights(threads: int | None) -> Writer:
    raise WeightsMissingError("no weights here")


def test_workers_that_cannot_begin_end_the_run_with_their_reason(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError, match="no weights here"):
        list(on_this_machine(without_weights, items("a b"), print))


def test_a_screen_that_closes_ends_the_run(tmp_path: Path) -> None:
    def closed(name: str, done: int, total: int) -> None:
        raise BrokenPipeError("nobody reads on")

    with pytest.raises(BrokenPipeError, match="nobody reads on"):
        list(on_this_machine(partial(Writer, tmp_path), items("a b"), closed))


def test_in_one_process_errors_cost_their_own_item(tmp_path: Path) -> None:
    names = "a refused broken b"
    check(tmp_path, in_this_process(partial(Writer, tmp_path), items(names), print), names)


def test_without_ray_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'meddelinea\[cluster\]'"):
        list(on_cluster(Pair, items("a"), print))


def test_a_cluster_that_does_not_start_in_time_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception("The current node\ntimed out during startup")  # as ray does, of no class of its own

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(UsageError, match=r"no ray cluster at 'local' \(The current node timed out during startup\)"):
        list(on_cluster(Pair, items("a"), print))


@pytest.mark.parametrize("answers", [True, False])
def test_a_cluster_that_has_died_ends_the_run_by_name(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    """FAKE: a cluster whose only node dies while an item is pending, or which answers no more."""
    alive = threading.Event()
    alive.set()
    stopped: list[object] = []

    def nodes() -> list[dict[str, object]]:
        if not (answers or alive.is_set()):
            threading.Event().wait(PATIENCE)
        return [{"Alive": alive.is_set(), "Resources": {"CPU": 1.0}}]

    def remote(item: object) -> SimpleNamespace:
        alive.clear()
        return SimpleNamespace(future=Future)  # which nobody ever ends

    handle = SimpleNamespace(work=SimpleNamespace(remote=remote))
    actor = SimpleNamespace(remote=lambda *words: handle)
    ray = SimpleNamespace(
        init=lambda **options: None,
        shutdown=lambda: None,
        cluster_resources=lambda: {"CPU": 1},
        remote=lambda kind: SimpleNamespace(options=lambda **options: actor),
        nodes=nodes,
        kill=stopped.append,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("meddelinea.pool.cluster.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("meddelinea.pool.cluster.LOST_SECONDS", 0.5)
    with pytest.raises(PartialFailureError, match="has lost its last node, or does not answer"):
        list(on_cluster(Pair, items("a b c"), print))
    assert not stopped  # it would be waited for


def test_a_cluster_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    names = "a b victim c refused d"
    program = (
        f"{IMPORTS}; from ray import cloudpickle\n"
        "cloudpickle.register_pickle_by_value(t)  # ray's processes cannot import it\n"
        f"folder, names = Path({str(tmp_path)!r}), {names!r}\n"
        "outcomes = t.on_cluster(partial(t.Writer, folder), t.items(names), print, workers=2)\n"
        "t.check(folder, outcomes, names)"
    )
    done = run_on_cluster([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
