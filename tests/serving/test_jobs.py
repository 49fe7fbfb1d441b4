"""Jobs: none is lost by a restart, a crash or a cancel, and none outlives its time.

The worker's process is replaced by a thread that says what a test has it say.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from meddelinea.errors import UsageError
from meddelinea.serving.dispatcher import Dispatcher
from meddelinea.serving.job import Job, JobOutcome, JobRequest, ResultFile, State, Trouble
from meddelinea.serving.jobs import MOST_ATTEMPTS, JobStore, QueueFullError
from meddelinea.serving.limits import Limits
from support.waiting import PATIENCE, wait_until

DONE = JobOutcome(state="done", scan="f" * 64, shape=(3, 4, 5), files=(ResultFile("mask", "mask.nii.gz", "Mask"),))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(tmp_path / "jobs", Limits(queue_length=3))
    yield store
    store.close()


def submit(store: JobStore) -> Job:
    job = store.receive()
    store.upload_of(job).write_bytes(b"scan")
    store.submit(job.id, "")
    return job


def state(store: JobStore, job: Job) -> str:
    found = store.get(job.id)
    return "gone" if found is None else found.state


def test_jobs_run_in_order_and_keep_their_outcome(store: JobStore) -> None:
    first, second = submit(store), submit(store)
    assert store.waiting_before(second) == 1
    claimed = store.claim()
    assert claimed is not None
    assert claimed.id == first.id
    store.progress(first.id, 3, 9)
    store.finish(first.id, DONE)
    found = store.get(first.id)
    assert found is not None
    assert (found.state, found.slices_done, found.slices, found.outcome) == ("done", 3, 9, DONE)
    claimed = store.claim()
    assert claimed is not None
    assert claimed.id == second.id
    assert store.claim() is None


def test_a_full_queue_takes_no_more_until_one_ends(store: JobStore) -> None:
    jobs = [submit(store), submit(store), store.receive()]
    with pytest.raises(QueueFullError, match="3 scans are waiting"):
        store.receive()
    store.cancel(jobs[0].id)
    store.receive()


def test_a_scan_is_checked_before_it_waits_for_the_model(store: JobStore) -> None:
    good, bad = store.receive(), store.receive()
    for job in (good, bad):
        store.upload_of(job).write_bytes(b"scan")
        store.submit(job.id, "", "arrived")
    assert store.claim() is None
    for outcome in (JobOutcome(state="queued", shape=(3, 4, 5)), JobOutcome(state="refused", message="a letter")):
        claimed = store.claim("arrived")
        assert claimed is not None
        assert claimed.state == "checking"
        store.finish(claimed.id, outcome)
    assert [state(store, job) for job in (good, bad)] == ["queued", "refused"]
    assert store.upload_of(good).read_bytes() == b"scan"
    assert not list(store.folder_of(bad).iterdir())
    found = store.get(good.id)
    assert found is not None
    assert (found.ended, found.attempts, found.outcome.shape) == (None, 0, (3, 4, 5))
    claimed = store.claim()
    assert claimed is not None
    assert claimed.id == good.id


def test_a_job_that_is_interrupted_is_taken_again_where_it_was(store: JobStore) -> None:
    job = store.receive()
    for name in ("upload", "correction.nii", "unpacked"):
        (store.folder_of(job) / name).write_bytes(b"x")
    store.submit(job.id, "", "arrived")
    for give_back in (store.requeue, store.release):
        assert store.claim("arrived") is not None
        give_back(job.id)
        assert state(store, job) == "arrived"
        assert sorted(path.name for path in store.folder_of(job).iterdir()) == ["correction.nii", "upload"]
    store.cancel(job.id)
    assert (state(store, job), list(store.folder_of(job).iterdir())) == ("cancelled", [])


def test_corrections_do_not_wait_for_places_of_scans(store: JobStore) -> None:
    for _ in range(3):
        submit(store)
    job = store.receive(JobRequest(kind="correction", parent="a", labels={"liver": 1}, comment="the dome was missing"))
    found = store.get(job.id)
    assert found is not None
    assert (found.request.labels, found.request.comment) == ({"liver": 1}, "the dome was missing")


def test_a_clients_name_finds_the_job_that_had_it_last_and_is_not_kept(store: JobStore, tmp_path: Path) -> None:
    first, second = submit(store), submit(store)
    for job in (first, second):
        store.name(job.id, "Doe^Jane")
    found = store.named("Doe^Jane")
    assert found is not None
    assert found.id == second.id
    assert store.named("Doe") is None
    store.remove(second.id)
    assert store.named("Doe^Jane") is None
    assert b"Doe" not in (tmp_path / "jobs" / "jobs.sqlite3").read_bytes()


def test_a_restart_loses_no_job(tmp_path: Path) -> None:
    store = JobStore(tmp_path, Limits())
    done, running, waiting, arriving = (submit(store), submit(store), submit(store), store.receive())
    store.claim()
    store.finish(done.id, DONE)
    store.claim()
    store.close()
    store = JobStore(tmp_path, Limits())
    assert [state(store, job) for job in (done, running, waiting, arriving)] == ["done", "queued", "queued", "gone"]
    assert store.upload_of(waiting).read_bytes() == b"scan"
    assert not store.folder_of(arriving).exists()
    store.close()


def test_a_job_that_ends_the_server_again_and_again_fails(tmp_path: Path) -> None:
    store = JobStore(tmp_path, Limits())
    job = submit(store)
    for _ in range(MOST_ATTEMPTS):
        assert state(store, job) == "queued"
        assert store.claim() is not None
        store.close()
        store = JobStore(tmp_path, Limits())
    found = store.get(job.id)
    assert found is not None
    assert found.state == "failed"
    assert "interrupted 3 times" in found.outcome.message
    store.close()


def test_two_servers_do_not_share_a_folder(store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stop the server that uses it"):
        JobStore(tmp_path / "jobs", Limits())


def test_old_jobs_and_stray_folders_are_deleted(tmp_path: Path) -> None:
    store = JobStore(tmp_path, Limits(keep_hours=1.0))
    old, new, waiting = submit(store), submit(store), submit(store)
    for job in (old, new):
        store.claim()
        store.finish(job.id, DONE)
    store._execute("UPDATE jobs SET ended = ? WHERE id = ?", (time.time() - 3601, old.id))
    (tmp_path / "jobs" / "stray").mkdir()
    store.tidy()
    assert [state(store, job) for job in (old, new, waiting)] == ["gone", "done", "queued"]
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == sorted([new.id, waiting.id])
    store.close()


def test_what_was_cancelled_or_removed_stays_so(store: JobStore) -> None:
    cancelled, removed = submit(store), submit(store)
    store.claim(), store.claim()
    store.cancel(cancelled.id)
    store.remove(removed.id)
    for job in (cancelled, removed):
        store.finish(job.id, DONE)
        store.requeue(job.id)
    assert [state(store, job) for job in (cancelled, removed)] == ["cancelled", "gone"]
    assert not store.folder_of(removed).exists()


def test_the_folder_is_its_owners_alone(store: JobStore, tmp_path: Path) -> None:
    job = submit(store)
    assert [p.stat().st_mode & 0o777 for p in (tmp_path / "jobs", store.folder_of(job))] == [0o700, 0o700]


class FakeWorker:
    """FAKE: each call to `begin` runs the next script in a thread: it gets the connection and the cancel event."""

    def __init__(self, *scripts: Callable[[Connection, threading.Event], Any]) -> None:
        self.scripts = list(scripts)
        self.cancelled = threading.Event()
        self.stops = 0

    def begin(self, upload: Path) -> Connection:
        assert upload.read_bytes() == b"scan"
        self.cancelled.clear()
        ours, theirs = Pipe()
        threading.Thread(target=self.scripts.pop(0), args=(theirs, self.cancelled), daemon=True).start()
        return ours

    def cancel(self) -> None:
        self.cancelled.set()

    def stop(self) -> None:
        self.stops += 1


def finish(channel: Connection, _: threading.Event) -> None:
    with suppress(BrokenPipeError):  # whoever listened met trouble of its own
        channel.send((1, 2))
        channel.send(DONE)


def crash(channel: Connection, _: threading.Event) -> None:
    channel.close()


def hang(channel: Connection, _: threading.Event) -> None:
    time.sleep(30)
    channel.close()


def obey(channel: Connection, cancelled: threading.Event) -> None:
    cancelled.wait(PATIENCE)
    channel.send(JobOutcome(state="cancelled"))


def run(store: JobStore, worker: Any, until: Callable[[], bool], limits: Limits | None = None) -> None:
    task_of: Any = store.upload_of
    dispatcher = Dispatcher(store, worker, limits or Limits(), takes="queued", task_of=task_of)
    dispatcher.start()
    wait_until(until)
    dispatcher.stop()


def test_a_crash_of_the_worker_repeats_the_job_and_spares_the_next(store: JobStore) -> None:
    first, second = submit(store), submit(store)
    worker = FakeWorker(crash, finish, finish)
    run(store, worker, lambda: state(store, second) == "done")
    assert state(store, first) == "done"
    found = store.get(first.id)
    assert found is not None
    assert (found.attempts, found.outcome) == (2, DONE)


def test_a_scan_that_always_crashes_the_worker_fails(store: JobStore) -> None:
    job = submit(store)
    run(store, FakeWorker(*[crash] * MOST_ATTEMPTS), lambda: state(store, job) == "failed")


def test_what_the_server_lacks_is_waited_for_and_then_said(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meddelinea.serving.dispatcher.PAUSE_SECONDS", 0.0)

    def lack(channel: Connection, _: threading.Event) -> None:
        channel.send(Trouble("no space left"))

    first, second = submit(store), submit(store)
    worker = FakeWorker(lack, finish, *[lack] * MOST_ATTEMPTS)
    run(store, worker, lambda: state(store, second) == "failed")
    assert state(store, first) == "done"  # the second time there was room
    found = store.get(second.id)
    assert found is not None
    assert found.outcome.message == "no space left; tried 3 times"


@pytest.mark.parametrize("ending", ["refused", "failed", "cancelled"])
def test_a_job_without_results_leaves_no_file(store: JobStore, ending: str) -> None:
    job = submit(store)
    store.claim()
    (store.folder_of(job) / "unpacked").mkdir()
    (store.folder_of(job) / "unpacked" / "patient.dcm").write_bytes(b"x")
    (store.folder_of(job) / "mask.nii.gz").write_bytes(b"x")
    store.requeue(job.id)
    assert [path.name for path in store.folder_of(job).iterdir()] == [store.upload_of(job).name]
    if ending == "cancelled":
        store.cancel(job.id)
    else:
        store.claim()
        store.finish(job.id, JobOutcome(state=ending))
    assert not list(store.folder_of(job).iterdir())


def test_trouble_with_the_database_or_a_job_ends_neither_the_thread_nor_the_next_job(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = submit(store), submit(store)
    claim, progress = store.claim, store.progress
    broken = [sqlite3.OperationalError("disk full"), OSError("disk full")]

    def claim_or_fail(state: State) -> Job | None:
        if len(broken) == 2:
            raise broken.pop(0)
        return claim(state)

    def progress_or_fail(*so_far: Any) -> None:
        if broken:
            raise broken.pop(0)
        progress(*so_far)

    monkeypatch.setattr(store, "claim", claim_or_fail)
    monkeypatch.setattr(store, "progress", progress_or_fail)
    run(store, FakeWorker(finish, finish), lambda: state(store, second) == "done")
    found = store.get(first.id)
    assert found is not None
    assert (found.state, found.outcome.message) == ("failed", "unexpected OSError in the server")


def test_a_job_over_its_time_fails_and_the_worker_is_ended(store: JobStore) -> None:
    job, second = submit(store), submit(store)
    worker = FakeWorker(hang, finish)
    run(store, worker, lambda: state(store, second) == "done", Limits(job_seconds=0.3))
    found = store.get(job.id)
    assert found is not None
    assert found.state == "failed"
    assert "not done within" in found.outcome.message
    assert worker.stops >= 1


def test_a_cancelled_job_makes_room_without_ending_the_worker(store: JobStore) -> None:
    job, second = submit(store), submit(store)
    worker = FakeWorker(obey, finish)
    stopped: list[int] = []

    def second_is_done() -> bool:
        if state(store, job) == "running":
            store.cancel(job.id)
        if state(store, second) == "done":
            stopped.append(worker.stops)
        return bool(stopped)

    run(store, worker, second_is_done)
    assert state(store, job) == "cancelled"
    assert stopped == [0]


def test_a_job_that_runs_when_the_server_stops_waits_for_the_next_start(store: JobStore) -> None:
    job = submit(store)
    run(store, FakeWorker(hang), lambda: state(store, job) == "running")
    found = store.get(job.id)
    assert found is not None
    assert (found.state, found.attempts) == ("queued", 0)
    run(store, FakeWorker(finish), lambda: state(store, job) == "done")
