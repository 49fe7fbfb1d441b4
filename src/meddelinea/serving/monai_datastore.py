"""MONAI Label's datastore: images, the masks of models (tag `original`) and those that people corrected (tag `final`).

An image is a segmentation. A label that is sent becomes a correction of it, and the model's own mask stays as it was.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from meddelinea.labels import LabelIds
from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.correcting import RAW
from meddelinea.serving.intake import Intake
from meddelinea.serving.job import Job, JobRequest
from meddelinea.serving.job_routes import COMMENT_CHARACTERS, delete_job
from meddelinea.serving.jobs import JobStore
from meddelinea.serving.models import Models
from meddelinea.serving.monai_jobs import FIELD_BYTES, ended, find_image, params_of, take


def datastore_routes(store: JobStore, intake: Intake, models: Models, kept: CorrectedScans) -> APIRouter:
    """The routes of the datastore.

    Parameters
    ----------
    store, intake
        The jobs, and the way in for new ones.
    models
        Its own model segments the images that are uploaded.
    kept
        The corrected scans, of which a label that is deleted is none any more.
    """
    routes = APIRouter(prefix="/datastore")

    @routes.get("/")
    def datastore(output: Literal["all", "stats", "train"] = "stats") -> Any:
        if output == "stats":
            return datastore_status(store)
        if output == "train":
            corrected = corrected_images(store)
            return [{"image": job.id, "label": job.id} for job in images(store) if job.id in corrected]
        objects = {job.id: _object(store, job) for job in images(store)}
        return {"name": "MedDelinea", "description": "Scans of this server", "objects": objects}

    @routes.put("/")
    @routes.put("/image")
    async def add_image(request: Request, image: str = "") -> dict[str, str]:
        async with request.form(max_files=1, max_fields=10, max_part_size=FIELD_BYTES) as form:
            job = await take(intake, form, "file", JobRequest(model=models.own.name))
        if image:
            store.name(job.id, image)
        return {"image": job.id}

    @routes.delete("/")
    @routes.delete("/image")
    def remove_image(id: str) -> dict[str, str]:
        delete_job(find_image(store, id), store, kept)
        return {}

    @routes.head("/image", include_in_schema=False)
    @routes.get("/image")
    def image_file(image: str) -> FileResponse:
        job = find_image(store, image)
        path = store.folder_of(job) / "scan.nii"
        if not path.is_file():
            raise HTTPException(404, "the image is not read yet, or no longer here")
        return FileResponse(path, filename=f"{job.id}.nii")

    @routes.get("/image/info")
    def image_info(image: str) -> dict[str, Any]:
        return _image_info(find_image(store, image))

    @routes.put("/label")
    async def save_label(request: Request, image: str) -> dict[str, str]:
        parent = await ended(store, find_image(store, image))
        async with request.form(max_files=1, max_fields=10, max_part_size=FIELD_BYTES) as form:
            params, label = params_of(form), form.get("label")
            if not isinstance(label, UploadFile):
                raise HTTPException(422, "the form has no file in the field 'label'")
            raw = RAW if (label.filename or "").endswith(RAW) else None  # which nothing in the file says
            wanted = JobRequest(label_info=_label_info(params), comment=_comment(params))
            job = await run_in_threadpool(intake.correction, parent, label.file, wanted, raw)
        await ended(store, job)
        return {"image": parent.id, "label": job.id}

    @routes.delete("/label")
    def remove_label(id: str, tag: str = "final") -> dict[str, str]:
        delete_job(_label(id, tag, only="final"), store, kept)
        return {}

    @routes.head("/label", include_in_schema=False)
    @routes.get("/label")
    def label_file(label: str, tag: str = "final") -> FileResponse:
        return FileResponse(store.folder_of(_label(label, tag)) / "mask.nii.gz", filename="mask.nii.gz")

    @routes.get("/label/info")
    def label_info(label: str, tag: str = "final") -> dict[str, Any]:
        return _label_document(store, _label(label, tag))

    def _label(image: str, tag: str, only: str | None = None) -> Job:
        found = label_of(store, find_image(store, image), tag) if only in (None, tag) else None
        if found is None:
            raise HTTPException(404, f"the image has no such label; expected {only or 'original or final'}")
        return found

    return routes


def images(store: JobStore) -> list[Job]:
    """The segmentations that are done and whose scan came with them, the latest first."""
    return [
        job
        for job in store.all()
        if job.state == "done" and job.request.kind == "segmentation" and job.request.original is None
    ]


def corrected_images(store: JobStore) -> set[str | None]:
    """Ids of the images whose masks a person has corrected."""
    return {job.request.original for job in store.all() if job.request.kind == "correction" and job.state == "done"}


def label_of(store: JobStore, image: Job, tag: str) -> Job | None:
    """The job that holds an image's mask: `original` its own, `final` the last correction; None where there is none."""
    if tag == "original":
        return image if image.state == "done" else None
    corrections = (job for job in store.of_scan(image) if job.request.kind == "correction" and job.state == "done")
    return next(corrections, None) if tag == "final" else None


def datastore_status(store: JobStore) -> dict[str, Any]:
    """How many images there are, and how many of them a person has corrected."""
    known, corrected = images(store), corrected_images(store)
    completed = sum(job.id in corrected for job in known)
    return {
        "total": len(known), "completed": completed, "label_tags": {"original": len(known), "final": completed},
    }  # fmt: skip


def _object(store: JobStore, job: Job) -> dict[str, Any]:
    labels = {tag: label_of(store, job, tag) for tag in ("original", "final")}
    return {
        "image": {"ext": ".nii", "info": _image_info(job)},
        "labels": {
            tag: {"ext": ".nii.gz", "info": _label_document(store, label)}
            for tag, label in labels.items()
            if label is not None
        },
    }


def _image_info(job: Job) -> dict[str, Any]:
    return {"ts": int(job.created), "name": f"{job.id}.nii"}


def _label_document(store: JobStore, job: Job) -> dict[str, Any]:
    labels = LabelIds.read(store.folder_of(job) / "mask.json").one_each()
    return {
        "ts": int(job.ended or job.created),
        "name": "mask.nii.gz",
        "model": job.request.model,
        "comment": job.request.comment,
        "label_info": [{"name": name, "idx": index} for name, index in labels.items()],
        "params": {"label_names": labels},
    }


def _label_info(params: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What a client says of the ids of its mask; None where it says nothing."""
    entries = params.get("label_info") or None
    if entries is not None and not (isinstance(entries, list) and all(isinstance(each, dict) for each in entries)):
        raise HTTPException(422, 'label_info is not a list; expected [{"name": "liver", "idx": 1}, ...]')
    return entries


def _comment(params: dict[str, Any]) -> str:
    """The author's words: those that 3D Slicer's reviewer sends, or `comment`."""
    reviewed = params.get("segmentationMeta")
    comment = reviewed.get("comment") if isinstance(reviewed, dict) else params.get("comment")
    return str(comment or "")[:COMMENT_CHARACTERS]
