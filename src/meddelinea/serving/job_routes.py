"""The routes of jobs, which the page uses: scans, the correction of masks, results and their comparison."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request, UploadFile
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from meddelinea.errors import InputRefusedError, WeightsMissingError
from meddelinea.io.volumes import read_volume
from meddelinea.labels import LabelIds, colour_of
from meddelinea.results.surfaces import glb, organ_surfaces
from meddelinea.scan import Modality
from meddelinea.segmentation.model import ModelFiles
from meddelinea.serving.comparison import compare_masks
from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.intake import Intake
from meddelinea.serving.job import THUMBNAIL, Job, JobRequest, Kind
from meddelinea.serving.jobs import JobStore
from meddelinea.serving.limits import Limits
from meddelinea.serving.models import Models
from meddelinea.version import __version__
from meddelinea.volume import Volume

Identity = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{32}$")]

#: Characters of an author's words, and of a JSON object of labels.
COMMENT_CHARACTERS, LABELS_CHARACTERS = 4000, 1 << 16


def job_routes(store: JobStore, intake: Intake, models: Models, kept: CorrectedScans, limits: Limits) -> APIRouter:
    """The routes.

    Parameters
    ----------
    store, intake
        The jobs, and the way in for new ones.
    models
        The models that a job may choose.
    kept
        The corrected scans, of which a correction that is deleted is none any more.
    limits
        What the page is told of them.
    """
    routes = APIRouter(prefix="/api")

    def find(identity: str) -> Job:
        job = store.get(identity)
        if job is None:
            raise HTTPException(404, "no such job; finished jobs are deleted after some time")
        return job

    @routes.get("/info")
    def info() -> dict[str, Any]:
        own = models.own
        return {
            "version": __version__,
            "model": own.name,
            "modalities": own.modalities,
            "organs": _organs(own),
            "models": [
                {"name": each.name, "modalities": each.modalities, "organs": _organs(each), "learnt": each is not own}
                for each in map(models.find, models.names())
            ],
            "upload_bytes": limits.upload_bytes,
            "keep_hours": limits.keep_hours,
        }

    @routes.post("/jobs", status_code=201)
    async def submit(request: Request, modality: Modality | None = None, model: str = "") -> dict[str, Any]:
        wanted = JobRequest(modality=modality, model=known_model(models, model))
        return job_document(store, await intake.stream(request.stream(), wanted))

    @routes.get("/jobs")
    def jobs(kind: Kind | None = None) -> list[dict[str, Any]]:
        shown = ("segmentation", "correction") if kind is None else (kind,)
        return [
            job_document(store, job) for job in store.all() if job.state != "receiving" and job.request.kind in shown
        ]

    @routes.get("/jobs/{identity}")
    def job(identity: Identity) -> dict[str, Any]:
        return job_document(store, find(identity))

    @routes.post("/jobs/{identity}/corrections", status_code=201)
    async def correct(
        identity: Identity,
        mask: UploadFile,
        labels: Annotated[str, Form(max_length=LABELS_CHARACTERS)] = "",
        comment: Annotated[str, Form(max_length=COMMENT_CHARACTERS)] = "",
    ) -> dict[str, Any]:
        wanted = JobRequest(labels=_labels(labels), comment=comment)
        job = await run_in_threadpool(intake.correction, find(identity), mask.file, wanted)
        return job_document(store, job)

    @routes.post("/jobs/{identity}/again", status_code=201)
    def again(identity: Identity, model: str = "") -> dict[str, Any]:
        return job_document(store, intake.again(find(identity), JobRequest(model=known_model(models, model))))

    @routes.post("/jobs/{identity}/cancel")
    def cancel(identity: Identity) -> dict[str, Any]:
        store.cancel(find(identity).id)
        return job_document(store, find(identity))

    @routes.delete("/jobs/{identity}", status_code=204)
    def remove(identity: Identity) -> Response:
        delete_job(find(identity), store, kept)
        return Response(status_code=204)

    @routes.get("/jobs/{identity}/files/{name}")
    def download(identity: Identity, name: str) -> FileResponse:
        job = find(identity)
        for file in job.outcome.files:  # the name is only compared, never part of a path
            if file.name == name:
                return FileResponse(store.folder_of(job) / file.name, filename=file.name)
        raise HTTPException(404, "the job has no such result")

    @routes.get("/jobs/{identity}/thumbnail")
    def picture(identity: Identity) -> FileResponse:
        path = store.folder_of(find(identity)) / THUMBNAIL
        if not path.is_file():
            raise HTTPException(404, "the job has no picture")
        return FileResponse(path, media_type="image/png")

    @routes.get("/jobs/{identity}/comparison/{earlier}")
    def compare(identity: Identity, earlier: Identity) -> dict[str, Any]:
        both = find(identity), find(earlier)
        if None in (both[0].outcome.scan, both[1].outcome.scan) or both[0].outcome.scan != both[1].outcome.scan:
            raise HTTPException(409, "the two jobs are not results of the same scan")
        (mask, labels), (before, labels_before) = (_read_mask(store, job) for job in both)
        if mask.array.shape != before.array.shape:
            raise HTTPException(409, "the two files store the voxels of the scan in different orders")
        return {name: asdict(change) for name, change in compare_masks(mask, labels, before, labels_before).items()}

    @routes.get("/jobs/{identity}/surfaces")
    def surfaces(identity: Identity) -> Response:
        job = find(identity)
        if job.state != "done":
            raise HTTPException(409, "the job has no mask")
        return Response(glb(organ_surfaces(*_read_mask(store, job))), media_type="model/gltf-binary")

    return routes


def known_model(models: Models, name: str) -> str:
    """The name of a model that a request asks for, once it is known to be there; the server's own for an empty name."""
    try:
        return models.find(name).name
    except WeightsMissingError as error:
        raise HTTPException(404, str(error)) from error


