"""Files of a series as they are found and opened: links, marks, deflation, sizes, copies, and numbers written oddly."""

import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    generate_uid,
)

from meddelinea.io.dicom_files import inflate
from meddelinea.io.volumes import read_scan, read_volume
from support.dicom_series import enhanced
from support.reading import assert_same, refusal, remarks
from support.real_series import Change, put, write_series


def without_mark(folder: Path, *, meta: bool, implicit: bool) -> Path:
    """Every second file of a folder without preamble and mark, and without its meta information too."""
    for file in sorted(folder.iterdir())[::2]:
        dataset = pydicom.dcmread(file)
        if implicit:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        dataset.save_as(file, implicit_vr=implicit, little_endian=True)
        raw = file.read_bytes()[132:]
        if not meta:
            raw = raw[12 + pydicom.dcmread(file).file_meta.FileMetaInformationGroupLength :]
        file.with_suffix("").write_bytes(raw)
        file.unlink()
    return folder


@pytest.mark.parametrize(("meta", "implicit"), [(True, False), (False, False), (False, True)])
def test_files_without_preamble_and_mark_are_read(
    tmp_path: Path, slices: list[Dataset], meta: bool, implicit: bool
) -> None:
    expected = read_volume(write_series(tmp_path / "plain", slices))
    folder = without_mark(write_series(tmp_path / "bare", slices), meta=meta, implicit=implicit)
    assert_same(read_volume(folder), (expected.array, expected.affine))


def test_one_multi_frame_file_without_a_mark_or_an_ending_is_read(tmp_path: Path, slices: list[Dataset]) -> None:
    enhanced(slices, [2, 0, 1, 3, 5, 4]).save_as(tmp_path / "scan", enforce_file_format=True)
    expected = read_volume(tmp_path / "scan")
    (tmp_path / "bare").write_bytes((tmp_path / "scan").read_bytes()[132:])
    assert_same(read_volume(tmp_path / "bare"), (expected.array, expected.affine))


