"""Which of the files of a folder are the scan: one series, one stack, told from what stands beside it."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from scipy.spatial.transform import Rotation

from meddelinea.io.volumes import read_volume
from support.reading import assert_same, refusal
from support.real_series import SERIES_UID, turn, write_series


def test_file_names_and_subfolders_do_not_matter(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    expected = read_volume(folder)
    for name, file in zip("cafbed", sorted(folder.iterdir()), strict=True):
        (folder / "deep" / name).mkdir(parents=True)
        file.rename(folder / "deep" / name / f"IM{name}")
    assert_same(read_volume(folder), (expected.array, expected.affine))


def test_objects_that_are_no_scan_are_passed_over_beside_one(data: Path, tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    expected = read_volume(folder)
    shutil.copy(data / "dcmqi" / "liver.dcm", folder)
    pydicom_files = Path(pydicom.__file__).parent / "data" / "test_files"
    for name in ("test-SR.dcm", "rtdose_1frame.dcm", "dicomdirtests/DICOMDIR"):
        shutil.copy(pydicom_files / name, folder)
    (folder / "README.txt").write_text("not DICOM")
    (folder / "._00.dcm").write_bytes(b"what a Mac leaves in archives")
    assert_same(read_volume(folder), (expected.array, expected.affine))


def test_two_series_are_refused_and_listed(tmp_path: Path, slices: list[Dataset]) -> None:
    write_series(tmp_path / "study" / "a", slices)
    other = generate_uid()

    def change(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID, dataset.SeriesDescription = other, "Lung"

    write_series(tmp_path / "study" / "b", slices[:3], change)
    message = refusal(tmp_path / "study")
    assert f"{SERIES_UID} 'Abdomen' (6 slices)" in message
    assert f"{other} 'Lung' (3 slices)" in message


def test_a_localizer_beside_the_scan_is_refused_and_named(tmp_path: Path, slices: list[Dataset]) -> None:
    write_series(tmp_path / "study" / "a", slices)
    other = generate_uid()

    def change(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID, dataset.ImageType = other, ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_series(tmp_path / "study" / "b", slices[:2], change)
    assert "(2 localizer)" in refusal(tmp_path / "study")


def test_slices_that_an_anonymiser_gave_a_series_each_are_one_scan(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = generate_uid()

    whole = read_volume(write_series(tmp_path / "whole", slices))
    parted = read_volume(write_series(tmp_path / "parted", slices, change))
    np.testing.assert_array_equal(parted.array, whole.array)
    np.testing.assert_allclose(parted.affine, whole.affine, atol=1e-5)


def test_a_localiser_of_three_planes_is_not_one_scan(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = generate_uid()
        turn(Rotation.from_euler("x", 45 * k, degrees=True))(k, dataset)

    assert "orientation" in refusal(write_series(tmp_path / "localiser", slices[:3], change))


def test_one_slice_is_refused(tmp_path: Path, slices: list[Dataset]) -> None:
    assert "one slice" in refusal(write_series(tmp_path / "series", slices) / "00.dcm")


def test_a_segmentation_alone_is_refused(data: Path) -> None:
    assert "SEG" in refusal(data / "dcmqi" / "liver.dcm")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "none" in refusal(tmp_path)


def test_a_broken_slice_does_not_pass_as_a_foreign_file(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    (folder / "00.dcm").write_bytes(b"")
    assert "00.dcm" in refusal(folder)


def test_a_truncated_slice_is_refused(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    whole = (folder / "05.dcm").read_bytes()
    for kept in (len(whole) - 500, 700, 140):
        (folder / "05.dcm").write_bytes(whole[:kept])
        assert "05.dcm" in refusal(folder)