def delete_job(job: Job, store: JobStore, kept: CorrectedScans) -> None:
    """Delete a job because somebody wants it: its corrected scan, too, which is kept where a job ends by its age."""
    store.remove(job.id)
    if job.request.kind == "correction":
        kept.remove(job.id)


def job_document(store: JobStore, job: Job) -> dict[str, Any]:
    """A job as JSON."""
    request = job.request
    return {
        "id": job.id,
        "kind": request.kind,
        "state": "queued" if job.state in ("arrived", "checking") else job.state,
        "model": request.model,
        "parent": request.parent,
        "comment": request.comment,
        "created": job.created,
        "ended": job.ended,
        "slices_done": job.slices_done,
        "slices": job.slices,
        "stage": job.stage,
        "waiting_before": store.waiting_before(job) if job.state in ("arrived", "checking", "queued") else 0,
        **{name: value for name, value in asdict(job.outcome).items() if name != "state"},
    }


def _organs(model: ModelFiles) -> list[dict[str, Any]]:
    return [{"name": name, "id": index, "colour": colour_of(name)} for name, index in model.labels.items()]


def _labels(text: str) -> dict[str, int] | None:
    """Organ name -> id by a JSON object; None for an empty text."""
    if not text:
        return None
    try:
        return LabelIds.of(json.loads(text), "the labels").one_each()
    except (ValueError, RecursionError):
        raise HTTPException(422, "the labels are not a JSON object of organ names and ids") from None
    except InputRefusedError as error:
        raise HTTPException(422, str(error)) from error


def _read_mask(store: JobStore, job: Job) -> tuple[Volume, dict[str, int]]:
    """The mask of a finished job, and its labels."""
    names = {file.kind: store.folder_of(job) / file.name for file in job.outcome.files}
    return read_volume(names["mask"]).reorient("RAS"), LabelIds.read(names["labels"]).one_each()
