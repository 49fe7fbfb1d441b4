"""The server as MONAI Label's clients speak to it: 3D Slicer and OHIF."""

import io
import json
import zipfile
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813 (its own name)
from fastapi.testclient import TestClient

from meddelinea.io.dicom_seg import read_dicom_seg
from meddelinea.io.volumes import read_volume
from meddelinea.serving.dicomweb import is_uid
from meddelinea.volume import Volume
from support.serving import SERIES_UID, bad_uploads, finished

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
    assert "background" not in info["labels"]  # of which Slicer would make a segment, and count the organs from 2 on
    assert info["labels"] == [name for name, _ in sorted(model["labels"].items(), key=lambda item: item[1])]
    assert 0 not in model["labels"].values()  # to OHIF this is no id, and it would give the background an organ's
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


def test_a_mask_is_stored_in_the_type_that_the_client_reads(client: TestClient, scan: Path, expected: Volume) -> None:
    with scan.open("rb") as stream:
        session = client.put("/session/", files=[("files", (scan.name, stream))]).json()["session_id"]

    def answer(**params: object) -> httpx.Response:
        body, headers = form({"params": json.dumps({"result_extension": ".nrrd", **params})}, {})
        return client.post(f"/infer/small?session_id={session}&output=image", content=body, headers=headers)

    for params, size in (({"result_dtype": "uint8", "result_compress": False}, 1), ({"result_dtype": "uint16"}, 2)):
        head, _, voxels = answer(**params).content.partition(b"\n\n")
        assert {1: b"type: unsigned char", 2: b"type: unsigned short"}[size] in head
        assert len(voxels) == size * expected.array.size  # OHIF 3 takes each byte for a voxel
    assert answer().content == answer(result_dtype="uint16").content
    assert answer(result_dtype="float32").status_code == 422
    body, headers = form({"params": "{}"}, {})
    reply = client.post(f"/infer/small?session_id={session}&output=dicom_seg", content=body, headers=headers)
    assert reply.status_code == 406  # a NIfTI has no images to refer to
    assert "DICOM series" in reply.json()["detail"]


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
    reply = client.post(f"/infer/small?image=x&session_id={session}&output=dicom_seg", content=body, headers=headers)
    assert reply.headers["content-type"] == "application/dicom"
    (tmp_path / "s.dcm").write_bytes(reply.content)
    read, _ = read_dicom_seg(tmp_path / "s.dcm")
    seen = read.onto(expected.affine, expected.array.shape)
    assert seen is not None
    assert np.array_equal(seen.array > 0, expected.array > 0)


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
