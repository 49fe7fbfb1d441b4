"""The part of MONAI Label's protocol that automatic segmentation needs; plugins of 3D Slicer and OHIF use it.

A session is a job: its scan is segmented as soon as it is uploaded, and `/infer/` waits for the result and returns it.
What an image is and how its mask is corrected is in `monai_datastore`, what is learnt from that in `monai_training`.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from meddelinea.segmentation.model import ModelFiles
from meddelinea.serving.dicomweb import fetch_series, is_uid
from meddelinea.serving.guard import Access
from meddelinea.serving.intake import Intake
from meddelinea.serving.job import ENDED, Job, JobRequest
from meddelinea.serving.job_routes import known_model
from meddelinea.serving.jobs import JobStore
from meddelinea.serving.limits import Limits
from meddelinea.serving.models import Models
from meddelinea.serving.monai_datastore import datastore_status
from meddelinea.serving.monai_jobs import FIELD_BYTES, ended, find_image, params_of, take
from meddelinea.serving.monai_masks import dicom_seg, mask_and_params, mask_type, multipart
from meddelinea.serving.monai_training import SCORING, STRATEGIES, train_stats, trainers
from meddelinea.serving.uploads import ZIP_MEMBERS
from meddelinea.version import __version__


def monai_label_routes(
    store: JobStore, intake: Intake, models: Models, access: Access, limits: Limits, dicomweb: str | None
) -> APIRouter:
    """The routes of the protocol.

    Parameters
    ----------
    store, intake
        The jobs, and the way in for new ones.
    models
        The models that may segment.
    access
        Holds the token that clients get when they log in.
    limits
        Only `upload_bytes` is used.
    dicomweb
        Address of the DICOMweb service from which clients may request series; None if they must upload them.
    """
    routes = APIRouter()

    @routes.get("/info/")
    def info() -> dict[str, Any]:
        # Without the background: to OHIF its id 0 is none, so that it would take an organ's, and Slicer would make a
        # segment of it and count the organs' ids from 2 on when it sends a corrected mask.
        known = [models.find(name) for name in models.names()]
        return {
            "name": "MedDelinea",
            "description": "Organ segmentation with a controllable diffusion transformer. Not for diagnosis.",
            "version": __version__,
            "labels": list(dict.fromkeys(organ for model in known for organ in model.labels)),
            "models": {model.name: _described(model) for model in known},
            "trainers": trainers(models),
            "strategies": {name: {"description": text} for name, text in STRATEGIES.items()},
            "scoring": {name: {"description": text} for name, text in SCORING.items()},
            "train_stats": train_stats(store),
            "datastore": datastore_status(store),
        }

    @routes.get("/auth/")
    def auth() -> dict[str, Any]:
        return {"enabled": access.token is not None, "client_id": "", "realm": ""}

    @routes.post("/auth/token")
    async def log_in(request: Request) -> dict[str, Any]:
        async with request.form(max_files=0, max_fields=10) as form:
            password = str(form.get("password", ""))
        if access.token is None:
            return {"access_token": None, "token_type": None}
        if not secrets.compare_digest(password.encode(), access.token.encode()):
            raise HTTPException(401, "wrong password; expected the token of the server, with any user name")
        return {"access_token": access.token, "token_type": "Bearer"}

    @routes.get("/auth/token/valid")
    def valid() -> dict[str, Any]:
        return {"username": "user"}

    @routes.put("/session/")
    async def create_session(request: Request) -> dict[str, Any]:
        async with request.form(max_files=ZIP_MEMBERS, max_fields=10, max_part_size=FIELD_BYTES) as form:
            job = await take(intake, form, "files", JobRequest(model=models.own.name))
        return {"session_id": job.id, "session_info": _session(job)}

    @routes.get("/session/{session_id}")
    def get_session(session_id: str, image: bool = False) -> Any:
        job = find_image(store, session_id)
        if not image:
            return _session(job)
        if not store.upload_of(job).is_file():  # of a job that ended without a result nothing is kept
            raise HTTPException(404, "the session's scan is no longer here; create it again")
        return FileResponse(store.upload_of(job))

    @routes.delete("/session/{session_id}")
    def remove_session(session_id: str) -> dict[str, Any]:
        job = find_image(store, session_id)
        store.remove(job.id)
        return _session(job)

    @routes.post("/infer/{model}")
    async def infer(
        request: Request,
        model: str,
        image: str = "",
        session_id: str = "",
        output: Literal["all", "image", "json", "dicom_seg"] = "all",
    ) -> Response:
        wanted = JobRequest(model=known_model(models, model))
        async with request.form(max_files=2, max_fields=10, max_part_size=FIELD_BYTES) as form:
            params = params_of(form)
            dtype = mask_type(params)
            if isinstance(form.get("file"), UploadFile) and not session_id:
                job = await take(intake, form, "file", wanted)
            elif dicomweb is not None and not session_id and is_uid(image):
                slices = fetch_series(dicomweb, image, limits.upload_bytes)
                job = await run_in_threadpool(intake.series, slices, wanted)
                store.name(job.id, image)
            else:
                job = find_image(store, session_id or image)
                if job.request.model != wanted.model:
                    repeated = _repeated(store, job, wanted.model)
                    job = repeated if repeated is not None else await run_in_threadpool(intake.again, job, wanted)
        job = await ended(store, job)
        folder = store.folder_of(job)
        if output == "dicom_seg":
            return dicom_seg(folder, job)
        suffix = ".nrrd" if params.get("result_extension") == ".nrrd" else ".nii.gz"
        found, result = await run_in_threadpool(mask_and_params, folder, suffix, dtype)
        reply = json.dumps(found).encode()
        if output == "json":
            return Response(reply, media_type="application/json")
        if output == "image":
            headers = {"Content-Disposition": f'attachment; filename="mask{suffix}"'}
            return Response(result, media_type="application/octet-stream", headers=headers)
        return multipart(reply, f"mask{suffix}", result)

    return routes


def _repeated(store: JobStore, job: Job, model: str) -> Job | None:
    """The last segmentation of a job's scan with another model that has not failed."""
    others = (other for other in store.of_scan(job) if other.request.kind == "segmentation")
    return next((each for each in others if each.request.model == model and each.state not in ENDED[1:]), None)


def _described(model: ModelFiles) -> dict[str, Any]:
    return {
        "type": "segmentation",
        "labels": model.labels,
        "dimension": 3,
        "description": f"Segments {len(model.labels)} organs in {' and '.join(model.modalities)}",
        "config": {},
    }


def _session(job: Job) -> dict[str, Any]:
    """A session as the protocol describes it, without the server's paths."""
    return {"name": job.id, "image": job.id, "create_ts": int(job.created), "last_access_ts": int(job.created)}
