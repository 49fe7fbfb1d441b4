"""The way from the bytes of a request to a job in the queue."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import AsyncIterable, Iterable
from typing import IO

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool

from meddelinea.errors import InputRefusedError
from meddelinea.scan import Modality
from meddelinea.serving.jobs import Job, JobStore, QueueFullError
from meddelinea.serving.limits import Limits
from meddelinea.serving.uploads import recognise


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

    async def stream(self, body: AsyncIterable[bytes], modality: Modality | None) -> Job:
        """Make a job of the chunks of a file."""
        job = self._begin(modality)
        try:
            with self._store.upload_of(job).open("wb") as target:
                async for chunk in body:
                    await run_in_threadpool(target.write, chunk)
            return await run_in_threadpool(self._submit, job)
        except BaseException:  # also if the sender disconnects
            self._store.remove(job.id)
            raise

    def file(self, source: IO[bytes], modality: Modality | None) -> Job:
        """Make a job of a file."""
        job = self._begin(modality)
        try:
            with self._store.upload_of(job).open("wb") as target:
                shutil.copyfileobj(source, target)
            return self._submit(job)
        except BaseException:
            self._store.remove(job.id)
            raise

    def series(self, slices: Iterable[IO[bytes]], modality: Modality | None) -> Job:
        """Make a job of the files of a DICOM series, packed into a zip."""
        job = self._begin(modality)
        try:
            with zipfile.ZipFile(self._store.upload_of(job), "w", zipfile.ZIP_STORED) as archive:
                for number, source in enumerate(slices):
                    with archive.open(f"{number:06d}.dcm", "w") as member:
                        shutil.copyfileobj(source, member)
            return self._submit(job)
        except BaseException:
            self._store.remove(job.id)
            raise

    def _begin(self, modality: Modality | None) -> Job:
        try:
            job = self._store.receive(modality)
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
        try:
            suffix = recognise(path)
        except InputRefusedError as error:
            raise HTTPException(415, str(error)) from error
        path.rename(path.with_name(path.name + suffix))
        self._store.submit(job.id, suffix)
        submitted = self._store.get(job.id)
        if submitted is None:
            raise HTTPException(410, "the job was deleted while it was being uploaded")
        return submitted
