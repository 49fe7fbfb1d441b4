"""Zip files: the same scan as their folder, and nothing that writes elsewhere."""

import zipfile
from pathlib import Path

import nibabel as nib
import pytest
from pydicom.dataset import Dataset

from meddelinea.io.volumes import read_scan, read_volume, write_volume
from meddelinea.volume import Volume
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


def of_files(path: Path, *files: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, prefix + file.name)
        archive.writestr("__MACOSX/._scan.nii.gz", b"\0\5\x16\7")
        archive.writestr("readme.txt", b"x")
    return path


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha"])
@pytest.mark.parametrize("prefix", ["", "study/series/", "study\\series\\"])
def test_the_one_volume_file_in_a_zip_is_read(tmp_path: Path, oblique: Volume, name: str, prefix: str) -> None:
    write_volume(oblique, tmp_path / name)
    scan = read_scan(of_files(tmp_path / "case.zip", tmp_path / name, prefix=prefix))
    assert_same(scan.volume, (oblique.array, oblique.affine))
    assert (scan.name, scan.path) == ("case.zip", tmp_path / "case.zip")


def test_a_header_in_a_zip_finds_its_voxels_and_a_zip_needs_no_ending(tmp_path: Path, oblique: Volume) -> None:
    nib.save(nib.Nifti1Pair(oblique.array, oblique.affine), tmp_path / "scan.hdr")
    path = of_files(tmp_path / "case", tmp_path / "scan.hdr", tmp_path / "scan.img", prefix="a\\b\\")
    assert_same(read_volume(path), (oblique.array, oblique.affine))


def test_a_zip_of_several_scans_or_of_a_zip_says_so(tmp_path: Path, oblique: Volume, slices: list[Dataset]) -> None:
    write_volume(oblique, tmp_path / "a.nii")
    write_volume(oblique, tmp_path / "b.nrrd")
    assert "2 scans in the zip (a.nii, b.nrrd)" in refusal(
        of_files(tmp_path / "two.zip", tmp_path / "a.nii", tmp_path / "b.nrrd")
    )
    inner = zip_folder(write_series(tmp_path / "series", slices))
    outer = of_files(tmp_path / "outer.zip", inner)
    assert f"a zip in a zip ({inner.name})" in refusal(outer)


def test_a_series_beside_a_volume_file_or_a_zip_is_still_read(
    tmp_path: Path, oblique: Volume, slices: list[Dataset]
) -> None:
    folder = write_series(tmp_path / "series", slices)
    expected = read_volume(folder)
    write_volume(oblique, folder / "mask.nii.gz")
    of_files(folder / "viewer.zip", folder / "mask.nii.gz")
    assert_same(read_volume(zip_folder(folder)), (expected.array, expected.affine))


def test_a_bad_volume_file_in_a_zip_names_both(tmp_path: Path, oblique: Volume) -> None:
    write_volume(oblique, tmp_path / "scan.nii")
    (tmp_path / "scan.nii").write_bytes((tmp_path / "scan.nii").read_bytes()[:-9])
    assert refusal(of_files(tmp_path / "case.zip", tmp_path / "scan.nii")).startswith(f"{tmp_path}/case.zip/scan.nii: ")


def test_what_is_unpacked_is_counted_whatever_the_zip_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_of(tmp_path / "scan.zip", "a.dcm", b"x" * 3_000_000)
    raw = bytearray(path.read_bytes())
    place = raw.index(b"PK\x01\x02") + 24
    assert int.from_bytes(raw[place : place + 4], "little") == 3_000_000
    raw[place : place + 4] = (100).to_bytes(4, "little")  # the size in the listing
    path.write_bytes(raw)
    monkeypatch.setattr("meddelinea.io.archive.MAX_UNZIPPED_BYTES", 1000)
    refusal(path)


def test_a_zip_of_too_many_files_or_folders_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "folders deep" in refusal(zip_of(tmp_path / "deep.zip", "a/" * 40 + "b.dcm"))
    monkeypatch.setattr("meddelinea.io.archive.MAX_MEMBERS", 2)
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for k in range(3):
            archive.writestr(f"{k}.dcm", b"x")
        for k in range(9):
            archive.writestr(f"empty{k}/", b"")
    assert "3 files; expected at most 2" in refusal(tmp_path / "many.zip")
