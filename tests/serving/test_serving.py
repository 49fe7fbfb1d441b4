"""The server over its whole way: a scan in, results out, and what it refuses; with the shipped model on a small CT."""

import gzip
import io
import json
import logging
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (its own name)
import uvicorn
from fastapi.testclient import TestClient

from meddelinea.io.dicom_seg import read_dicom_seg
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.results.files import write_segmentation
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.serving.app import create_app
from meddelinea.serving.dicomweb import is_uid
from meddelinea.serving.guard import Access, is_loopback
from meddelinea.serving.limits import Limits
from meddelinea.volume import Volume
from support.waiting import PATIENCE

HERE = "http://127.0.0.1:8000"
TOKEN = "a-token-of-some-length"
STUDY_UID, SERIES_UID = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.1.2"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of the CT that slicerio ships, named as no file should be."""
    slicerio = pytest.importorskip("slicerio")
    whole = read_volume(Path(slicerio.__file__).parent / "data" / "CTChest4.nrrd")
    path = tmp_path_factory.mktemp("scan") / "Doe^Jane_19700101.nii.gz"
    write_volume(Volume(whole.array[:, :, :8], whole.affine), path)
    return path


@pytest.fixture(scope="module")
def expected(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """The mask as the command line makes it."""
    path = tmp_path_factory.mktemp("expected") / "mask.nii.gz"
    write_segmentation(segment(load_model("small", "cpu"), read_volume(scan)), path, scan)
    return read_volume(path)


@pytest.fixture(scope="module")
def log() -> Iterator[io.StringIO]:
    """All that is logged while the tests of this module run."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    logging.getLogger("meddelinea.serving").setLevel(logging.INFO)
    yield stream
    logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="module")
def series(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scan as a DICOM series."""
    folder = tmp_path_factory.mktemp("series")
    volume = read_volume(scan)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    i_mm, j_mm, _ = volume.spacing_mm
    for k in range(volume.array.shape[2]):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = pydicom.uid.CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = f"{SERIES_UID}.{k + 1}"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.Modality = STUDY_UID, SERIES_UID, "CT"
        slice_.FrameOfReferenceUID = f"{STUDY_UID}.9"
        slice_.PatientName, slice_.PatientBirthDate = "Doe^Jane", "19700101"
        slice_.Columns, slice_.Rows = volume.array.shape[:2]
        slice_.PixelSpacing = [f"{j_mm:.12g}", f"{i_mm:.12g}"]
        slice_.ImageOrientationPatient = [f"{x:.12g}" for x in (*(lps[:3, 0] / i_mm), *(lps[:3, 1] / j_mm))]
        slice_.ImagePositionPatient = [f"{x:.12g}" for x in lps[:3, 3] + k * lps[:3, 2]]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 1
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.RescaleSlope, slice_.RescaleIntercept = "1", "0"
        slice_.PixelData = volume.array[:, :, k].astype("<i2").tobytes(order="F")
        slice_.save_as(folder / f"{k}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture(scope="module")
def pacs(series: Path) -> Iterator[str]:
    """FAKE: a DICOMweb service that knows one series; its address."""

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = urlsplit(self.path)
            if place.path == "/web/series" and parse_qs(place.query).get("SeriesInstanceUID") == [SERIES_UID]:
                kind, body = (
                    "application/dicom+json",
                    json.dumps([{"0020000D": {"vr": "UI", "Value": [STUDY_UID]}}]).encode(),
                )
            elif place.path == "/web/series":
                kind, body = "application/dicom+json", b"[]"
            else:
                assert place.path == f"/web/studies/{STUDY_UID}/series/{SERIES_UID}"
                files = [path.read_bytes() for path in sorted(series.iterdir())]
                kind = 'multipart/related; type="application/dicom"; boundary=part'
                body = b"".join(b"--part\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
                body += b"--part--"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/web"
        server.shutdown()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, log: io.StringIO, pacs: str) -> Iterator[TestClient]:
    limits = Limits(upload_bytes=8 << 20, unpacked_bytes=32 << 20)
    app = create_app(tmp_path_factory.mktemp("jobs"), limits=limits, dicomweb=pacs)
    with TestClient(app, base_url=HERE) as client:
        yield client


@pytest.fixture(scope="module")
def job(client: TestClient, scan: Path) -> dict[str, Any]:
    """A job that is done."""
    return finished(client, client.post("/api/jobs", content=scan.read_bytes()).json()["id"])


def finished(client: TestClient, identity: str) -> dict[str, Any]:
    for _ in range(1200):
        job: dict[str, Any] = client.get(f"/api/jobs/{identity}").json()
        if job["state"] not in ("queued", "running"):
            return job
        time.sleep(0.1)
    raise AssertionError(f"job {identity} does not end")


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


@pytest.mark.parametrize(
    "name", ["upload.nii.gz", "..%2F..%2Fjobs.sqlite3", "../jobs.sqlite3", "%2Fetc%2Fpasswd", "mask.nii.gz%00", "%2e"]
)
def test_no_path_of_a_request_reaches_the_disk(client: TestClient, job: dict[str, Any], name: str) -> None:
    assert client.get(f"/api/jobs/{job['id']}/files/{name}").status_code in (404, 405, 422)
    assert client.get(f"/api/jobs/{name}").status_code in (404, 422)
    assert client.get(f"/static/{name}").status_code in (404, 405)
    assert client.get(f"/session/{name}").status_code in (404, 405)
    assert client.post(f"/infer/small?session_id={name}", data={"params": "{}"}).status_code == 404


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


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "attacker.example"}, 421),
        ({"host": "attacker.example:8000"}, 421),
        ({"host": "192.168.1.7:8000"}, 421),
        ({"host": "["}, 421),
        ({"host": "localhost:9999"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"origin": "http://attacker.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": "http://127.0.0.1:8000", "host": "127.0.0.1:8000"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_only_this_servers_own_page_may_ask(client: TestClient, headers: dict[str, str], status: int) -> None:
    reply = client.get("/api/jobs", headers=headers)
    assert reply.status_code == status
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert "script-src 'self'" in reply.headers["content-security-policy"]


def test_the_page_may_be_opened_from_a_link(client: TestClient) -> None:
    reply = client.get("/", headers={"sec-fetch-site": "cross-site"})
    assert reply.status_code == 200
    assert "<script>" not in reply.text
    assert " style=" not in reply.text
    assert "http://" not in reply.text
    assert "set-cookie" not in reply.headers


def test_a_token_is_demanded_of_all_but_the_page(tmp_path: Path) -> None:
    access = Access(("viewer.hospital",), token=TOKEN)
    with TestClient(create_app(tmp_path, access=access), base_url="https://viewer.hospital") as client:
        for path in ("/api/info", "/api/jobs", "/info/", "/session/x", "/auth/token/valid", "/openapi.json"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"authorization": f"Bearer {TOKEN}x"}).status_code == 401
            assert client.get(path, headers={"authorization": f"Basic {TOKEN}"}).status_code == 401
            assert client.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)
        assert client.post("/api/jobs", content=b"x").status_code == 401
        assert client.post("/infer/small", data={"params": "{}"}).status_code == 401
        assert client.get("/").status_code == client.get("/static/page.js").status_code == 200
        assert client.get("/auth/").json()["enabled"] is True
        assert client.post("/auth/token", data={"username": "me", "password": "guess"}).status_code == 401
        reply = client.post("/auth/token", data={"username": "me", "password": TOKEN, "grant_type": "password"}).json()
        given = {"authorization": f"{reply['token_type']} {reply['access_token']}"}
        assert client.get("/info/", headers=given).status_code == 200


