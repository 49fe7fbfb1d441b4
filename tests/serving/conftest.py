"""A server in this process, with the shipped model and a PACS, and the scan that is sent to it."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pydicom
import pytest
from fastapi.testclient import TestClient

from meddelinea.checks.limits import ScanLimits
from meddelinea.checks.scan import examine
from meddelinea.io.volumes import read_scan, read_volume, write_volume
from meddelinea.results.files import write_segmentation
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.serving.app import create_app
from meddelinea.serving.limits import Limits
from meddelinea.volume import Volume
from support.serving import HERE, SERIES_UID, STUDY_UID


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Part of the CT that slicerio ships, named as no file should be."""
    slicerio = pytest.importorskip("slicerio")
    whole = read_volume(Path(slicerio.__file__).parent / "data" / "CTChest4.nrrd")
    path = tmp_path_factory.mktemp("scan") / "Doe^Jane_19700101.nii.gz"
    write_volume(Volume(whole.array[:, :, :8], whole.affine), path)
    return path


@pytest.fixture(scope="session")
def expected(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> Volume:
    """The mask as the command line makes it."""
    path = tmp_path_factory.mktemp("expected") / "mask.nii.gz"
    examined = examine(read_scan(scan), ScanLimits(modalities=("CT",)))
    write_segmentation(segment(load_model("small", "cpu"), examined), path, examined)
    return read_volume(path)


@pytest.fixture(scope="session")
def log() -> Iterator[io.StringIO]:
    """All that is logged from here on."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    logging.getLogger("meddelinea.serving").setLevel(logging.INFO)
    yield stream
    logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory, log: io.StringIO, pacs: str) -> Iterator[TestClient]:
    limits = Limits(upload_bytes=8 << 20, unpacked_bytes=32 << 20)
    app = create_app(tmp_path_factory.mktemp("jobs"), limits=limits, dicomweb=pacs)
    with TestClient(app, base_url=HERE) as client:
        yield client
