"""DICOM series: the voxels and places that SimpleITK reads, and stacks with gaps or overlaps refused."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid
from scipy.spatial.transform import Rotation

from meddelinea.io.volumes import read_scan, read_volume
from support.dicom_series import enhanced
from support.reading import assert_same, from_simpleitk, refusal, remarks
from support.real_series import Change, put, turn, write_series


def series_by_simpleitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return from_simpleitk(sitk.Flip(reader.Execute(), (False, True, False)))  # rows from the bottom


def move_z(amount_mm: float, number: int) -> Change:
    def change(k: int, dataset: Dataset) -> None:
        if k == number:
            dataset.ImagePositionPatient[2] += amount_mm

    return change


@pytest.mark.parametrize("series", ["totalsegmentator/ct_dicom", "dcmqi/ct-3slice"])
def test_a_real_series_is_read_as_simpleitk_reads_it(data: Path, series: str) -> None:
    scan = read_scan(data / series)
    assert_same(scan.volume, series_by_simpleitk(data / series))
    assert (scan.modality, scan.name, scan.path) == ("CT", Path(series).name, data / series)
    assert scan.volume.array.dtype == np.int16


@pytest.mark.parametrize(
    "rotation",
    [
        Rotation.from_euler("xyz", [13, -21, 34], degrees=True),
        Rotation.from_euler("z", 180, degrees=True),
        Rotation.from_euler("x", 180, degrees=True),
        Rotation.from_euler("y", 90, degrees=True),
        Rotation.from_euler("xz", [-90, 5], degrees=True),
    ],
    ids=["oblique", "prone", "feet first", "sagittal", "near coronal"],
)
def test_a_turned_series_is_read_as_simpleitk_reads_it(
    tmp_path: Path, slices: list[Dataset], rotation: Rotation
) -> None:
    folder = write_series(tmp_path / "turned", slices, turn(rotation))
    assert_same(read_volume(folder), series_by_simpleitk(folder))


def test_unequal_row_and_column_spacing_are_not_confused(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices, put("PixelSpacing", [0.5, 0.8]))
    volume = read_volume(folder)
    assert_same(volume, series_by_simpleitk(folder))
    np.testing.assert_allclose(volume.spacing_mm, (0.8, 0.5, 2.0))


@pytest.mark.parametrize("rotation", [Rotation.identity(), Rotation.from_euler("yx", [8, 170], degrees=True)])
def test_a_tilted_gantry_gives_every_pixel_the_place_its_own_header_gives_it(
    tmp_path: Path, slices: list[Dataset], rotation: Rotation
) -> None:
    folder = write_series(tmp_path / "tilted", slices, turn(rotation, shear_mm=0.6))
    volume = read_volume(folder)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        row, column = 7, 31
        from_bottom = dataset.Rows - 1 - row
        along_row, along_column = np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float)
        row_mm, column_mm = dataset.PixelSpacing
        lps = np.array(dataset.ImagePositionPatient) + along_row * column * column_mm + along_column * row * row_mm
        i, j, k = np.linalg.solve(volume.affine, [-lps[0], -lps[1], lps[2], 1])[:3]
        np.testing.assert_allclose([i, j, k], [column, from_bottom, round(k)], atol=1e-4)
        hu = dataset.pixel_array[row, column] * dataset.RescaleSlope + dataset.RescaleIntercept
        assert volume.array[column, from_bottom, round(k)] == hu
    if rotation.magnitude() == 0:
        assert volume.obliqueness_deg == pytest.approx(np.rad2deg(np.arctan(0.6 / 2)), abs=1e-3)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_compression_without_loss_changes_nothing(tmp_path: Path, slices: list[Dataset], syntax: str) -> None:
    plain = read_volume(write_series(tmp_path / "plain", slices))
    packed = write_series(
        tmp_path / "packed", slices, lambda k, dataset: dataset.compress(syntax, generate_instance_uid=False)
    )
    assert pydicom.dcmread(packed / "00.dcm").file_meta.TransferSyntaxUID == syntax
    assert_same(read_volume(packed), (plain.array, plain.affine))


def test_each_slice_has_its_own_rescale(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 + 0.25 * k, -100.5 - k

    folder = write_series(tmp_path / "series", slices, change)
    volume = read_volume(folder)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, series_by_simpleitk(folder)[0], rtol=1e-6)
    # The series runs from head to feet, the volume from feet to head; rows from the bottom.
    expected = np.stack(
        [s.pixel_array[::-1].T * (0.5 + 0.25 * k) - 100.5 - k for k, s in enumerate(slices)][::-1], axis=-1
    )
    np.testing.assert_allclose(volume.array, expected, rtol=1e-6)


def test_values_beyond_int16_are_kept(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.BitsStored, dataset.HighBit = 16, 15
        if k == 2:
            dataset.PixelData = np.full((dataset.Rows, dataset.Columns), 60000, np.uint16).tobytes()

    folder = write_series(tmp_path / "series", slices, change)
    volume = read_volume(folder)
    assert volume.array.max() == 60000 - 1024
    np.testing.assert_array_equal(volume.array, series_by_simpleitk(folder)[0])


def test_an_mr_without_rescale_keeps_its_stored_values(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.Modality = "MR"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        del dataset.RescaleSlope, dataset.RescaleIntercept

    folder = write_series(tmp_path / "series", slices, change)
    assert_same(read_volume(folder), series_by_simpleitk(folder))
    assert read_scan(folder).modality == "MR"


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 0, 5, 1, 4, 2]], ids=["in order", "shuffled"])
def test_a_multi_frame_file_equals_its_slices(tmp_path: Path, slices: list[Dataset], order: list[int]) -> None:
    folder = write_series(tmp_path / "slices", slices)
    file = tmp_path / "enhanced.dcm"
    enhanced(slices, order).save_as(file, enforce_file_format=True)
    assert_same(read_volume(file), series_by_simpleitk(folder))


def test_values_that_break_the_standards_form_do_not_warn(tmp_path: Path, slices: list[Dataset]) -> None:
    expected = read_volume(write_series(tmp_path / "clean", slices))

    def change(k: int, dataset: Dataset) -> None:
        text = [f"{float(value):.15f}" for value in dataset.ImagePositionPatient]
        dataset[0x00200032] = DataElement(0x00200032, "DS", text, validation_mode=pydicom.config.IGNORE)
        dataset[0x0020000E] = DataElement(0x0020000E, "UI", "1.02.3", validation_mode=pydicom.config.IGNORE)

    with pytest.warns(UserWarning, match="UI"):
        pydicom.dcmread(write_series(tmp_path / "odd", slices, change) / "00.dcm").SeriesInstanceUID  # noqa: B018
    assert_same(read_volume(tmp_path / "odd"), (expected.array, expected.affine))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (move_z(50.0, 5), "missing"),
        (move_z(2.0, 3), "two slices at"),
        (move_z(0.5, 3), "even grid"),
        (lambda k, d: turn(Rotation.identity(), 1.0 * (k == 3))(k, d), "aside of the line"),
        (lambda k, d: turn(Rotation.from_euler("x", 2.0 * (k == 3), degrees=True))(k, d), "orientation"),
        (put("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"], 3), "localizer"),
        (put("AnatomicalOrientationType", "QUADRUPED"), "QUADRUPED"),
        (put("RescaleType", "Z_EFF", 3), "Z_EFF"),
        (put("PixelSpacing", [0.7, 0.7], 3), "0.7, 0.7"),
        (put("PixelSpacing", [0, 0]), "positive"),
        (put("Rows", 20, 3), "size (rows, columns) [20, 48], but [40, 48]"),
        (put("ImagePositionPatient", None, 3), "ImagePositionPatient"),
        (put("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "perpendicular"),
        (put("PhotometricInterpretation", "RGB"), "RGB"),
        (put("ModalityLUTSequence", [Dataset()]), "lookup table"),
        (put("NumberOfFrames", 4), "several frames"),
        (put("Modality", "PT"), "PT; expected CT or MR"),
        (put("SOPClassUID", pydicom.uid.SecondaryCaptureImageStorage), "no CT or MR scan"),
        (put("PixelData", b"\0" * 64, 3), "not a readable DICOM file"),
    ],
)
def test_slices_that_are_no_even_stack_are_refused(
    tmp_path: Path, slices: list[Dataset], change: Change, said: str
) -> None:
    assert said in refusal(write_series(tmp_path / "series", slices, change))


def test_a_missing_slice_is_named_by_its_place(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    z = sorted(float(s.ImagePositionPatient[2]) for s in slices)
    (folder / "02.dcm").unlink()
    assert f"about 1 slice(s) missing between {z[2]:.3f} and {z[4]:.3f} mm" in refusal(folder)


def test_phases_in_one_series_are_refused_as_several_volumes(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()

    folder = write_series(tmp_path / "series", [*slices, *slices, *slices], change)
    assert "3 slices at each of 6 positions" in refusal(folder)


def test_ranges_that_overlap_are_refused(tmp_path: Path, slices: list[Dataset]) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient[2] = -(2 * k - (k > 2))

    assert "lie 1.000 mm apart" in refusal(write_series(tmp_path / "series", slices, change))


def test_slices_that_do_not_touch_are_remarked_upon(tmp_path: Path, slices: list[Dataset]) -> None:
    """The slices of the series lie 2 mm apart: of 3 mm they overlap, as scanners make them, and of 1 mm they gap."""
    for thickness_mm, expected in ((3, []), (2, []), (1.4, []), (1, [("slice_gaps", "warn")]), (None, [])):
        folder = write_series(tmp_path / str(thickness_mm), slices, put("SliceThickness", thickness_mm))
        assert remarks(folder) == expected
    assert remarks(write_series(tmp_path / "every second", slices[::2], put("SliceThickness", 2))) == [
        ("slice_gaps", "warn")
    ]
