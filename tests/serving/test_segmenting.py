"""One upload to its results, as the worker does it."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from meddelinea.errors import InputRefusedError
from meddelinea.segmentation.model import load_model
from meddelinea.serving.job import Trouble
from meddelinea.serving.limits import Limits
from meddelinea.serving.segmenting import segment_upload
from support.counting import Openings
from support.dicom_series import write_ct
from support.tiny_models import write_model


def test_an_uploaded_series_is_unpacked_and_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(write_model(tmp_path / "model"), "cpu")
    series = write_ct(tmp_path / "ct", spacing_mm=(6.0, 7.0, 9.0))
    (tmp_path / "job").mkdir()
    upload = Path(shutil.make_archive(str(tmp_path / "job" / "upload"), "zip", series))
    openings = Openings(monkeypatch)
    outcome = segment_upload(model, upload, None, Limits(), lambda done, slices: None)
    assert (outcome.state, outcome.message) == ("done", "")
    assert "dicom_seg" in [file.kind for file in outcome.files]  # its images are referred to, though they are gone
    files = [file.name for file in series.iterdir()]
    assert {name: openings.parsed[name] for name in files} == dict.fromkeys(files, 1)
    assert openings.unpacked == {"upload.zip": 1}


@pytest.mark.parametrize("lacking", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_the_servers_trouble_and_not_the_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    def write_results(*_: object) -> None:
        try:
            raise OSError(lacking, os.strerror(lacking), str(tmp_path / "mask.nii.gz"))
        except OSError as error:
            raise InputRefusedError(f"{tmp_path}/mask.nii.gz: cannot be written", "output") from error

    monkeypatch.setattr("meddelinea.serving.segmenting.write_results", write_results)
    model = load_model(write_model(tmp_path / "model"), "cpu")
    series = write_ct(tmp_path / "ct", spacing_mm=(6.0, 7.0, 9.0))
    upload = Path(shutil.make_archive(str(tmp_path / "upload"), "zip", series))
    outcome = segment_upload(model, upload, None, Limits(), lambda done, slices: None)
    assert isinstance(outcome, Trouble)
    assert os.strerror(lacking) in outcome.message
    assert str(tmp_path) not in outcome.message
