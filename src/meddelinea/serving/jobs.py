"""Jobs and their folders: the upload, the progress and the results. They are kept in SQLite, so that a restart of the
server loses nothing.

    receiving -> queued -> running -> done | refused | failed
                    any of these but the last three -> cancelled

Each job has a folder with its upload and its results. Its name is a random id, so that no request names a path.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from meddelinea.errors import MedDelineaError, UsageError
from meddelinea.scan import Modality
from meddelinea.serving.limits import Limits

State = Literal["receiving", "queued", "running", "done", "refused", "failed", "cancelled"]

#: States in which a job occupies a place in the queue.
WAITING = ("receiving", "queued", "running")
#: Final states.
ENDED = ("done", "refused", "failed", "cancelled")
#: How often a job is started before it is blamed for the end of the worker or the server.
MOST_ATTEMPTS = 3
#: Version of the table below, stored in the file.
SCHEMA = 1

_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    suffix TEXT NOT NULL,
    modality TEXT,
    created REAL NOT NULL,
    ended REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    slices_done INTEGER NOT NULL DEFAULT 0,
    slices INTEGER NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL DEFAULT '{}'
)
"""


class QueueFullError(MedDelineaError):
    """The queue is full."""


@dataclass(frozen=True)
class ResultFile:
    """A file that a job produced.

    Parameters
    ----------
    kind
        Kind of file, for programs: `"mask"`, `"labels"`, `"statistics"`, `"scan"`. The page offers kinds that it does
        not know for download as well.
    name
        File name in the job's folder.
    title
        Kind of file, for people.
    """

    kind: str
    name: str
    title: str


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How a job ended.

    Parameters
    ----------
    state
        `"done"`, `"refused"` (the scan is not one to segment) or `"failed"`.
    message
        The reason why the job is not done, for people; empty if it is.
    warnings
        Reasons to be careful with the result.
    scan
        Fingerprint of the voxels: the same scan has the same one in any file format.
    modality
        Modality as which the scan was segmented.
    shape, spacing_mm
        Size of the scan's grid in voxels, and the distance of its voxels in millimetres.
    files
        Files to display and to download.
    """

    state: State
    message: str = ""
    warnings: tuple[str, ...] = ()
    scan: str | None = None
    modality: str | None = None
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    files: tuple[ResultFile, ...] = ()


@dataclass(frozen=True)
class Trouble:
    """What keeps the server from a job that it may do later, such as a full disk; `message` is for people."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A scan on its way through the server. Times are in seconds since 1970."""

    id: str
    state: State
    suffix: str
    modality: Modality | None
    created: float
    ended: float | None
    attempts: int
    slices_done: int
    slices: int
    outcome: JobOutcome


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
            self._database.execute(_TABLE)
            self._database.execute(f"PRAGMA user_version = {SCHEMA}")
            self._database.execute("COMMIT")
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                f"{folder}: jobs cannot be kept here ({error}); choose another folder, or stop the server that uses it"
            ) from error
        self._recover()

    def _recover(self) -> None:
        """After a restart: delete interrupted uploads, and queue the job that was running again."""
        self._execute("DELETE FROM jobs WHERE state = 'receiving'")
        for row in self._execute("SELECT id FROM jobs WHERE state = 'running'"):
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

    def receive(self, modality: Modality | None = None) -> Job:
        """Reserve a place in the queue for an upload that is about to arrive, and make its folder.

        Raises
        ------
        QueueFullError
            If no place is free.
        """
        identity = secrets.token_hex(16)
        added = self._execute(
            "INSERT INTO jobs (id, state, suffix, modality, created) SELECT ?, 'receiving', '', ?, ? "
            "WHERE (SELECT COUNT(*) FROM jobs WHERE state IN ('receiving', 'queued', 'running')) < ?",
            (identity, modality, time.time(), self._limits.queue_length),
            changes=True,
        )
        if not added:
            raise QueueFullError(f"{self._limits.queue_length} scans are waiting already; try again in a few minutes")
        job = self.get(identity)
        assert job is not None
        self.folder_of(job).mkdir(mode=0o700)
        return job

    def submit(self, identity: str, suffix: str) -> None:
        """Queue a job whose upload is complete."""
        self._execute("UPDATE jobs SET state = 'queued', suffix = ? WHERE id = ?", (suffix, identity))

    def claim(self) -> Job | None:
        """Start the job that has waited longest, and return it; None if no job is waiting."""
        rows = self._execute(
            "UPDATE jobs SET state = 'running', attempts = attempts + 1, slices_done = 0, slices = 0 WHERE id = "
            "(SELECT id FROM jobs WHERE state = 'queued' ORDER BY created LIMIT 1) RETURNING *"
        )
        return _job(rows[0]) if rows else None

    def progress(self, identity: str, slices_done: int, slices: int) -> None:
        """Record how far a running job has come."""
        self._execute("UPDATE jobs SET slices_done = ?, slices = ? WHERE id = ?", (slices_done, slices, identity))

    def finish(self, identity: str, outcome: JobOutcome) -> None:
        """Record how a running job ended. A job that was cancelled or deleted in the meantime stays so."""
        self._execute(
            "UPDATE jobs SET state = ?, ended = ?, outcome = ? WHERE id = ? AND state = 'running'",
            (outcome.state, time.time(), json.dumps(asdict(outcome)), identity),
        )
        self.sweep(identity)

    def release(self, identity: str) -> None:
        """Queue a running job again that was interrupted on purpose; the attempt does not count."""
        self._execute(
            "UPDATE jobs SET state = 'queued', attempts = attempts - 1 WHERE id = ? AND state = 'running'", (identity,)
        )
        self.sweep(identity)

    def requeue(self, identity: str, trouble: str | None = None) -> None:
        """Queue a job again that was interrupted, or kept from its end by `trouble`; it fails at the third time."""
        changed = self._execute(
            "UPDATE jobs SET state = 'queued' WHERE id = ? AND state = 'running' AND attempts < ?",
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
        """Cancel a job that is queued or running; the files of one that is running go when its worker has let go."""
        for state in ("queued", "running"):
            cancelled = self._execute(
                "UPDATE jobs SET state = 'cancelled', ended = ? WHERE id = ? AND state = ?",
                (time.time(), identity, state),
                changes=True,
            )
            if cancelled and state == "queued":
                self.sweep(identity)

    def sweep(self, identity: str) -> None:
        """Remove the files of a job that no worker has now: all without results, all but its upload where it waits."""
        job = self.get(identity)
        if job is not None and job.state == "done":
            return
        kept = {self.upload_of(job)} if job is not None and job.state == "queued" else set()
        folder = self._folder / identity
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry in kept:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def remove(self, identity: str) -> None:
        """Delete a job and its files."""
        self._execute("DELETE FROM jobs WHERE id = ?", (identity,))
        shutil.rmtree(self._folder / identity, ignore_errors=True)

    def get(self, identity: str) -> Job | None:
        """The job with this id; None if there is none."""
        rows = self._execute("SELECT * FROM jobs WHERE id = ?", (identity,))
        return _job(rows[0]) if rows else None

    def all(self) -> list[Job]:
        """All jobs, the latest first."""
        return [_job(row) for row in self._execute("SELECT * FROM jobs ORDER BY created DESC")]

    def waiting_before(self, job: Job) -> int:
        """Number of jobs that will run before this one."""
        rows = self._execute(
            "SELECT COUNT(*) FROM jobs WHERE state = 'running' OR (state = 'queued' AND created < ?)", (job.created,)
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


def _job(row: sqlite3.Row) -> Job:
    fields = dict(row)
    outcome = json.loads(fields.pop("outcome"))
    if outcome:
        outcome["files"] = tuple(ResultFile(**file) for file in outcome["files"])
        outcome |= {name: tuple(outcome[name]) for name in ("warnings", "shape", "spacing_mm")}
    return Job(**fields, outcome=JobOutcome(**outcome) if outcome else JobOutcome(state=fields["state"]))
