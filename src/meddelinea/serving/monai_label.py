"""The part of MONAI Label's protocol that automatic segmentation needs; plugins of 3D Slicer and OHIF use it.

A session is a job: its scan is segmented as soon as it is uploaded, and `/infer/` waits for the result and returns it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from meddelinea.io.nrrd import MaskType, uncompressed_nrrd
from meddelinea.io.volumes import read_volume
from meddelinea.labels import LabelIds
from meddelinea.segmentation.model import ModelFiles
from meddelinea.serving.dicomweb import fetch_series, is_uid
from meddelinea.serving.guard import Access
from meddelinea.serving.intake import Intake
from meddelinea.serving.jobs import ENDED, Job, JobStore
from meddelinea.serving.limits import Limits
from meddelinea.serving.uploads import ZIP_MEMBERS
from meddelinea.version import __version__

#: Seconds between two looks at the state of a job.
POLL_SECONDS = 0.1
#: Maximum size of a form field that is not a file.
FIELD_BYTES = 1 << 16


def monai_label_routes(
    store: JobStore, intake: Intake, described: ModelFiles, access: Access, limits: Limits, dicomweb: str | None
) -> APIRouter:
    """The routes of the protocol.

    Parameters
    ----------
    store, intake
        The jobs, and the way in for new ones.
    described
        Description of the model that segments.
    access
        Holds the token that clients get when they log in.
    limits
        Only `upload_bytes` is used.
    dicomweb
        Address of the DICOMweb service from which clients may request series; None if they must upload them.
    """
    routes = APIRouter()

    def find(identity: str) -> Job:
        job = store.get(identity)
        if job is None:
            raise HTTPException(404, "no such session; create it again")
        return job

    @routes.get("/info/")
    def info() -> dict[str, Any]:
        # Without the background: to OHIF its id 0 is none, so that it would take an organ's, and Slicer would make a
        # segment of it and count the organs' ids from 2 on when it sends a corrected mask.
        return {
            "name": "MedDelinea",
            "description": "Organ segmentation with a controllable diffusion transformer. Not for diagnosis.",
            "version": __version__,
            "labels": list(described.labels),
            "models": {
                described.name: {
                    "type": "segmentation",
                    "labels": described.labels,
                    "dimension": 3,
                    "description": f"Segments {len(described.labels)} organs in {' and '.join(described.modalities)}",
                    "config": {},
                }
            },
            "trainers": {},
            "strategies": {},
            "scoring": {},
            "train_stats": {},
            "datastore": {},
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
            job = await _take(intake, form, "files")
        return {"session_id": job.id, "session_info": _session(job)}

    @routes.get("/session/{session_id}")
    def get_session(session_id: str, image: bool = False) -> Any:
        job = find(session_id)
        if not image:
            return _session(job)
        if not store.upload_of(job).is_file():  # of a job that ended without a result nothing is kept
            raise HTTPException(404, "the session's scan is no longer here; create it again")
        return FileResponse(store.upload_of(job))

    @routes.delete("/session/{session_id}")
    def remove_session(session_id: str) -> dict[str, Any]:
        job = find(session_id)
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
        if model != described.name:
            raise HTTPException(404, f"no such model; this server has {described.name}")
        async with request.form(max_files=2, max_fields=10, max_part_size=FIELD_BYTES) as form:
            params = _params(form)
            dtype = _mask_type(params)
            if isinstance(form.get("file"), UploadFile) and not session_id:
                job = await _take(intake, form, "file")
            elif dicomweb is not None and not session_id and is_uid(image):
                slices = fetch_series(dicomweb, image, limits.upload_bytes)
                job = await run_in_threadpool(intake.series, slices, None)
            else:
                job = find(session_id or image)
        while job.state not in ENDED:
            await asyncio.sleep(POLL_SECONDS)
            job = find(job.id)
        if job.state != "done":
            raise HTTPException(422 if job.state == "refused" else 500, job.outcome.message or job.state)
        if output == "dicom_seg":
            return _dicom_seg(store.folder_of(job), job)
        suffix = ".nrrd" if params.get("result_extension") == ".nrrd" else ".nii.gz"
        found, result = await run_in_threadpool(_result, store.folder_of(job), suffix, dtype)
        reply = json.dumps(found).encode()
        if output == "json":
            return Response(reply, media_type="application/json")
        if output == "image":
            headers = {"Content-Disposition": f'attachment; filename="mask{suffix}"'}
            return Response(result, media_type="application/octet-stream", headers=headers)
        boundary = secrets.token_hex(16)
        body = _multipart(boundary, reply, f"mask{suffix}", result)
        return Response(body, media_type=f"multipart/form-data; boundary={boundary}")

    return routes


def _session(job: Job) -> dict[str, Any]:
    """A session as the protocol describes it, without the server's paths."""
    return {"name": job.id, "image": job.id, "create_ts": int(job.created), "last_access_ts": int(job.created)}


