"""The rest of MONAI Label's loop: which scan to look at next, learning from corrected ones, scores and the log."""

from __future__ import annotations

import random
from collections import deque
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException
from fastapi.responses import PlainTextResponse

from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.intake import Intake
from meddelinea.serving.job import ENDED, Job, JobRequest
from meddelinea.serving.jobs import JobStore
from meddelinea.serving.learning_routes import MOST_STEPS, begin_learning
from meddelinea.serving.models import Models
from meddelinea.serving.monai_datastore import corrected_images, images, label_of

#: Ways to choose the next scan, by name.
STRATEGIES = {
    "least_confident": "The scan whose organs the model expects to have found worst",
    "random": "Any scan that nobody has corrected",
}
#: What a score is.
SCORING = {"dice": "Dice of the model's mask with the corrected one, of each organ"}

Params = Annotated[dict[str, Any] | None, Body()]


def training_routes(
    store: JobStore, intake: Intake, models: Models, kept: CorrectedScans, log: deque[str]
) -> APIRouter:
    """The routes.

    Parameters
    ----------
    store, intake
        The jobs, and the way in for new ones.
    models
        The models that may learn.
    kept
        The corrected scans.
    log
        The last lines of the server's log.
    """
    routes = APIRouter()

    @routes.post("/activelearning/{strategy}")
    def next_sample(strategy: str, params: Params = None) -> dict[str, Any]:
        if strategy not in STRATEGIES:
            raise HTTPException(404, f"no such strategy; expected {' or '.join(STRATEGIES)}")
        corrected = corrected_images(store)
        waiting = [job for job in images(store) if job.id not in corrected]
        if not waiting:
            return {}
        chosen = random.choice(waiting) if strategy == "random" else min(waiting, key=_confidence)
        return {
            "id": chosen.id,
            "name": f"{chosen.id}.nii",
            "ts": int(chosen.created),
            "expected_dice": chosen.outcome.expected_dice,
        }

    @routes.get("/train/")
    def status(all: bool = False, check_if_running: bool = False) -> Any:
        learnings = [job for job in store.all() if job.request.kind == "learning"]
        if check_if_running:
            learnings = [job for job in learnings if job.state not in ENDED]
        if not learnings:
            raise HTTPException(404, "no training is running" if check_if_running else "there was no training")
        return [_task(job) for job in reversed(learnings)] if all else _task(learnings[0])

    @routes.post("/train/")
    def train_all(params: Params = None) -> dict[str, Any]:
        own = models.own.name
        given = (params or {}).get(own, params)
        task = train(own, given if isinstance(given, dict) else None)
        return {own: {"result": task, "detail": None}}

    @routes.post("/train/{model}")
    def train(model: str, params: Params = None) -> dict[str, Any]:
        if _running(store):
            raise HTTPException(429, "a training is running already; stop it, or wait for its end")
        steps = (params or {}).get("steps", 400)
        if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
            raise HTTPException(422, f"steps is no whole number from 1 to {MOST_STEPS}")
        return _task(begin_learning(intake, models, kept, JobRequest(model=model, steps=steps)))

    @routes.delete("/train/")
    def stop() -> dict[str, Any]:
        running = _running(store)
        if not running:
            raise HTTPException(404, "no training is running")
        for job in running:
            store.cancel(job.id)
        stopped = store.get(running[0].id)
        return _task(running[0] if stopped is None else stopped)

    @routes.get("/scoring/")
    def scores() -> dict[str, Any]:
        return _scores(store)

    @routes.post("/scoring/")
    @routes.post("/scoring/{method}")
    def score(method: str = "dice", params: Params = None) -> dict[str, Any]:
        if method not in SCORING:
            raise HTTPException(404, f"no such method; expected {' or '.join(SCORING)}")
        return _scores(store)

    @routes.get("/logs/")
    def logs(lines: int = 300) -> PlainTextResponse:
        return PlainTextResponse("".join(f"{line}\n" for line in list(log)[-max(1, lines) :]))

    return routes


def trainers(models: Models) -> dict[str, Any]:
    """What may be trained, and with which settings."""
    return {
        name: {"description": f"Adapts {name} to the corrected scans", "config": {"steps": 400}}
        for name in models.names()
    }


def train_stats(store: JobStore) -> dict[str, Any]:
    """How far the last learning is, by the name of its model: an epoch is a step."""
    last = next((job for job in store.all() if job.request.kind == "learning"), None)
    if last is None:
        return {}
    learnt = last.outcome.learnt or {}
    stats = {
        "epoch": last.slices_done,
        "total_epochs": max(1, last.slices),
        "start_ts": int(last.created),
        "best_metric": (learnt.get("dice") or {}).get("mean", 0),
    }
    if last.ended is not None:
        stats["total_time"] = int(last.ended - last.created)
    return {last.request.model: stats}


def _running(store: JobStore) -> list[Job]:
    return [job for job in store.all() if job.request.kind == "learning" and job.state not in ENDED]


def _confidence(job: Job) -> float:
    """Dice that the model expects of an image's organs; a scan without any is to be looked at first."""
    return -1.0 if job.outcome.expected_dice is None else job.outcome.expected_dice


def _task(job: Job) -> dict[str, Any]:
    """A learning as the protocol describes a task; clients read the last of its details in any case."""
    states = {"done": "DONE", "cancelled": "STOPPED", "refused": "ERROR", "failed": "ERROR"}
    said = job.outcome.message or job.stage or job.state
    return {
        "id": job.id,
        "model": job.request.model,
        "status": states.get(job.state, "RUNNING"),
        "start_ts": int(job.created),
        "end_ts": None if job.ended is None else int(job.ended),
        "details": [said],
        "result": job.outcome.learnt,
    }


def _scores(store: JobStore) -> dict[str, Any]:
    """Dice of each organ of each image that was corrected."""
    scored = {}
    for job in images(store):
        correction = label_of(store, job, "final")
        if correction is not None:
            scored[job.id] = {name: change["dice"] for name, change in correction.outcome.changes.items()}
    return {"status": "DONE", "details": [f"{len(scored)} corrected"], "result": {"dice": scored}}
