"""Jobs as MONAI Label's clients know them: images that they name, and forms that carry files and parameters."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from meddelinea.serving.intake import Intake
from meddelinea.serving.job import ENDED, Job, JobRequest
from meddelinea.serving.jobs import JobStore

#: Seconds between two looks at the state of a job.
POLL_SECONDS = 0.1
#: Maximum size of a form field that is not a file.
FIELD_BYTES = 1 << 16


def find_image(store: JobStore, image: str) -> Job:
    """The job of an image, by its id or by the name that its client gave it."""
    job = store.get(image) or store.named(image)
    if job is None:
        raise HTTPException(404, "no such image or session; upload it again")
    return job


async def ended(store: JobStore, job: Job) -> Job:
    """A job once it is done; where it ends otherwise, the reason is the answer."""
    while job.state not in ENDED:
        await asyncio.sleep(POLL_SECONDS)
        job = find_image(store, job.id)
    if job.state != "done":
        raise HTTPException(422 if job.state == "refused" else 500, job.outcome.message or job.state)
    return job


async def take(intake: Intake, form: FormData, field: str, request: JobRequest) -> Job:
    """Make a job of the files of a form, whatever their names."""
    uploads = [value for value in form.getlist(field) if isinstance(value, UploadFile)]
    if not uploads:
        raise HTTPException(422, f"the form has no file in the field {field!r}")
    if len(uploads) == 1:
        return await run_in_threadpool(intake.file, uploads[0].file, request)
    return await run_in_threadpool(intake.series, [upload.file for upload in uploads], request)


def params_of(form: FormData) -> dict[str, Any]:
    """The field `params` of a request: a JSON object."""
    try:
        params = json.loads(str(form.get("params") or "{}"))
    except (ValueError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise HTTPException(422, "the form's field 'params' is not a JSON object")
    return params