def test_loopback_is_this_computer_only() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.7", "viewer.hospital", ""))


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


@pytest.fixture
def address(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A server on a real socket, set up as the command sets it up."""
    limits = Limits(upload_seconds=0.5)
    config = uvicorn.Config(
        create_app(tmp_path, limits=limits),
        host="127.0.0.1",
        port=0,
        http="h11",
        ws="none",
        h11_max_incomplete_event_size=1 << 14,
        access_log=False,
        log_config=None,
    )
    server, listening = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield listening.getsockname()
    server.should_exit = True
    thread.join()
    listening.close()


def answer(address: tuple[str, int], *parts: bytes) -> bytes:
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
        reply = b""
        while chunk := connection.recv(1 << 16):
            reply += chunk
    return reply


def test_huge_headers_and_slow_bodies_are_cut_off(address: tuple[str, int]) -> None:
    host = f"Host: 127.0.0.1:{address[1]}\r\n".encode()
    filler = b"X-Filler: " + b"a" * 60000 + b"\r\n"
    assert b" 400 " in answer(address, b"GET /api/info HTTP/1.1\r\n" + host + filler).split(b"\r\n")[0]
    begun = b"POST /api/jobs HTTP/1.1\r\n" + host + b"Content-Length: 100000\r\n\r\n"
    reply = answer(address, begun, b"\x1f\x8b")
    assert b" 408 " in reply.split(b"\r\n")[0]
    wrong = b"GET /api/info HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n"
    assert b" 4" in answer(address, wrong).split(b"\r\n")[0]


# What follows speaks to the server as MONAI Label's client does, whose forms have this boundary and these headers.

LIMIT = "----------lImIt_of_THE_fIle_eW_$"


def form(fields: dict[str, str], files: dict[str, Path]) -> tuple[bytes, dict[str, str]]:
    parts = [
        f'--{LIMIT}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()
    ]
    for key, path in files.items():
        head = f'--{LIMIT}\r\nContent-Disposition: form-data; name="{key}"; filename="{path}"\r\n'
        parts.append(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + path.read_bytes() + b"\r\n")
    body = b"".join(parts) + f"--{LIMIT}--\r\n\r\n".encode()
    return body, {"content-type": f"multipart/form-data; boundary={LIMIT}", "content-length": str(len(body))}


def parts_of(content_type: str, content: bytes) -> dict[str, tuple[str, bytes]]:
    """Field name -> (header, content) of a multipart reply."""
    boundary = content_type.partition("boundary=")[2].encode()
    found = {}
    for part in content.split(b"--" + boundary)[1:-1]:
        head, _, body = part.partition(b"\r\n\r\n")
        name = head.decode().partition('name="')[2].partition('"')[0]
        found[name] = (head.decode(), body.removesuffix(b"\r\n"))
    return found


def test_info_tells_the_models_as_plugins_expect(client: TestClient) -> None:
    info = client.get("/info/").json()
    model = info["models"]["small"]
    assert model["type"] == "segmentation"
    assert info["labels"][0] == "background"
    assert info["labels"] == [name for name, _ in sorted(model["labels"].items(), key=lambda item: item[1])]
    assert "config" not in info
    assert {"description", "config", "dimension"} <= set(model)


def test_a_session_is_inferred_for_slicer(client: TestClient, scan: Path, expected: Volume, tmp_path: Path) -> None:
    with scan.open("rb") as stream:
        reply = client.put("/session/", data={"client_id": "user-xyz"}, files=[("files", (scan.name, stream))])
    session = reply.json()["session_id"]
    assert client.get(f"/session/{session}").status_code == 200
    assert client.get(f"/session/{session}?image=true").content == scan.read_bytes()
    body, headers = form({"params": json.dumps({"client_id": "user-xyz"})}, {})
    reply = client.post(f"/infer/small?image=volume&session_id={session}", content=body, headers=headers)
    assert reply.status_code == 200
    parts = parts_of(reply.headers["content-type"], reply.content)
    assert 'filename="mask.nii.gz"' in parts["image"][0]
    (tmp_path / "mask.nii.gz").write_bytes(parts["image"][1])
    mask = read_volume(tmp_path / "mask.nii.gz")
    assert np.array_equal(mask.array, expected.array)
    names = json.loads(parts["params"][1])["label_names"]
    assert list(names.values()) == [index for index in np.unique(mask.array) if index]  # named by their order
    assert client.delete(f"/session/{session}").status_code == 200
    assert client.get(f"/session/{session}").status_code == 404


def test_a_series_of_the_pacs_is_inferred_for_ohif(
    client: TestClient, series: Path, expected: Volume, tmp_path: Path
) -> None:
    params = {"result_extension": ".nrrd", "result_dtype": "uint16", "result_compress": False}
    body, headers = form({"params": json.dumps(params)}, {})
    reply = client.post(f"/infer/small?image={SERIES_UID}&output=all", content=body, headers=headers)
    assert reply.status_code == 200
    parts = parts_of(reply.headers["content-type"], reply.content)
    assert "Content-Type: application/json" in parts["params"][0]
    assert "Content-Type: application/octet-stream" in parts["image"][0]
    assert b"\r" not in parts["image"][1].partition(b"\n\n")[0]
    (tmp_path / "mask.nrrd").write_bytes(parts["image"][1])
    mask = sitk.ReadImage(str(tmp_path / "mask.nrrd"))
    assert mask.GetPixelID() == sitk.sitkUInt16
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series)))
    scan = reader.Execute()  # columns, rows from the top and slices, as OHIF has them
    assert mask.GetSize() == scan.GetSize()
    for ours, theirs in ((mask.GetOrigin(), scan.GetOrigin()), (mask.GetDirection(), scan.GetDirection())):
        assert np.allclose(ours, theirs, atol=1e-4)
    (tmp_path / "expected.nii").write_bytes(nib.Nifti1Image(expected.array, expected.affine).to_bytes())
    reference = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "expected.nii")), scan, sitk.Transform(), sitk.sitkNearestNeighbor
    )
    array = sitk.GetArrayFromImage(mask)
    assert array.any()
    assert np.array_equal(array, sitk.GetArrayFromImage(reference))
    for index, *centre in json.loads(parts["params"][1])["centroids"].values():
        where = np.argwhere(array == int(index)).mean(axis=0)[::-1]
        assert np.abs(where - np.array(centre, float)).max() <= 0.5


def test_a_series_may_be_sent_slice_by_slice(
    client: TestClient, series: Path, expected: Volume, tmp_path: Path
) -> None:
    files = [("files", (f"Doe^Jane/{path.name}", path.read_bytes())) for path in series.iterdir()]
    session = client.put("/session/", data={"client_id": "x"}, files=files).json()["session_id"]
    body, headers = form({"params": "{}"}, {})
    reply = client.post(f"/infer/small?image=x&session_id={session}&output=image", content=body, headers=headers)
    (tmp_path / "mask.nii.gz").write_bytes(reply.content)
    mask = read_volume(tmp_path / "mask.nii.gz").reorient("RAS")
    assert np.array_equal(mask.array, expected.reorient("RAS").array)


def test_a_series_gives_a_dicom_seg_of_the_same_mask(
    client: TestClient, series: Path, expected: Volume, tmp_path: Path
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for path in series.iterdir():
            members.write(path, path.name)
    job = finished(client, client.post("/api/jobs", content=archive.getvalue()).json()["id"])
    assert "dicom_seg" in [file["kind"] for file in job["files"]]
    (tmp_path / "s.dcm").write_bytes(client.get(f"/api/jobs/{job['id']}/files/segmentation.dcm").content)
    read, labels = read_dicom_seg(tmp_path / "s.dcm")
    seen = read.onto(expected.affine, expected.array.shape)
    assert seen is not None
    assert np.array_equal(seen.array > 0, expected.array > 0)
    known = client.get("/api/info").json()["organs"]
    for organ in known:
        if organ["name"] in labels:
            assert np.array_equal(seen.array == labels[organ["name"]], expected.array == organ["id"])


def test_only_uids_are_asked_of_the_pacs(client: TestClient) -> None:
    assert is_uid(SERIES_UID)
    assert not any(map(is_uid, ("", ".", "1..2", "1.2/../3", "1.2?x", "a", "1." * 40 + "1", "1.2\n")))
    for image, status in (("1.2.3", 404), ("../studies", 404), ("1.2/3", 404)):
        reply = client.post("/infer/small", params={"image": image}, data={"params": "{}"})
        assert reply.status_code == status


def test_refusals_reach_the_client(client: TestClient, scan: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(bad_uploads(scan)["rescaled"][0])
    body, headers = form({"params": "{}"}, {"file": bad})
    reply = client.post("/infer/small?image=x", content=body, headers=headers)
    assert reply.status_code == 422
    assert "rescaled" in reply.json()["detail"]
    empty, headers = form({"params": "{}"}, {})
    assert client.post("/infer/other?image=x", content=empty, headers=headers).status_code == 404
    assert client.post("/infer/small?image=x", content=empty, headers=headers).status_code == 404
    broken, headers = form({"params": "[" * 5000}, {})
    assert client.post("/infer/small?image=x", content=broken, headers=headers).status_code == 422
    assert client.put("/session/", data={"client_id": "x"}, files={"other": b"x"}).status_code == 422