def test_big_endian_and_deflated_series_are_read(tmp_path: Path, slices: list[Dataset]) -> None:
    expected = read_volume(write_series(tmp_path / "plain", slices))

    def deflate(k: int, dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    def swap(k: int, dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"

    for name, change in {"deflated": deflate, "swapped": swap}.items():
        folder = tmp_path / name
        folder.mkdir()
        for k, one in enumerate(slices):
            file = write_series(tmp_path / f"{name}{k}", [one]) / "00.dcm"
            dataset = pydicom.dcmread(file)
            change(k, dataset)
            if name == "swapped":
                other = Dataset()
                other.update(dataset)
                other.file_meta = dataset.file_meta
                dataset = other
            dataset.save_as(folder / f"{k}.dcm", enforce_file_format=True)
        assert_same(read_volume(folder), (expected.array, expected.affine))
        assert read_scan(folder).series is not None


def test_what_a_deflated_file_inflates_to_is_bounded(
    tmp_path: Path, slices: list[Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_series(tmp_path / "series", slices)
    bomb = folder / "03.dcm"
    dataset = pydicom.dcmread(bomb)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(bomb, enforce_file_format=True)
    whole = bomb.read_bytes()
    meta = whole[: 144 + pydicom.dcmread(bomb).file_meta.FileMetaInformationGroupLength]
    plain = inflate(bomb, 1 << 20)
    assert plain is not None
    np.testing.assert_array_equal(pydicom.dcmread(plain).pixel_array, slices[3].pixel_array)
    assert inflate(folder / "00.dcm", 1 << 20) is None

    packer = zlib.compressobj(wbits=-15)
    bomb.write_bytes(meta + packer.compress(b"\0" * (1 << 24)) + packer.flush())
    assert bomb.stat().st_size < 1 << 16
    monkeypatch.setattr("meddelinea.io.dicom_files.MAX_INFLATED_BYTES", 1 << 22)
    assert "inflates to more than 4194304 bytes" in refusal(folder)

    bomb.write_bytes(whole[:-400])
    assert "ends too early" in refusal(folder)


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path, slices: list[Dataset]) -> None:
    expected = read_volume(write_series(tmp_path / "whole", slices))
    write_series(tmp_path / "disk" / "rest", slices[3:])
    for k in (2, 1, 0):  # whose names must not be those of the others
        (tmp_path / "disk" / "rest" / f"0{k}.dcm").rename(tmp_path / "disk" / "rest" / f"rest{k}.dcm")
    folder = write_series(tmp_path / "disk" / "study", slices[:3])
    (folder / "rest").symlink_to(tmp_path / "disk" / "rest", target_is_directory=True)
    (folder / "again").symlink_to("rest", target_is_directory=True)
    (folder / "itself").symlink_to(".", target_is_directory=True)
    (folder / "above").symlink_to("..", target_is_directory=True)
    (tmp_path / "disk" / "rest" / "back").symlink_to(folder, target_is_directory=True)
    write_series(tmp_path / "disk" / "other patient", slices, put("SeriesInstanceUID", generate_uid()))
    scan = read_scan(folder)
    assert_same(scan.volume, (expected.array, expected.affine))
    assert scan.findings == ()


def test_a_link_that_leads_nowhere_is_a_lost_slice(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    (folder / "05.dcm").unlink()
    for target in ("gone.dcm", "05"):
        (folder / "05").symlink_to(target)
        assert "05: a link to" in refusal(folder)
        (folder / "05").unlink()


def test_copies_are_passed_over_and_named(tmp_path: Path, slices: list[Dataset]) -> None:
    expected = read_volume(write_series(tmp_path / "plain", slices))
    folder = write_series(tmp_path / "series", slices)
    (folder / "IM (1)").write_bytes((folder / "02.dcm").read_bytes())
    packed = pydicom.dcmread(folder / "03.dcm")
    packed.compress(RLELossless, generate_instance_uid=False)
    packed.save_as(folder / "03 packed.dcm")
    scan = read_scan(folder)
    assert_same(scan.volume, (expected.array, expected.affine))
    assert [(found.code, found.level) for found in scan.findings] == [("copied_files", "warn")]
    assert "2 file(s)" in scan.findings[0].message
    assert scan.series is not None
    assert len(scan.series.headers) == len(slices)


def test_copies_of_slices_with_a_series_each_are_still_one_scan(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = generate_uid()

    folder = write_series(tmp_path / "parted", slices, change)
    (folder / "copy.dcm").write_bytes((folder / "02.dcm").read_bytes())
    assert remarks(folder) == [("copied_files", "warn")]


def test_a_multi_frame_file_twice_is_a_copy(tmp_path: Path, slices: list[Dataset]) -> None:
    (tmp_path / "scan").mkdir()
    for name in "ab":
        enhanced(slices, [0, 1, 2, 3, 4, 5]).save_as(tmp_path / "scan" / name, enforce_file_format=True)
    assert remarks(tmp_path / "scan") == [("copied_files", "warn")]


def test_one_uid_for_all_images_makes_none_a_copy(tmp_path: Path, slices: list[Dataset]) -> None:
    expected = read_volume(write_series(tmp_path / "plain", slices))
    folder = write_series(tmp_path / "series", slices, put("SOPInstanceUID", generate_uid()))
    assert_same(read_volume(folder), (expected.array, expected.affine))


def test_another_picture_under_the_same_uid_is_no_copy(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    other = pydicom.dcmread(folder / "02.dcm")
    other.PixelData = other.PixelData[2:] + b"\0\0"
    other.save_as(folder / "02b.dcm")
    assert "two slices at" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("Rows", 39), "3840 bytes of PixelData; expected 3744"),
        (put("Columns", 24), "3840 bytes of PixelData; expected 1920"),
    ],
)
def test_a_header_of_another_size_than_the_pixels_is_refused(
    tmp_path: Path, slices: list[Dataset], change: Change, said: str
) -> None:
    assert said in refusal(write_series(tmp_path / "series", slices, change))


def test_some_bytes_of_padding_are_no_picture(tmp_path: Path, slices: list[Dataset]) -> None:
    expected = read_volume(write_series(tmp_path / "plain", slices))

    def pad(k: int, dataset: Dataset) -> None:
        dataset.PixelData += b"\0" * 16

    assert_same(read_volume(write_series(tmp_path / "padded", slices, pad)), (expected.array, expected.affine))


def test_a_damaged_meta_header_and_a_number_that_runs_on_are_refused_in_one_line(
    tmp_path: Path, slices: list[Dataset]
) -> None:
    folder = write_series(tmp_path / "series", slices)
    whole = (folder / "03.dcm").read_bytes()
    meta = whole.index(b"\x02\x00\x02\x00UI")
    position = whole.index(b"\x20\x00\x32\x00DS")
    for place, byte in ((meta + 5, 0), (position + 7, 2)):
        (folder / "03.dcm").write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        message = refusal(folder)
        assert "03.dcm" in message
        assert message.isprintable()
        assert len(message) < 400
