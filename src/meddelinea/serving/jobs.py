"""The jobs of a server and their folders. They are kept in SQLite, so that a restart of the server loses nothing.

Each job has a folder with its upload and its results. Its name is a random id, so that no request names a path.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import sqlite3
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from meddelinea.errors import MedDelineaError, UsageError
from meddelinea.serving.job import TAKEN, Job, JobOutcome, JobRequest, ResultFile, State
from meddelinea.serving.limits import Limits

#: How often a job is started before it is blamed for the end of the worker or the server.
MOST_ATTEMPTS = 3
#: Version of the tables below, stored in the file.
SCHEMA = 2

_JOBS = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    kind TEXT NOT NULL,
    request TEXT NOT NULL,
    suffix TEXT NOT NULL DEFAULT '',
    created REAL NOT NULL,
    ended REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    slices_done INTEGER NOT NULL DEFAULT 0,
    slices INTEGER NOT NULL DEFAULT 0,
    stage TEXT NOT NULL DEFAULT '',
    outcome TEXT NOT NULL DEFAULT '{}'
)
"""
_NAMES = "CREATE TABLE IF NOT EXISTS names (digest TEXT PRIMARY KEY, job TEXT NOT NULL)"
#: How the names of files begin that were sent, and that a job is started with.
SENT = ("upload", "correction.")
#: The state before that in which a process has the job.
_GIVEN_BACK = "CASE state WHEN 'running' THEN 'queued' ELSE 'arrived' END"


class QueueFullError(MedDelineaError):
    """The queue is full."""


