"""Zip files: the same scan as their folder, and nothing that writes elsewhere."""

import zipfile
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from meddelinea.io.volumes import read_volume
from support.reading import assert_same, refusal
from support.real_series import put, write_series, zip_folder


def test_a_zip_equals_its_folder(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    expected = read_volume(folder)
    assert_same(read_volume(zip_folder(folder)), (expected.array, expected.affine))


def zip_of(path: Path, name: str, content: bytes = b"x", mode: int = 0o100644) -> Path:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    return path


@pytest.mark.parametrize(
    "name", ["../out.dcm", "a/../../out.dcm", "/tmp/out.dcm", "..\\out.dcm", "C:\\out.dcm", "C:out.dcm"]
)
def test_a_zip_that_would_write_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    assert "leaves the folder" in refusal(zip_of(tmp_path / "scan.zip", name))
    assert [file.name for file in tmp_path.iterdir()] == ["scan.zip"]


def test_a_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    assert "link" in refusal(zip_of(tmp_path / "scan.zip", "a", b"/etc/hostname", 0o120777))


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meddelinea.io.archive.MAX_UNZIPPED_BYTES", 1000)
    assert "1001 bytes" in refusal(zip_of(tmp_path / "scan.zip", "a", b"x" * 1001))


def test_a_damaged_zip_is_refused(tmp_path: Path, slices: list[Dataset]) -> None:
    path = zip_folder(write_series(tmp_path / "series", slices))
    path.write_bytes(path.read_bytes()[:-200])
    assert "unpacked" in refusal(path)


def test_a_refusal_inside_a_zip_names_the_zip(tmp_path: Path, slices: list[Dataset]) -> None:
    path = zip_folder(write_series(tmp_path / "series", slices, put("PhotometricInterpretation", "RGB")))
    assert refusal(path).startswith(f"{path}/00.dcm: ")
