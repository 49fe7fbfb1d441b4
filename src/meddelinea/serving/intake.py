"""The way from the bytes of a request to a job in the queue."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import AsyncIterable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool

from meddelinea.errors import InputRefusedError
from meddelinea.serving.job import Job, JobRequest
from meddelinea.serving.jobs import JobStore, QueueFullError
from meddelinea.serving.limits import Limits
from meddelinea.serving.uploads import recognise

#: Kinds of files that a corrected mask comes in.
MASK_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha")


class Intake:
    """Makes jobs of uploads. An upload that is refused or interrupted leaves nothing behind.

    Parameters
    ----------
    store
        Store of the jobs.
    limits
        Only `upload_bytes` is used: no upload is accepted without disk space for it and its results.
    """

    def __init__(self, store: JobStore, limits: Limits) -> None:
        self._store, self._limits = store, limits

    async def stream(self, body: AsyncIterable[bytes], request: JobRequest) -> Job:
        """Make a job of the chunks of a file."""
        job = self._begin(request)
        try:
            with self._store.upload_of(job).open("wb") as target:
                async for chunk in body:
                    await run_in_threadpool(target.write, chunk)
            return await run_in_threadpool(self._submit, job)
        except BaseException:  # also if the sender disconnects
            self._store.remove(job.id)
            raise

    def file(self, source: IO[bytes], request: JobRequest) -> Job:
        """Make a job of a file."""
        job = self._begin(request)
        try:
            with self._store.upload_of(job).open("wb") as target:
                shutil.copyfileobj(source, target)
            return self._submit(job)
        except BaseException:
            self._store.remove(job.id)
            raise

    def series(self, slices: Iterable[IO[bytes]], request: JobRequest) -> Job:
        """Make a job of the files of a DICOM series, packed into a zip."""
        job = self._begin(request)
        try:
            with zipfile.ZipFile(self._store.upload_of(job), "w", zipfile.ZIP_STORED) as archive:
                for number, source in enumerate(slices):
                    with archive.open(f"{number:06d}.dcm", "w") as member:
                        shutil.copyfileobj(source, member)
            return self._submit(job)
        except BaseException:
            self._store.remove(job.id)
            raise

    def correction(self, parent: Job, mask: IO[bytes], request: JobRequest, raw_suffix: str | None = None) -> Job:
        """Make a job of a mask that a person has corrected.

        Parameters
        ----------
        parent
            The job whose mask was corrected.
        mask
            The corrected mask.
        request
            What its author says; whose correction it is, is added here.
        raw_suffix
            Ending that says how to read a mask that is voxels alone; None for one that says it by itself.
        """
        if parent.state != "done" or parent.request.kind == "learning":
            raise HTTPException(409, "there is no mask to correct: the job is not done")
        request = replace(
            request,
            kind="correction",
            model=parent.request.model,
            modality=parent.outcome.modality,
            parent=parent.id,
            original=parent.request.original or parent.id,
        )
        job = self._begin(request)
        try:
            folder = self._store.folder_of(job)
            sent = folder / "correction."
            with sent.open("wb") as target:
                shutil.copyfileobj(mask, target)
            suffix = raw_suffix or _recognised(sent)
            if raw_suffix is None and suffix not in MASK_SUFFIXES:
                raise HTTPException(415, f"a mask is expected as {', '.join(MASK_SUFFIXES)}; convert it")
            sent.rename(folder / f"correction{suffix}")
            self._share_scan(parent, job)
            return self._submitted(job, parent.suffix)
        except BaseException:
            self._store.remove(job.id)
            raise

    def again(self, job: Job, request: JobRequest) -> Job:
        """Make a job of the scan of another one, to segment it with another model."""
        made = self._begin(replace(request, modality=job.request.modality, original=job.request.original or job.id))
        try:
            self._share_scan(job, made)
            return self._submitted(made, job.suffix)
        except BaseException:
            self._store.remove(made.id)
            raise

    def learning(self, request: JobRequest) -> Job:
        """Make a job of learning from corrected scans."""
        job = self._begin(replace(request, kind="learning"))
        self._store.submit(job.id, "")
        return self._found(job)

    def _begin(self, request: JobRequest) -> Job:
        try:
            job = self._store.receive(request)
        except QueueFullError as error:
            raise HTTPException(503, str(error), {"Retry-After": "60"}) from error
        if shutil.disk_usage(self._store.folder_of(job)).free < 4 * self._limits.upload_bytes:
            self._store.remove(job.id)
            raise HTTPException(
                507, "the disk of the server is nearly full; delete jobs, or ask its operator for space"
            )
        return job

    def _submit(self, job: Job) -> Job:
        path = self._store.upload_of(job)
        suffix = _recognised(path)
        path.rename(path.with_name(path.name + suffix))
        return self._submitted(job, suffix)

    def _share_scan(self, job: Job, made: Job) -> None:
        """Give a job the scan of another one: the same file, which outlives the deletion of that one."""
        try:
            os.link(self._store.upload_of(job), self._store.folder_of(made) / f"upload{job.suffix}")
        except FileNotFoundError as error:  # of a job that ended without a result nothing is kept
            raise HTTPException(404, "the scan is no longer here; upload it again") from error

    def _submitted(self, job: Job, suffix: str) -> Job:
        self._store.submit(job.id, suffix, "arrived")
        return self._found(job)

    def _found(self, job: Job) -> Job:
        submitted = self._store.get(job.id)
        if submitted is None:
            raise HTTPException(410, "the job was deleted while it was being uploaded")
        return submitted


def _recognised(path: Path) -> str:
    try:
        return recognise(path)
    except InputRefusedError as error:
        raise HTTPException(415, str(error)) from error
