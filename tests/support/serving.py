"""What tests of the server share: where it is, what it refuses, and jobs awaited."""

import gzip
import io
import time
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from fastapi.testclient import TestClient

HERE = "http://127.0.0.1:8000"
TOKEN = "a-token-of-some-length"
STUDY_UID, SERIES_UID = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.1.2"


def finished(client: TestClient, identity: str) -> dict[str, Any]:
    """The job when it has ended."""
    for _ in range(1200):
        job: dict[str, Any] = client.get(f"/api/jobs/{identity}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.1)
    raise AssertionError(f"job {identity} does not end")


def bad_uploads(scan: Path) -> dict[str, tuple[bytes, str]]:
    """Uploads that are no CT, and a word of the reason."""
    image = nib.load(scan)
    values = np.asanyarray(image.dataobj)

    def nifti(array: Any) -> bytes:
        return gzip.compress(nib.Nifti1Image(array, image.affine).to_bytes())

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("../../evil.dcm", b"x")
    return {
        "rescaled": (nifti(((values + 1024) / 4096).astype(np.float32)), "rescaled"),
        "empty": (nifti(np.zeros_like(values)), "every voxel is 0"),
        "one slice": (nifti(values[:, :, :1]), "3 or more slices"),
        "cut short": (scan.read_bytes()[:5000], "unpacked"),
        "traversal": (archive.getvalue(), "leaves the folder"),
        "bomb": (nifti(np.zeros((512, 512, 80), np.int16)), "claims 512 x 512 x 80"),
    }
