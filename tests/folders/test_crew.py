"""Sharing scans out to workers: nothing is lost or done twice when one dies, and none is left half written.

The work is FAKE and quick: it writes a file for a case, and some cases are the death of their worker.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from meddelinea.errors import InputRefusedError, UsageError, WeightsMissingError
from meddelinea.folders.cluster import on_cluster
from meddelinea.folders.crew import Outcome, Progress, in_this_process
from meddelinea.folders.found import ScanCase
from meddelinea.folders.processes import on_this_machine
from support.clusters import run_on_cluster
from support.patience import PATIENCE, wait_until


class Writer:
    """FAKE: writes a file in two halves and a line in a journal; `killer` is the death of its worker, `victim` once."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        self.writing = threading.Lock()
        self._folder = folder

    def __call__(self, case: ScanCase, progress: Progress) -> Outcome:
        progress(case.name, 1, 1)
        if case.name == "refused":
            raise InputRefusedError("no scan")
        if case.name == "broken":
            raise MemoryError("cannot allocate")
        once = self._folder / "killed"
        if case.name == "killer" or (case.name == "victim" and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with self.writing:
            with case.output.open("w") as stream:
                stream.write("half")
                stream.flush()
                time.sleep(0.02)
                stream.write(" and half")
            with (self._folder / "journal").open("a") as journal:  # appending a line is atomic
                journal.write(f"{case.name}\n")
        return Outcome(case, "done")


def cases_of(folder: Path, names: str) -> list[ScanCase]:
    return [ScanCase(name, folder / name, folder / f"{name}.out") for name in names.split()]


def check(folder: Path, outcomes: Iterable[Outcome], names: str, lacking: dict[str, str]) -> None:
    """Each case has one outcome and, but for those `lacking`, one whole file that was written once."""
    states = [(outcome.case.name, outcome.state) for outcome in outcomes]
    assert sorted(states) == sorted((name, lacking.get(name, "done")) for name in names.split())
    made = sorted(set(names.split()) - set(lacking))
    assert sorted((folder / "journal").read_text().split()) == made
    assert all((folder / f"{name}.out").read_text() == "half and half" for name in made)


NAMES = "a b victim c refused d broken e f killer g h"
LACKING = {"refused": "refused", "broken": "failed", "killer": "failed"}
#: How a program of another process begins.
IMPORTS = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    "import test_crew as t; from functools import partial; from pathlib import Path"
)


def test_the_death_of_a_worker_costs_only_the_case_that_kills_again(tmp_path: Path) -> None:
    seen: list[str] = []
    make = partial(Writer, tmp_path)
    outcomes = list(
        on_this_machine(make, cases_of(tmp_path, NAMES), lambda name, done, total: seen.append(name), workers=2)
    )
    check(tmp_path, outcomes, NAMES, LACKING)
    assert set(NAMES.split()) - {"victim", "killer"} <= set(seen)  # a dying worker's last words may be lost
    (reason,) = (outcome.reason for outcome in outcomes if outcome.case.name == "killer")
    assert "died twice" in reason
    assert "signal SIGKILL; probably out of memory" in reason


class Pair:
    """FAKE: a case goes on when another is in the same worker's hands."""

    def __init__(self, threads: int | None) -> None:
        self.writing = threading.Lock()
        self._both = threading.Barrier(2)

    def __call__(self, case: ScanCase, progress: Progress) -> Outcome:
        self._both.wait(PATIENCE)
        return Outcome(case, "done")


def test_a_worker_has_two_cases_in_its_hands(tmp_path: Path) -> None:
    outcomes = on_this_machine(Pair, cases_of(tmp_path, "a b c d"), print)
    assert [outcome.state for outcome in outcomes] == ["done"] * 4


def test_workers_that_are_stopped_leave_whole_files(tmp_path: Path) -> None:
    names = " ".join(f"n{number}" for number in range(40))
    outcomes = on_this_machine(partial(Writer, tmp_path), cases_of(tmp_path, names), lambda *step: None, workers=2)
    first = [next(outcomes) for _ in range(3)]
    outcomes.close()
    assert all(outcome.state == "done" for outcome in first)
    files = list(tmp_path.glob("*.out"))
    assert 3 <= len(files) < 40
    assert {path.read_text() for path in files} == {"half and half"}
    time.sleep(0.2)
    assert len(list(tmp_path.glob("*.out"))) == len(files)  # nobody goes on


def test_an_interrupt_from_the_keyboard_leaves_whole_files(tmp_path: Path) -> None:
    names = " ".join(f"n{number}" for number in range(4000))
    program = (
        f"{IMPORTS}\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"list(t.on_this_machine(partial(t.Writer, folder), t.cases_of(folder, {names!r}), lambda *step: None))"
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
        list(on_this_machine(without_weights, cases_of(tmp_path, "a b"), print))


def test_a_screen_that_closes_ends_the_run(tmp_path: Path) -> None:
    def closed(name: str, done: int, total: int) -> None:
        raise BrokenPipeError("nobody reads on")

    with pytest.raises(BrokenPipeError, match="nobody reads on"):
        list(on_this_machine(partial(Writer, tmp_path), cases_of(tmp_path, "a b"), closed))


def test_in_one_process_errors_cost_their_own_case(tmp_path: Path) -> None:
    names = "a refused broken b"
    check(tmp_path, in_this_process(partial(Writer, tmp_path), cases_of(tmp_path, names), print), names, LACKING)


def test_without_ray_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'meddelinea\[cluster\]'"):
        list(on_cluster(Pair, cases_of(tmp_path, "a"), print))


def test_a_cluster_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    names = "a b victim c refused d"
    program = (
        f"{IMPORTS}; from ray import cloudpickle\n"
        "cloudpickle.register_pickle_by_value(t)  # ray's processes cannot import it\n"
        f"folder, names = Path({str(tmp_path)!r}), {names!r}\n"
        "outcomes = t.on_cluster(partial(t.Writer, folder), t.cases_of(folder, names), print, workers=2)\n"
        "t.check(folder, outcomes, names, t.LACKING)"
    )
    done = run_on_cluster([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
