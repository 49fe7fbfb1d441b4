"""Every request that the plugins of 3D Slicer and OHIF 3 send, as their clients send it, and what they do with answers.

Replayed by hand from MONAILabelClient (Python) and MonaiLabelClient (JavaScript) of MONAI Label at commit 058ddfc.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import httpx
import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient

from meddelinea.io.volumes import read_volume
from meddelinea.scan import Scan
from meddelinea.serving.app import create_app
from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.dispatcher import Dispatcher
from meddelinea.volume import Volume
from support.serving import HERE, SERIES_UID, finished

NAME = "5: Abdomen 1.5 / Doe^Jane"  # of a volume in Slicer, which may be a patient's
LIMIT = "----------lImIt_of_THE_fIle_eW_$"


def slicer(client: TestClient, method: str, selector: str, fields: dict[str, Any], **files: Path) -> httpx.Response:
    """A request of Slicer's client with a form: its own encoding, with whole paths as names of files."""
    parts = [
        f'--{LIMIT}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{json.dumps(value)}\r\n'.encode()
        for name, value in fields.items()
    ]
    for name, path in files.items():
        head = f'--{LIMIT}\r\nContent-Disposition: form-data; name="{name}"; filename="{path}"\r\n'
        parts.append(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + path.read_bytes() + b"\r\n")
    body = b"".join(parts) + f"--{LIMIT}--\r\n\r\n".encode()
    headers = {"content-type": f"multipart/form-data; boundary={LIMIT}", "content-length": str(len(body))}
    return client.request(method, selector, content=body, headers=headers)


@pytest.fixture(scope="module")
def image(client: TestClient, scan: Path) -> dict[str, Any]:
    """The scan as Slicer's *Upload Volume* sends it, segmented; its job."""
    selector = f"/datastore/?image={quote_plus(NAME)}"
    reply = slicer(client, "PUT", selector, {"params": {"client_id": "user-xyz"}}, file=scan)
    assert reply.status_code == 200
    return finished(client, reply.json()["image"])


def test_slicer_uploads_a_volume_segments_it_and_submits_a_label(
    client: TestClient, image: dict[str, Any], expected: Volume, tmp_path: Path
) -> None:
    assert image["state"] == "done"
    reply = slicer(client, "POST", f"/infer/small?image={quote_plus(NAME)}", {"params": {"client_id": "user-xyz"}})
    assert reply.status_code == 200
    assert "label_names" in reply.text

    # The plugin exports its segments in their order, and numbers them.
    organs = client.get("/info/").json()["labels"]
    changed = expected.array.copy()
    changed[:4, :4, :4] = organs.index("liver") + 1
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(changed, expected.affine), label)
    info = [{"name": name, "idx": number} for number, name in enumerate(organs, start=1)]
    params = {"label_info": info, "model": "small", "client_id": "user-xyz"}
    reply = slicer(client, "PUT", f"/datastore/label?image={quote_plus(NAME)}", {"params": params}, label=label)
    assert reply.status_code == 200, reply.text
    correction = client.get(f"/api/jobs/{reply.json()['label']}").json()
    assert (correction["state"], correction["kind"], correction["parent"]) == ("done", "correction", image["id"])
    assert correction["changes"]["liver"]["added_voxels"] > 0

    # Both masks are there, under their tags, as Slicer's reviewer and its next sample read them.
    known = client.get("/datastore/?output=all").json()["objects"][image["id"]]
    assert set(known["labels"]) == {"original", "final"}
    assert known["image"]["info"]["name"] == f"{image['id']}.nii"
    assert known["labels"]["original"]["info"]["params"]["label_names"]["liver"] == organs.index("liver") + 1
    for tag, array in (("original", expected.array), ("final", changed)):
        reply = client.get(f"/datastore/label?label={quote_plus(NAME)}&tag={tag}")
        assert reply.headers["content-disposition"] == 'attachment; filename="mask.nii.gz"'
        (tmp_path / f"{tag}.nii.gz").write_bytes(reply.content)
        assert np.array_equal(read_volume(tmp_path / f"{tag}.nii.gz").array, array)
    reply = client.get(f"/datastore/image?image={image['id']}")
    assert nib.Nifti1Image.from_bytes(reply.content).shape == expected.shape
    assert client.get("/info/").json()["datastore"]["completed"] == 1
    scores = client.post("/scoring/dice", json={"client_id": "user-xyz"}).json()["result"]["dice"]
    assert scores[image["id"]]["liver"] == correction["changes"]["liver"]["dice"]

    # Deleted by somebody, it is no corrected scan any more.
    assert len(client.get("/api/datasets").json()[0]["cases"]) == 1
    assert client.delete(f"/datastore/label?id={image['id']}&tag=original").status_code == 404
    assert client.delete(f"/datastore/label?id={image['id']}&tag=final").status_code == 200
    assert client.get("/api/datasets").json()[0]["cases"] == []
    assert client.get(f"/datastore/label?label={quote_plus(NAME)}&tag=final").status_code == 404


