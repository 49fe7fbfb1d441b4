"""The web application: the page, its jobs, and the protocol of MONAI Label, on one server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from python_multipart.exceptions import FormParserError

from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.dispatcher import Dispatcher
from meddelinea.serving.guard import Access, Guard
from meddelinea.serving.intake import Intake
from meddelinea.serving.job_routes import job_routes
from meddelinea.serving.jobs import JobStore
from meddelinea.serving.learning_routes import learning_routes
from meddelinea.serving.limits import Limits
from meddelinea.serving.log import KeptLog
from meddelinea.serving.models import Models
from meddelinea.serving.monai_datastore import datastore_routes
from meddelinea.serving.monai_label import monai_label_routes
from meddelinea.serving.monai_training import training_routes
from meddelinea.serving.tasks import Tasks
from meddelinea.serving.worker import Worker
from meddelinea.version import __version__

STATIC = Path(__file__).parent / "static"


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
        Folder for the jobs, the corrected scans, and the models that learn from them.
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
    models = Models(folder / "models", model)
    store = JobStore(folder, limits)
    intake, kept = Intake(store, limits), CorrectedScans(folder / "corrected")
    tasks, log = Tasks(store, models, kept), KeptLog()
    dispatchers = (
        Dispatcher(store, Worker(device, limits), limits, takes="arrived", task_of=tasks.on_arrival),
        Dispatcher(store, Worker(device, limits), limits, takes="queued", task_of=tasks.in_queue),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with log.listening():
            for dispatcher in dispatchers:
                dispatcher.start()
            yield
            for dispatcher in dispatchers:
                dispatcher.stop()
        store.close()

    # The interactive documentation of FastAPI is loaded from other sites, which this page's policy forbids.
    app = FastAPI(title="MedDelinea", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(job_routes(store, intake, models, kept, limits))
    app.include_router(learning_routes(store, intake, models, kept))
    app.include_router(training_routes(store, intake, models, kept, log.lines))
    app.include_router(datastore_routes(store, intake, models, kept))
    app.include_router(monai_label_routes(store, intake, models, access, limits, dicomweb))
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.exception_handler(FormParserError)  # which older versions of starlette let through
    def unreadable_form(request: Request, error: FormParserError) -> Response:
        return JSONResponse({"detail": "a form that cannot be read; expected multipart/form-data with a boundary"}, 400)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    return Guard(app, access, limits)
