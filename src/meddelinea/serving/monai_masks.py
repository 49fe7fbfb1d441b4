"""Masks as MONAI Label's clients read them: 3D Slicer with names in the order of the ids, OHIF as an unpacked NRRD."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from fastapi import HTTPException
from fastapi.responses import FileResponse, Response

from meddelinea.io.nrrd import MaskType, uncompressed_nrrd
from meddelinea.io.volumes import read_volume
from meddelinea.labels import LabelIds
from meddelinea.serving.correcting import dicom_order
from meddelinea.serving.job import Job


def mask_type(params: Mapping[str, Any]) -> MaskType:
    """How a client wants the ids of a NRRD to be stored: OHIF 3 in 8 bits, OHIF 2 in 16."""
    wanted = params.get("result_dtype", "uint16")
    if wanted not in get_args(MaskType):
        raise HTTPException(422, f"unsupported result_dtype; expected {' or '.join(get_args(MaskType))}")
    return cast(MaskType, wanted)


def dicom_seg(folder: Path, job: Job) -> Response:
    """The DICOM-SEG of a job."""
    for file in job.outcome.files:
        if file.kind == "dicom_seg":
            return FileResponse(folder / file.name, media_type="application/dicom", filename=file.name)
    raise HTTPException(406, "only a DICOM series with its identifiers gives a DICOM-SEG; expected all, image or json")


def mask_and_params(folder: Path, suffix: str, dtype: MaskType) -> tuple[dict[str, Any], bytes]:
    """The parameters that are sent with a mask, and the mask as a file.

    Slicer's plugin names the segments of a mask by their order, so only organs that were found are listed. OHIF's
    plugin reads an uncompressed NRRD, with the rows from top to bottom as in DICOM.
    """
    labels = LabelIds.read(folder / "mask.json").one_each()
    mask = read_volume(folder / "mask.nii.gz")
    if suffix == ".nrrd":
        mask = mask.reorient(dicom_order(mask.orientation))
    centres = {}
    for name, index in labels.items():
        where = np.nonzero(mask.array == index)
        if where[0].size:
            centres[name] = [str(index), *(str(round(float(axis.mean()))) for axis in where)]
    params = {"label_names": {name: labels[name] for name in centres}, "centroids": centres}
    if suffix != ".nrrd":
        return params, (folder / "mask.nii.gz").read_bytes()
    return params, uncompressed_nrrd(mask, dtype)


def multipart(params: bytes, name: str, content: bytes) -> Response:
    """A reply with two parts: the field `params` and the file `image`."""
    boundary = secrets.token_hex(16)
    begin = f"--{boundary}\r\nContent-Disposition: form-data; name="
    body = b"".join(
        (
            f'{begin}"params"\r\nContent-Type: application/json\r\n\r\n'.encode(),
            params,
            f'\r\n{begin}"image"; filename="{name}"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode(),
            content,
            f"\r\n--{boundary}--\r\n".encode(),
        )
    )
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