def test_ohif_submits_bare_voxels_of_a_series(client: TestClient, series: Path, tmp_path: Path) -> None:
    params = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    params |= {"restore_label_idx": False}
    form = {"params": (None, json.dumps(params))}
    reply = client.post(f"/infer/small?image={SERIES_UID}&output=image", files=form)
    voxels = np.frombuffer(reply.content.partition(b"\n\n")[2], np.uint8).copy()
    voxels[:50] = 6
    labels = [
        {"name": name, "idx": index} for name, index in client.get("/info/").json()["models"]["small"]["labels"].items()
    ]
    sent = {"params": (None, json.dumps({"label_info": labels})), "label": ("label.bin", voxels.tobytes())}
    reply = client.put(f"/datastore/label?image={SERIES_UID}", files=sent)
    assert reply.status_code == 200, reply.text
    job = client.get(f"/api/jobs/{reply.json()['label']}").json()
    assert "dicom_seg" in [file["kind"] for file in job["files"]]
    again = client.get(f"/api/jobs/{job['id']}/files/mask.nii.gz")
    (tmp_path / "mask.nii.gz").write_bytes(again.content)
    mask = read_volume(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.bincount(mask.array.ravel(), minlength=20), np.bincount(voxels, minlength=20))


def test_the_next_sample_is_the_one_that_the_model_trusts_least(client: TestClient, image: dict[str, Any]) -> None:
    jobs = [job for job in client.get("/api/jobs?kind=segmentation").json() if job["state"] == "done"]
    reviewed = {job["parent"] for job in client.get("/api/jobs?kind=correction").json() if job["state"] == "done"}
    open_ones = [job for job in jobs if job["id"] not in reviewed]
    sample = client.post("/activelearning/least_confident", json={"client_id": "user-xyz"}).json()
    expected = [-1.0 if job["expected_dice"] is None else job["expected_dice"] for job in open_ones]
    assert (-1.0 if sample["expected_dice"] is None else sample["expected_dice"]) == min(expected)
    assert client.get(f"/datastore/image?image={quote_plus(sample['id'])}").status_code == 200
    assert "id" in client.post("/activelearning/random", json={}).json()
    assert client.post("/activelearning/other", json={}).status_code == 404


def test_a_correction_by_the_page_names_its_author_s_words_and_is_refused_with_a_reason(
    client: TestClient, image: dict[str, Any], expected: Volume
) -> None:
    content = gzip.compress(nib.Nifti1Image(expected.array, expected.affine).to_bytes())
    where = f"/api/jobs/{image['id']}/corrections"
    reply = client.post(where, files={"mask": ("m", content)}, data={"comment": "as it was", "labels": ""})
    assert reply.status_code == 201, reply.text
    job = finished(client, reply.json()["id"])
    assert (job["state"], job["comment"]) == ("done", "as it was")
    assert {change["added_voxels"] + change["removed_voxels"] for change in job["changes"].values()} == {0}
    small = gzip.compress(nib.Nifti1Image(expected.array[:, :, :4], np.eye(4)).to_bytes())
    job = finished(client, client.post(where, files={"mask": ("m", small)}).json()["id"])
    assert job["state"] == "refused"
    assert "grid of its scan" in job["message"]
    assert client.post(where, files={"mask": ("m", b"GIF89a")}).status_code == 415
    assert client.post(where, files={"mask": ("m", content)}, data={"labels": "{"}).status_code == 422
    assert client.post(where, files={"mask": ("m", content)}, data={"labels": '{"liver": -1}'}).status_code == 422
    assert client.post(f"/api/jobs/{'0' * 32}/corrections", files={"mask": ("m", content)}).status_code == 404


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A server whose jobs stay in the queue."""
    for method in ("start", "stop"):
        monkeypatch.setattr(Dispatcher, method, lambda self: None)
    with TestClient(create_app(tmp_path), base_url=HERE) as client:
        yield client


def test_training_is_started_watched_and_stopped_by_both_plugins(idle: TestClient, tmp_path: Path) -> None:
    for route in ("/train/small", "/api/learnings"):
        assert idle.post(route, json={}).status_code == 409  # nothing has been corrected
    scan = Scan(volume=Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), modality="CT")
    mask = Volume(np.ones((3, 4, 5), np.uint8), np.eye(4))
    CorrectedScans(tmp_path / "corrected").add(scan, mask, {"liver": 1}, fingerprint="a" * 64, job="1" * 32)
    assert idle.get("/train/?check_if_running=true").status_code == 404
    assert idle.get("/train/").status_code == 404
    assert list(idle.get("/info/").json()["trainers"]) == ["small"]

    # Slicer: one model, with the settings of its table.
    task = idle.post("/train/small", json={"steps": 30, "client_id": "user-xyz"}).json()
    assert task["status"] == "RUNNING"
    assert idle.get("/train/?check_if_running=true").json()["id"] == task["id"]
    assert idle.get("/info/").json()["train_stats"]["small"]["epoch"] == 0
    assert idle.post("/train/small", json={}).status_code == 429
    stopped = idle.delete("/train/").json()
    assert stopped["status"] == "STOPPED"
    assert stopped["details"][-1]
    assert idle.delete("/train/").status_code == 404

    # OHIF: all models, and the state of the last training.
    started = idle.post("/train/", json={}).json()["small"]["result"]
    assert idle.get("/train/?check_if_running=true").json()["status"] == "RUNNING"
    assert len(idle.get("/train/?all=true").json()) == 2
    assert idle.get(f"/api/jobs/{started['id']}").json()["kind"] == "learning"
    assert idle.get("/api/jobs").json() == []
    assert idle.delete("/train/").status_code == 200

    assert idle.post("/train/other", json={}).status_code == 404
    assert idle.post("/train/small", json={"steps": 0}).status_code == 422
    assert idle.post("/api/learnings?dataset=..").status_code == 404
    assert idle.delete("/api/models/small").status_code == 404
    assert idle.get("/logs/").status_code == 200
    assert idle.post("/activelearning/random", json={}).json() == {}