class JobStore:
    """The jobs of one server. Its methods may be called from any thread.

    Parameters
    ----------
    folder
        Folder of the jobs; made if it does not exist, readable by its owner only.
    limits
        Only `queue_length` and `keep_hours` are used.

    Raises
    ------
    UsageError
        If the folder cannot be made, or another running server uses it.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._limits = limits
        self._folder = folder / "jobs"
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._database = sqlite3.connect(
                folder / "jobs.sqlite3", timeout=1.0, isolation_level=None, check_same_thread=False
            )
            self._database.row_factory = sqlite3.Row
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")  # held until closed: one server per folder
            self._database.execute("PRAGMA secure_delete = ON")
            self._database.execute("BEGIN IMMEDIATE")
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA):
                raise UsageError(f"{folder}: jobs of version {version}, expected {SCHEMA}; choose another folder")
            self._database.execute(_JOBS)
            self._database.execute(_NAMES)
            self._database.execute(f"PRAGMA user_version = {SCHEMA}")
            self._database.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"{folder}: jobs cannot be kept here ({error}); choose another folder, or stop the server that uses it"
            ) from error
        self._recover()

    def _recover(self) -> None:
        """After a restart: delete interrupted uploads, and give back the jobs that processes had."""
        self._execute("DELETE FROM jobs WHERE state = 'receiving'")
        for row in self._execute("SELECT id FROM jobs WHERE state IN ('checking', 'running')"):
            self.requeue(row["id"])
        self.tidy()

    def close(self) -> None:
        """Release the folder for other servers."""
        with self._lock:
            self._database.close()

    def folder_of(self, job: Job) -> Path:
        """The folder of a job's files."""
        return self._folder / job.id

    def upload_of(self, job: Job) -> Path:
        """The uploaded file."""
        return self.folder_of(job) / f"upload{job.suffix}"

    def receive(self, request: JobRequest | None = None) -> Job:
        """Reserve a place for what is about to arrive, and make its folder. Each kind has places of its own.

        Raises
        ------
        QueueFullError
            If no place is free.
        """
        identity, request = secrets.token_hex(16), request or JobRequest()
        added = self._execute(
            "INSERT INTO jobs (id, state, kind, request, created) SELECT ?, 'receiving', ?, ?, ? "
            "WHERE (SELECT COUNT(*) FROM jobs WHERE ended IS NULL AND kind = ?) < ?",
            (
                *(identity, request.kind, json.dumps(asdict(request)), time.time()),
                *(request.kind, self._limits.queue_length),
            ),
            changes=True,
        )
        if not added:
            waiting = "scans" if request.kind == "segmentation" else f"{request.kind}s"
            raise QueueFullError(
                f"{self._limits.queue_length} {waiting} are waiting already; try again in a few minutes"
            )
        job = self.get(identity)
        assert job is not None
        self.folder_of(job).mkdir(mode=0o700)
        return job

    def submit(self, identity: str, suffix: str, state: State = "queued") -> None:
        """Let a job be taken whose upload is complete: for its check where it has `"arrived"`, else by the model."""
        self._execute("UPDATE jobs SET state = ?, suffix = ? WHERE id = ?", (state, suffix, identity))

    def claim(self, state: State = "queued") -> Job | None:
        """Take the job that has waited longest in a state of `TAKEN`, and return it; None if no job is waiting."""
        rows = self._execute(
            "UPDATE jobs SET state = ?, attempts = attempts + 1, slices_done = 0, slices = 0, stage = '' WHERE id = "
            "(SELECT id FROM jobs WHERE state = ? ORDER BY created LIMIT 1) RETURNING *",
            (TAKEN[state], state),
        )
        return _job(rows[0]) if rows else None

    def progress(self, identity: str, slices_done: int, slices: int, stage: str = "") -> None:
        """Record how far a running job has come."""
        self._execute(
            "UPDATE jobs SET slices_done = ?, slices = ?, stage = ? WHERE id = ?",
            (slices_done, slices, stage, identity),
        )

    def finish(self, identity: str, outcome: JobOutcome) -> None:
        """Record how a job ended, or that it passed its check, which its attempts to be segmented do not include.

        A job that was cancelled or deleted in the meantime stays so.
        """
        passed = outcome.state == "queued"
        changed = self._execute(
            "UPDATE jobs SET state = ?, ended = ?, outcome = ?, attempts = CASE WHEN ? THEN 0 ELSE attempts END "
            "WHERE id = ? AND state IN ('checking', 'running')",
            (outcome.state, None if passed else time.time(), json.dumps(asdict(outcome)), passed, identity),
            changes=True,
        )
        if not (passed and changed):  # what passed may be in another process by now
            self.sweep(identity)

    def release(self, identity: str) -> None:
        """Give a job back that was interrupted on purpose; the attempt does not count."""
        self._execute(
            f"UPDATE jobs SET state = {_GIVEN_BACK}, attempts = attempts - 1 "
            "WHERE id = ? AND state IN ('checking', 'running')",
            (identity,),
        )
        self.sweep(identity)

    def requeue(self, identity: str, trouble: str | None = None) -> None:
        """Give a job back that was interrupted, or kept from its end by `trouble`; it fails at the third time."""
        changed = self._execute(
            f"UPDATE jobs SET state = {_GIVEN_BACK} WHERE id = ? AND state IN ('checking', 'running') AND attempts < ?",
            (identity, MOST_ATTEMPTS),
            changes=True,
        )
        if not changed:
            self.finish(
                identity,
                JobOutcome(
                    state="failed",
                    message=f"interrupted {MOST_ATTEMPTS} times; the scan may be at fault"
                    if trouble is None
                    else f"{trouble}; tried {MOST_ATTEMPTS} times",
                ),
            )
        self.sweep(identity)

    def cancel(self, identity: str) -> None:
        """Cancel a job that has not ended; the files of one that a process has go when it has let go."""
        for state in ("arrived", "checking", "queued", "running"):  # in the order in which it may move on meanwhile
            cancelled = self._execute(
                "UPDATE jobs SET state = 'cancelled', ended = ? WHERE id = ? AND state = ?",
                (time.time(), identity, state),
                changes=True,
            )
            if cancelled and state in TAKEN:
                self.sweep(identity)

    def sweep(self, identity: str) -> None:
        """Remove the files of a job that no worker has now: all without results, all but those sent where it waits."""
        job = self.get(identity)
        if job is not None and job.state == "done":
            return
        waits = job is not None and job.state in TAKEN
        folder = self._folder / identity
        for entry in folder.iterdir() if folder.is_dir() else ():
            if waits and entry.name.startswith(SENT):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def remove(self, identity: str) -> None:
        """Delete a job, its names and its files."""
        self._execute("DELETE FROM jobs WHERE id = ?", (identity,))
        self._execute("DELETE FROM names WHERE job = ?", (identity,))
        shutil.rmtree(self._folder / identity, ignore_errors=True)

    def get(self, identity: str) -> Job | None:
        """The job with this id; None if there is none."""
        rows = self._execute("SELECT * FROM jobs WHERE id = ?", (identity,))
        return _job(rows[0]) if rows else None

    def name(self, identity: str, name: str) -> None:
        """Let a client find a job by a name of its own, of which only a digest is kept: it may be a patient's."""
        self._execute("INSERT OR REPLACE INTO names (digest, job) VALUES (?, ?)", (_digest(name), identity))

    def named(self, name: str) -> Job | None:
        """The job that was named so last; None if there is none."""
        rows = self._execute("SELECT * FROM jobs WHERE id = (SELECT job FROM names WHERE digest = ?)", (_digest(name),))
        return _job(rows[0]) if rows else None

    def all(self) -> list[Job]:
        """All jobs, the latest first."""
        return [_job(row) for row in self._execute("SELECT * FROM jobs ORDER BY created DESC")]

    def of_scan(self, original: Job) -> list[Job]:
        """The corrections of a segmentation, and its repetitions with other models, the latest first."""
        return [job for job in self.all() if job.request.original == original.id]

    def waiting_before(self, job: Job) -> int:
        """Number of jobs that will run before this one."""
        rows = self._execute(
            "SELECT COUNT(*) FROM jobs WHERE state = 'running' OR (state IN ('arrived', 'checking', 'queued') "
            "AND kind != 'correction' AND created < ?)",
            (job.created,),
        )
        return int(rows[0][0])

    def tidy(self) -> None:
        """Delete jobs that ended more than `keep_hours` ago, and folders that belong to no job."""
        before = time.time() - 3600.0 * self._limits.keep_hours
        for row in self._execute("SELECT id FROM jobs WHERE ended < ?", (before,)):
            self.remove(row["id"])
        with self._lock:  # so that no job is added between the two listings
            folders = [path for path in self._folder.iterdir() if path.is_dir()]
            known = {row["id"] for row in self._database.execute("SELECT id FROM jobs")}
        for folder in folders:
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def _execute(self, statement: str, values: tuple[Any, ...] = (), changes: bool = False) -> Any:
        """Rows that a statement returns, or with `changes` the number of rows that it changed."""
        with self._lock:
            cursor = self._database.execute(statement, values)
            rows = cursor.fetchall()
            return cursor.rowcount if changes else rows


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _job(row: sqlite3.Row) -> Job:
    fields = dict(row)
    del fields["kind"]
    request, outcome = (json.loads(fields.pop(name)) for name in ("request", "outcome"))
    if outcome:
        outcome["files"] = tuple(ResultFile(**file) for file in outcome["files"])
        outcome |= {name: tuple(outcome[name]) for name in ("warnings", "shape", "spacing_mm")}
    return Job(
        **fields,
        request=JobRequest(**request),
        outcome=JobOutcome(**outcome) if outcome else JobOutcome(state=fields["state"]),
    )