async def _take(intake: Intake, form: FormData, field: str) -> Job:
    """Make a job of the files of a form, whatever their names."""
    uploads = [value for value in form.getlist(field) if isinstance(value, UploadFile)]
    if not uploads:
        raise HTTPException(422, f"the form has no file in the field {field!r}")
    if len(uploads) == 1:
        return await run_in_threadpool(intake.file, uploads[0].file, None)
    return await run_in_threadpool(intake.series, [upload.file for upload in uploads], None)


def _params(form: FormData) -> dict[str, Any]:
    """The field `params` of a request: a JSON object."""
    try:
        params = json.loads(str(form.get("params") or "{}"))
    except (ValueError, RecursionError):
        params = None
    if not isinstance(params, dict):
        raise HTTPException(422, "the form's field 'params' is not a JSON object")
    return params


def _mask_type(params: Mapping[str, Any]) -> MaskType:
    """How a client wants the ids of a NRRD to be stored: OHIF 3 in 8 bits, OHIF 2 in 16."""
    wanted = params.get("result_dtype", "uint16")
    if wanted not in get_args(MaskType):
        raise HTTPException(422, f"unsupported result_dtype; expected {' or '.join(get_args(MaskType))}")
    return cast(MaskType, wanted)


def _dicom_seg(folder: Path, job: Job) -> Response:
    """The DICOM-SEG of a job."""
    for file in job.outcome.files:
        if file.kind == "dicom_seg":
            return FileResponse(folder / file.name, media_type="application/dicom", filename=file.name)
    raise HTTPException(406, "only a DICOM series with its identifiers gives a DICOM-SEG; expected all, image or json")


def _result(folder: Path, suffix: str, dtype: MaskType) -> tuple[dict[str, Any], bytes]:
    """The parameters that are sent with a mask, and the mask as a file.

    Slicer's plugin names the segments of a mask by their order, so only organs that were found are listed. OHIF's
    plugin reads an uncompressed NRRD, with the rows from top to bottom as in DICOM.
    """
    labels = LabelIds.read(folder / "mask.json").one_each()
    mask = read_volume(folder / "mask.nii.gz")
    if suffix == ".nrrd":
        mask = mask.reorient(_dicom_order(mask.orientation))
    centres = {}
    for name, index in labels.items():
        where = np.nonzero(mask.array == index)
        if where[0].size:
            centres[name] = [str(index), *(str(round(float(axis.mean()))) for axis in where)]
    params = {"label_names": {name: labels[name] for name in centres}, "centroids": centres}
    if suffix != ".nrrd":
        return params, (folder / "mask.nii.gz").read_bytes()
    return params, uncompressed_nrrd(mask, dtype)


def _dicom_order(orientation: str) -> str:
    """The orientation of a volume after its rows are flipped to run from top to bottom, as in DICOM."""
    opposite = {"A": "P", "P": "A", "L": "R", "R": "L", "S": "I", "I": "S"}
    return orientation[0] + opposite[orientation[1]] + orientation[2]


def _multipart(boundary: str, params: bytes, name: str, content: bytes) -> bytes:
    """A reply with two parts: the field `params` and the file `image`."""
    begin = f"--{boundary}\r\nContent-Disposition: form-data; name="
    return b"".join(
        (
            f'{begin}"params"\r\nContent-Type: application/json\r\n\r\n'.encode(),
            params,
            f'\r\n{begin}"image"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode(),
            content,
            f"\r\n--{boundary}--\r\n".encode(),
        )
    )
