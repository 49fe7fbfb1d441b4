"""The web application: the page, its jobs, and the protocol of MONAI Label, on one server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from python_multipart.exceptions import FormParserError

from meddelinea.io.volumes import read_volume
from meddelinea.labels import LabelIds, colour_of
from meddelinea.results.surfaces import glb, organ_surfaces
from meddelinea.scan import Modality
from meddelinea.segmentation.model import ModelFiles, read_model_files
from meddelinea.serving.comparison import compare_masks
from meddelinea.serving.dispatcher import Dispatcher
from meddelinea.serving.guard import Access, Guard
from meddelinea.serving.intake import Intake
from meddelinea.serving.jobs import Job, JobStore
from meddelinea.serving.limits import Limits
from meddelinea.serving.monai_label import monai_label_routes
from meddelinea.serving.worker import Worker
from meddelinea.version import __version__
from meddelinea.volume import Volume

STATIC = Path(__file__).parent / "static"

Identity = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{32}$")]


def create_app(
    folder: Path,
    model: str = "small",
    device: str = "auto",
    access: Access | None = None,
    limits: Limits | None = None,
    dicomweb: str | None = None,
) -> Guard:
    """Make the application for an ASGI server. Jobs run from its start-up to its shutdown.

    Parameters
    ----------
    folder
        Folder for the jobs.
    model, device
        Model to segment with and where it runs; see `load_model`.
    access
        Who may send requests; by default, the users of this computer.
    limits
        Limits on uploads, jobs and the queue.
    dicomweb
        Address of a DICOMweb service from which clients of MONAI Label may request series.

    Raises
    ------
    WeightsMissingError
        If there is no such model.
    UsageError
        If the folder cannot be used.
    """
    access, limits = access or Access(), limits or Limits()
    described = read_model_files(model)
    store = JobStore(folder, limits)
    dispatcher = Dispatcher(store, Worker(described.name if described.on_hub else model, device, limits), limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        dispatcher.start()
        yield
        dispatcher.stop()
        store.close()

    # The interactive documentation of FastAPI is loaded from other sites, which this page's policy forbids.
    app = FastAPI(title="MedDelinea", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    intake = Intake(store, limits)
    app.include_router(_job_routes(store, intake, described, limits))
    app.include_router(monai_label_routes(store, intake, described, access, limits, dicomweb))
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.exception_handler(FormParserError)  # which older versions of starlette let through
    def unreadable_form(request: Request, error: FormParserError) -> Response:
        return JSONResponse({"detail": "a form that cannot be read; expected multipart/form-data with a boundary"}, 400)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    return Guard(app, access, limits)


def _job_routes(store: JobStore, intake: Intake, described: ModelFiles, limits: Limits) -> APIRouter:
    """The routes that the page uses."""
    routes = APIRouter(prefix="/api")

    def find(identity: str) -> Job:
        job = store.get(identity)
        if job is None:
            raise HTTPException(404, "no such job; finished jobs are deleted after some time")
        return job

    @routes.get("/info")
    def info() -> dict[str, Any]:
        return {
            "version": __version__,
            "model": described.name,
            "modalities": described.modalities,
            "organs": [
                {"name": name, "id": index, "colour": colour_of(name)} for name, index in described.labels.items()
            ],
            "upload_bytes": limits.upload_bytes,
            "keep_hours": limits.keep_hours,
        }

    @routes.post("/jobs", status_code=201)
    async def submit(request: Request, modality: Modality | None = None) -> dict[str, Any]:
        return _document(store, await intake.stream(request.stream(), modality))

    @routes.get("/jobs")
    def jobs() -> list[dict[str, Any]]:
        return [_document(store, job) for job in store.all() if job.state != "receiving"]

    @routes.get("/jobs/{identity}")
    def job(identity: Identity) -> dict[str, Any]:
        return _document(store, find(identity))

    @routes.post("/jobs/{identity}/cancel")
    def cancel(identity: Identity) -> dict[str, Any]:
        store.cancel(find(identity).id)
        return _document(store, find(identity))

    @routes.delete("/jobs/{identity}", status_code=204)
    def remove(identity: Identity) -> Response:
        store.remove(find(identity).id)
        return Response(status_code=204)

    @routes.get("/jobs/{identity}/files/{name}")
    def download(identity: Identity, name: str) -> FileResponse:
        job = find(identity)
        for file in job.outcome.files:  # the name is only compared, never part of a path
            if file.name == name:
                return FileResponse(store.folder_of(job) / file.name, filename=file.name)
        raise HTTPException(404, "the job has no such result")

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


def _document(store: JobStore, job: Job) -> dict[str, Any]:
    """A job as JSON."""
    return {
        "id": job.id,
        "state": job.state,
        "created": job.created,
        "ended": job.ended,
        "slices_done": job.slices_done,
        "slices": job.slices,
        "waiting_before": store.waiting_before(job) if job.state == "queued" else 0,
        **{name: value for name, value in asdict(job.outcome).items() if name != "state"},
    }


def _read_mask(store: JobStore, job: Job) -> tuple[Volume, dict[str, int]]:
    """The mask of a finished job, and its labels."""
    names = {file.kind: store.folder_of(job) / file.name for file in job.outcome.files}
    return read_volume(names["mask"]).reorient("RAS"), LabelIds.read(names["labels"]).one_each()
