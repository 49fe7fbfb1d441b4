"""The server over its whole way: a scan in, results out, and what it refuses; with the shipped model on a small CT."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.volume import Volume
from support.serving import bad_uploads, finished


@pytest.fixture(scope="module")
def job(client: TestClient, scan: Path) -> dict[str, Any]:
    """A job that is done."""
    return finished(client, client.post("/api/jobs", content=scan.read_bytes()).json()["id"])


def test_a_scan_becomes_the_mask_that_the_command_line_makes(
    client: TestClient, job: dict[str, Any], expected: Volume, tmp_path: Path
) -> None:
    assert (job["state"], job["message"], job["modality"], job["shape"]) == ("done", "", "CT", [128, 128, 8])
    assert job["slices_done"] == job["slices"] == 8
    assert expected.array.any()
    mask = tmp_path / "mask.nii.gz"
    mask.write_bytes(client.get(f"/api/jobs/{job['id']}/files/mask.nii.gz").content)
    assert np.array_equal(read_volume(mask).array, expected.array)
    assert np.allclose(read_volume(mask).affine, expected.affine)


def test_every_result_that_is_listed_can_be_downloaded(client: TestClient, job: dict[str, Any], scan: Path) -> None:
    files = {file["kind"]: client.get(f"/api/jobs/{job['id']}/files/{file['name']}") for file in job["files"]}
    assert {kind: reply.status_code for kind, reply in files.items()} == dict.fromkeys(
        ("mask", "labels", "statistics", "report", "uncertainty", "scan"), 200
    )
    organs = files["statistics"].json()["organs"]
    labels = files["labels"].json()
    assert list(organs) == list(labels["labels"])
    assert labels["input"] == "scan"
    assert b"<!doctype html>" in files["report"].content
    assert files["report"].headers["content-disposition"] == 'attachment; filename="report.html"'
    shown = nib.Nifti1Image.from_bytes(files["scan"].content)
    assert np.array_equal(np.asanyarray(shown.dataobj), read_volume(scan).array)
    assert files["mask"].headers["content-disposition"] == 'attachment; filename="mask.nii.gz"'
    assert files["mask"].headers["cache-control"] == "no-store"


def test_the_surfaces_of_a_result_are_sent_by_organ(client: TestClient, job: dict[str, Any], expected: Volume) -> None:
    reply = client.get(f"/api/jobs/{job['id']}/surfaces")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "model/gltf-binary")
    length = int.from_bytes(reply.content[12:16], "little")
    named = {node["name"] for node in json.loads(reply.content[20 : 20 + length])["nodes"]}
    labels = client.get(f"/api/jobs/{job['id']}/files/mask.json").json()["labels"]
    assert named <= {name for name, index in labels.items() if (expected.array == index).any()}
    assert "liver" in named


def test_a_job_has_a_picture_when_it_is_done(client: TestClient, job: dict[str, Any]) -> None:
    reply = client.get(f"/api/jobs/{job['id']}/thumbnail")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png")
    picture = np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGB")).astype(int)
    assert max(picture.shape) <= 400
    assert np.ptp(picture, axis=2).max() > 30  # organs in colours
    assert client.get(f"/api/jobs/{'0' * 32}/thumbnail").status_code == 404


@pytest.mark.parametrize(
    "name", ["upload.nii.gz", "..%2F..%2Fjobs.sqlite3", "../jobs.sqlite3", "%2Fetc%2Fpasswd", "mask.nii.gz%00", "%2e"]
)
def test_no_path_of_a_request_reaches_the_disk(client: TestClient, job: dict[str, Any], name: str) -> None:
    assert client.get(f"/api/jobs/{job['id']}/files/{name}").status_code in (404, 405, 422)
    assert client.get(f"/api/jobs/{name}").status_code in (404, 422)
    assert client.get(f"/static/{name}").status_code in (404, 405)
    assert client.get(f"/session/{name}").status_code in (404, 405)
    assert client.post(f"/infer/small?session_id={name}", data={"params": "{}"}).status_code == 404


@pytest.mark.parametrize("case", ["rescaled", "empty", "one slice", "cut short", "traversal", "bomb"])
def test_bad_scans_are_refused_with_their_reason(client: TestClient, scan: Path, case: str) -> None:
    content, reason = bad_uploads(scan)[case]
    reply = client.post("/api/jobs", content=content)
    assert reply.status_code == 201
    job = finished(client, reply.json()["id"])
    assert job["state"] == "refused"
    assert reason in job["message"]
    assert job["id"] not in job["message"]
    assert job["files"] == []


def test_what_is_no_scan_is_refused_at_once(client: TestClient) -> None:
    before = len(client.get("/api/jobs").json())
    for content in (b"", b"GIF89a" + bytes(600), b"<script>"):
        reply = client.post("/api/jobs", content=content)
        assert reply.status_code == 415
        assert "detail" in reply.json()
    assert len(client.get("/api/jobs").json()) == before


@pytest.mark.parametrize("stated", [True, False])
def test_an_upload_over_the_limit_is_refused(client: TestClient, stated: bool) -> None:
    chunk = gzip.compress(bytes(10)) + bytes(1 << 20)
    content: Any = chunk * 10 if stated else (chunk for _ in range(10))
    reply = client.post("/api/jobs", content=content)
    assert reply.status_code == 413
    assert "8 MiB" in reply.json()["detail"]


def test_a_job_can_be_deleted_with_its_files(client: TestClient, scan: Path) -> None:
    identity = client.post("/api/jobs", content=scan.read_bytes()).json()["id"]
    assert client.delete(f"/api/jobs/{identity}").status_code == 204
    assert client.get(f"/api/jobs/{identity}").status_code == 404


def test_a_waiting_job_can_be_cancelled(client: TestClient, scan: Path) -> None:
    first, second = (client.post("/api/jobs", content=scan.read_bytes()).json() for _ in range(2))
    assert client.post(f"/api/jobs/{second['id']}/cancel").json()["state"] == "cancelled"
    assert finished(client, first["id"])["state"] == "done"
    assert finished(client, second["id"])["state"] == "cancelled"


def test_a_result_is_compared_with_an_earlier_one_of_the_same_scan(
    client: TestClient, job: dict[str, Any], scan: Path, tmp_path: Path
) -> None:
    other = tmp_path / "same.nrrd"
    write_volume(read_volume(scan), other)
    again = finished(client, client.post("/api/jobs", content=other.read_bytes()).json()["id"])
    assert again["scan"] == job["scan"]
    changes = client.get(f"/api/jobs/{again['id']}/comparison/{job['id']}").json()
    found = {name: change for name, change in changes.items() if change["volume_ml"]}
    assert found
    assert all(change["dice"] == 1.0 and change["volume_ml"] == change["earlier_ml"] for change in found.values())
    half = tmp_path / "other.nii"
    write_volume(Volume(read_volume(scan).array[:, :, :6], read_volume(scan).affine), half)
    different = finished(client, client.post("/api/jobs", content=half.read_bytes()).json()["id"])
    assert client.get(f"/api/jobs/{different['id']}/comparison/{job['id']}").status_code == 409


def test_an_upload_that_breaks_off_leaves_nothing(client: TestClient, scan: Path, log: io.StringIO) -> None:
    before = {job["id"] for job in client.get("/api/jobs").json()}
    messages = [
        {"type": "http.request", "body": scan.read_bytes()[:2000], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8000"), (b"content-length", b"100000")]
    scope = {"type": "http", "method": "POST", "path": "/api/jobs", "query_string": b"", "headers": headers}
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)
    assert {job["id"] for job in client.get("/api/jobs").json()} == before
    assert not [message for message in sent if message.get("status") == 201]
    assert "ClientDisconnect" not in log.getvalue()


def test_the_log_says_nothing_of_the_patient(client: TestClient, job: dict[str, Any], log: io.StringIO) -> None:
    client.post(f"/infer/small?image=Doe^Jane&session_id={job['id']}", data={"params": '{"PatientName": "Doe^Jane"}'})
    client.post("/infer/Doe^Jane", data={"params": "{"})
    text = log.getvalue()
    assert f"job {job['id']}: done" in text
    assert "Doe" not in text
    assert "1970" not in text
