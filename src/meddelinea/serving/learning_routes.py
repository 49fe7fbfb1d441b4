"""The routes of learning, which the page uses: corrected scans, learning from them, and the models that come of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import Response

from meddelinea.errors import InputRefusedError, WeightsMissingError
from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.intake import Intake
from meddelinea.serving.job import Job, JobRequest
from meddelinea.serving.job_routes import job_document, known_model
from meddelinea.serving.jobs import JobStore
from meddelinea.serving.models import Models

#: Maximum number of training steps that may be asked for.
MOST_STEPS = 100_000


def learning_routes(store: JobStore, intake: Intake, models: Models, kept: CorrectedScans) -> APIRouter:
    """The routes; a learning is a job, whose progress and end `/api/jobs/{id}` tells."""
    routes = APIRouter(prefix="/api")

    @routes.get("/datasets")
    def datasets() -> list[dict[str, Any]]:
        return [asdict(dataset) for dataset in kept.all()]

    @routes.post("/learnings", status_code=201)
    def learn(
        model: str = "", dataset: str = "", steps: Annotated[int, Query(ge=1, le=MOST_STEPS)] = 400
    ) -> dict[str, Any]:
        wanted = JobRequest(model=model, dataset=dataset, steps=steps)
        return job_document(store, begin_learning(intake, models, kept, wanted))

    @routes.delete("/models/{name}", status_code=204)
    def remove(name: str) -> Response:
        try:
            models.remove(name)
        except WeightsMissingError as error:
            raise HTTPException(404, str(error)) from error
        return Response(status_code=204)

    return routes


def begin_learning(intake: Intake, models: Models, kept: CorrectedScans, request: JobRequest) -> Job:
    """Queue learning with a model from a dataset; by default with the server's own from what was corrected last."""
    known = kept.all()
    if not known:
        raise HTTPException(409, "no scan has been corrected yet; correct one, and learn from it then")
    try:
        dataset = kept.path(request.dataset or known[0].name).name
    except InputRefusedError as error:
        raise HTTPException(404, str(error)) from error
    wanted = JobRequest(kind="learning", model=known_model(models, request.model), dataset=dataset, steps=request.steps)
    return intake.learning(wanted)
