"""Reading and writing volumes: the same voxels at the same places as other readers have, or a clear refusal."""

import copy
import gzip
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
import slicerio
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid
from scipy.spatial.transform import Rotation

from meddelinea.errors import InputRefusedError
from meddelinea.files import ensure_writable
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.volume import Volume
from support.dicom_series import enhanced

Change = Callable[[int, Dataset], None]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SERIES_UID = generate_uid()


def from_simpleitk(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """(I, J, K) voxels and RAS affine of an image that SimpleITK read."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS_TO_RAS @ affine


def series_by_simpleitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return from_simpleitk(sitk.Flip(reader.Execute(), (False, True, False)))  # rows from the bottom


def assert_same(volume: Volume, theirs: tuple[np.ndarray, np.ndarray]) -> None:
    array, affine = theirs
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=2e-5)


def refusal(path: Path) -> str:
    """The message with which `path` is refused: one line that names it, for a reason that has a name."""
    with pytest.raises(InputRefusedError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    (finding,) = caught.value.findings
    assert (finding.code, finding.level, finding.message) == (caught.value.code, "refuse", message)
    assert finding.code != "refused"
    return message


def remarks(path: Path) -> list[tuple[str, str]]:
    return [(remark.code, remark.level) for remark in read_volume(path).remarks]


@pytest.fixture(scope="session")
def slices(data: Path) -> list[Dataset]:
    """Six neighbouring slices of a real CT series, decoded and cropped to 40 rows and 48 columns."""
    cropped = []
    for file in sorted((data / "totalsegmentator" / "ct_dicom").iterdir())[:6]:
        dataset = pydicom.dcmread(file)
        dataset.decompress()
        pixels = dataset.pixel_array[200:240, 180:228]
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = pixels.tobytes()
        dataset.SOPClassUID = pydicom.uid.CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.SeriesInstanceUID = SERIES_UID
        dataset.SeriesDescription = "Abdomen"
        cropped.append(dataset)
    return cropped


def write_series(folder: Path, slices: list[Dataset], change: Change = lambda k, dataset: None) -> Path:
    """The slices as files of a new folder, each after `change(number, slice)`."""
    folder.mkdir(parents=True)
    for k, original in enumerate(slices):
        dataset = copy.deepcopy(original)
        change(k, dataset)
        dataset.save_as(folder / f"{k:02d}.dcm", enforce_file_format=True)
    return folder


def turn(rotation: Rotation, shear_mm: float = 0.0) -> Change:
    """Rewrite the place of each slice as if the patient had been turned about the scanner, or the gantry tilted."""

    def change(k: int, dataset: Dataset) -> None:
        rows_and_columns = rotation.apply(np.reshape(dataset.ImageOrientationPatient, (2, 3)).astype(float))
        position = rotation.apply(np.array(dataset.ImagePositionPatient, float) + np.array([0, k * shear_mm, 0]))
        dataset.ImageOrientationPatient = [f"{value:.9f}" for value in rows_and_columns.ravel()]
        dataset.ImagePositionPatient = [f"{value:.7f}" for value in position]

    return change


def move_z(amount_mm: float, number: int) -> Change:
    def change(k: int, dataset: Dataset) -> None:
        if k == number:
            dataset.ImagePositionPatient[2] += amount_mm

    return change


def put(keyword: str, value: object, number: int | None = None) -> Change:
    """Set an element, in all slices or in one."""

    def change(k: int, dataset: Dataset) -> None:
        if number in (None, k):
            setattr(dataset, keyword, value)

    return change


def zip_folder(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


# DICOM, against SimpleITK


@pytest.mark.parametrize("series", ["totalsegmentator/ct_dicom", "dcmqi/ct-3slice"])
def test_a_real_series_is_read_as_simpleitk_reads_it(data: Path, series: str) -> None:
    volume = read_volume(data / series)
    assert_same(volume, series_by_simpleitk(data / series))
    assert volume.modality == "CT"
    assert volume.array.dtype == np.int16


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
    assert read_volume(folder).modality == "MR"


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 0, 5, 1, 4, 2]], ids=["in order", "shuffled"])
def test_a_multi_frame_file_equals_its_slices(tmp_path: Path, slices: list[Dataset], order: list[int]) -> None:
    folder = write_series(tmp_path / "slices", slices)
    file = tmp_path / "enhanced.dcm"
    enhanced(slices, order).save_as(file, enforce_file_format=True)
    assert_same(read_volume(file), series_by_simpleitk(folder))


def test_file_names_and_subfolders_do_not_matter(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    expected = read_volume(folder)
    for name, file in zip("cafbed", sorted(folder.iterdir()), strict=True):
        (folder / "deep" / name).mkdir(parents=True)
        file.rename(folder / "deep" / name / f"IM{name}")
    assert_same(read_volume(folder), (expected.array, expected.affine))


def test_a_zip_equals_its_folder(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", slices)
    expected = read_volume(folder)
    assert_same(read_volume(zip_folder(folder)), (expected.array, expected.affine))


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


def test_values_that_break_the_standards_form_do_not_warn(tmp_path: Path, slices: list[Dataset]) -> None:
    expected = read_volume(write_series(tmp_path / "clean", slices))

    def change(k: int, dataset: Dataset) -> None:
        text = [f"{float(value):.15f}" for value in dataset.ImagePositionPatient]
        dataset[0x00200032] = DataElement(0x00200032, "DS", text, validation_mode=pydicom.config.IGNORE)
        dataset[0x0020000E] = DataElement(0x0020000E, "UI", "1.02.3", validation_mode=pydicom.config.IGNORE)

    with pytest.warns(UserWarning, match="UI"):
        pydicom.dcmread(write_series(tmp_path / "odd", slices, change) / "00.dcm").SeriesInstanceUID  # noqa: B018
    assert_same(read_volume(tmp_path / "odd"), (expected.array, expected.affine))


# DICOM, refused


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


def test_phases_in_one_series_are_refused_as_several_volumes(tmp_path: Path, slices: list[Dataset]) -> None:
    folder = write_series(tmp_path / "series", [*slices, *slices, *slices])
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


# Zip files, refused


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


# NIfTI and NRRD


@pytest.fixture
def oblique() -> Volume:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -35, 110], degrees=True).as_matrix() @ np.diag([-0.7, 0.9, 3.0])
    affine[:3, 3] = 101.25, -33.5, 812.0
    voxels = np.random.default_rng(0).integers(-1024, 3000, (6, 7, 8), dtype=np.int16)
    return Volume(voxels, affine)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_what_is_written_is_read_back_here_and_by_simpleitk(
    tmp_path: Path, oblique: Volume, suffix: str, kind: type
) -> None:
    path = tmp_path / f"scan{suffix}"
    written = Volume(oblique.array.astype(kind), oblique.affine)
    write_volume(written, path)
    volume = read_volume(path)
    assert volume.array.dtype == kind
    assert volume.modality is None
    assert_same(volume, (written.array, written.affine))
    assert_same(volume, from_simpleitk(sitk.ReadImage(str(path))))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
def test_what_simpleitk_writes_is_read(tmp_path: Path, oblique: Volume, suffix: str) -> None:
    image = sitk.GetImageFromArray(oblique.array.transpose(2, 1, 0))
    lps = LPS_TO_RAS @ oblique.affine
    image.SetSpacing(oblique.spacing_mm)
    image.SetOrigin(lps[:3, 3])
    image.SetDirection((lps[:3, :3] / oblique.spacing_mm).ravel())
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"))
    assert_same(read_volume(tmp_path / f"scan{suffix}"), (oblique.array, oblique.affine))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_sheared_affine_and_a_bool_mask_survive(tmp_path: Path, oblique: Volume, suffix: str) -> None:
    sheared = oblique.affine.copy()
    sheared[:3, 2] += 0.3 * sheared[:3, 1]
    write_volume(Volume(oblique.array > 0, sheared), tmp_path / f"mask{suffix}")
    volume = read_volume(tmp_path / f"mask{suffix}")
    assert volume.array.dtype == np.uint8
    assert_same(volume, (oblique.array > 0, sheared))


def test_a_sheared_affine_is_not_contradicted_by_the_qform(tmp_path: Path, oblique: Volume) -> None:
    for shear, code in ((0.0, 1), (0.3, 0)):
        affine = oblique.affine.copy()
        affine[:3, 2] += shear * affine[:3, 1]
        write_volume(Volume(oblique.array, affine), tmp_path / "scan.nii")
        header = nib.load(tmp_path / "scan.nii").header
        assert (int(header["sform_code"]), int(header["qform_code"])) == (1, code)


@pytest.mark.parametrize("name", ["btcv/img/img0005.nii.gz", "totalsegmentator/mr.nii.gz"])
def test_a_real_nifti_is_read_as_simpleitk_reads_it(data: Path, name: str) -> None:
    assert_same(read_volume(data / name), from_simpleitk(sitk.ReadImage(str(data / name))))


def test_a_real_nrrd_is_read_as_simpleitk_reads_it() -> None:
    path = Path(slicerio.__file__).parent / "data" / "CTChest4.nrrd"
    assert_same(read_volume(path), from_simpleitk(sitk.ReadImage(str(path))))


def test_a_big_endian_scaled_nifti_is_read_as_simpleitk_reads_it(tmp_path: Path, oblique: Volume) -> None:
    path = tmp_path / "scan.nii"
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    for values, kind in ((oblique.array, np.int16), (oblique.array * 0.37 - 10.25, np.float32)):
        nib.Nifti1Image(values, oblique.affine, header).to_filename(path)
        volume = read_volume(path)
        assert volume.array.dtype == np.dtype(kind)
        assert volume.array.dtype.isnative
        theirs, affine = from_simpleitk(sitk.ReadImage(str(path)))
        np.testing.assert_allclose(volume.array, theirs, rtol=1e-6)
        np.testing.assert_allclose(volume.affine, affine, atol=2e-5)


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0), ("unknown", 1.0)])
def test_a_niftis_unit_is_heeded(tmp_path: Path, oblique: Volume, unit: str, factor: float) -> None:
    image = nib.Nifti1Image(oblique.array, oblique.affine)
    image.header.set_xyzt_units(unit)
    image.to_filename(tmp_path / "scan.nii")
    expected = np.diag([factor, factor, factor, 1]) @ oblique.affine
    np.testing.assert_allclose(read_volume(tmp_path / "scan.nii").affine, expected, rtol=1e-5)


def test_the_sform_wins_over_the_qform_and_without_both_the_first_axis_runs_left(
    tmp_path: Path, oblique: Volume
) -> None:
    path = tmp_path / "scan.nii"
    image = nib.Nifti1Image(oblique.array, oblique.affine)
    image.set_qform(np.diag([2.0, 2.0, 2.0, 1.0]), code=1)
    image.to_filename(path)
    np.testing.assert_allclose(read_volume(path).affine, oblique.affine, atol=1e-4)
    image.set_sform(None, code=0)
    image.to_filename(path)
    np.testing.assert_allclose(read_volume(path).affine, np.diag([2.0, 2.0, 2.0, 1.0]))
    image.set_qform(None, code=0)
    image.to_filename(path)
    assert read_volume(path).orientation == "LAS"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (np.diag([1.0, 1.0, 1.0, 1.0]), []),
        (np.diag([-1.0, 1.0, 1.0, 1.0]), [("orientation_conflict", "refuse")]),
        (np.diag([1.0, -1.0, -1.0, 1.0]), [("orientation_conflict", "refuse")]),
        (np.eye(4)[[1, 0, 2, 3]], [("orientation_conflict", "refuse")]),
        (np.diag([1.0, 1.0, 2.0, 1.0]), [("spacing_conflict", "warn")]),
    ],
    ids=["the same", "mirrored", "half a turn", "axes exchanged", "other spacing"],
)
def test_a_nifti_that_says_two_things_is_remarked_upon(
    tmp_path: Path, oblique: Volume, change: np.ndarray, expected: list[tuple[str, str]]
) -> None:
    affine = np.diag([-0.7, 0.9, 3.0, 1.0])
    image = nib.Nifti1Image(oblique.array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(change @ affine, code=1)
    image.to_filename(tmp_path / "scan.nii")
    assert remarks(tmp_path / "scan.nii") == expected
    image.set_qform(None, code=0)
    image.set_sform(None, code=0)
    image.to_filename(tmp_path / "scan.nii")
    assert remarks(tmp_path / "scan.nii") == [("no_geometry", "warn")]


def test_a_qform_that_is_no_rotation_is_remarked_upon(tmp_path: Path, oblique: Volume) -> None:
    write_volume(oblique, tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    raw[256:268] = np.array([3.0, 4.0, 0.0], "<f4").tobytes()  # the quaternion; nibabel mends it when it writes
    raw[252:256] = np.array([1, 1], "<i2").tobytes()  # codes of qform and sform
    (tmp_path / "scan.nii").write_bytes(raw)
    assert remarks(tmp_path / "scan.nii") == [("orientation_conflict", "refuse")]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_promises_more_than_the_file_holds_takes_no_memory(
    tmp_path: Path, oblique: Volume, suffix: str
) -> None:
    write_volume(oblique, tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    raw[42:48] = np.array([32767] * 3, "<i2").tobytes()  # 70 TB
    (tmp_path / f"scan{suffix}").write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    assert f"expected {352 + 2 * 32767**3} for" in refusal(tmp_path / f"scan{suffix}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    for name in ("scan", "scan.nii", "scan.dcm"):
        os.mkfifo(tmp_path / name)
        assert "not a kind of file" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((4, 4), np.int16), "2 dimensions"),
        (np.zeros((4, 4, 4, 3), np.int16), "4 dimensions"),
        (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB"),
        (np.zeros((4, 4, 4), np.complex64), "complex"),
    ],
)
def test_a_nifti_that_is_no_grey_volume_is_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    nib.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / "scan.nii.gz")
    assert said in refusal(tmp_path / "scan.nii.gz")


def test_a_nifti_with_a_last_axis_of_one_is_a_volume(tmp_path: Path, oblique: Volume) -> None:
    nib.Nifti1Image(oblique.array[..., None], oblique.affine).to_filename(tmp_path / "scan.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii").array, oblique.array)


def test_a_nifti_with_a_flat_affine_is_refused(tmp_path: Path, oblique: Volume) -> None:
    image = nib.Nifti1Image(oblique.array, oblique.affine)
    image.header["srow_z"] = image.header["srow_y"]
    nib.Nifti1Image(oblique.array, None, image.header).to_filename(tmp_path / "scan.nii")
    assert "singular" in refusal(tmp_path / "scan.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd"])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.9])
def test_a_truncated_file_is_refused_when_it_is_read(tmp_path: Path, oblique: Volume, suffix: str, kept: float) -> None:
    path = tmp_path / f"scan{suffix}"
    write_volume(oblique, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "is it complete?" in refusal(path)


def test_a_nifti_with_a_wrong_checksum_is_refused(tmp_path: Path, oblique: Volume) -> None:
    write_volume(oblique, tmp_path / "scan.nii")
    packed = bytearray(gzip.compress((tmp_path / "scan.nii").read_bytes(), compresslevel=0))
    packed[-100] ^= 0xFF  # a voxel, stored uncompressed: only the checksum can tell
    (tmp_path / "scan.nii.gz").write_bytes(packed)
    assert "CRC" in refusal(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.nrrd", "scan.nhdr", "scan.dcm", "scan.zip", "scan"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("patient,organ,volume\n" * 100)
    refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["none.nii.gz", "none.nrrd", "none.zip", "none.dcm", "none"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    assert "no such file" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("scanner-xyz", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_a_nrrds_space_decides_its_directions(
    tmp_path: Path, oblique: Volume, space: str, signs: tuple[int, int, int]
) -> None:
    stored = np.diag([*signs, 1]) @ oblique.affine
    header = {"space": space, "space directions": stored[:3, :3].T, "space origin": stored[:3, 3]}
    nrrd.write(str(tmp_path / "scan.nrrd"), oblique.array, header)
    assert_same(read_volume(tmp_path / "scan.nrrd"), (oblique.array, oblique.affine))


def test_a_nhdr_with_its_data_beside_it_is_read(tmp_path: Path, oblique: Volume) -> None:
    header = {"space": "RAS", "space directions": oblique.affine[:3, :3].T, "space origin": oblique.affine[:3, 3]}
    nrrd.write(str(tmp_path / "scan.nhdr"), oblique.array, header)
    assert_same(read_volume(tmp_path / "scan.nhdr"), (oblique.array, oblique.affine))
    next(tmp_path.glob("*.raw*")).unlink()
    refusal(tmp_path / "scan.nhdr")


@pytest.mark.parametrize(
    ("shape", "header", "said"),
    [
        ((4, 4), {"space dimension": 2, "space directions": np.eye(2)}, "2 dimensions"),
        ((2, 4, 4, 4), {"space": "LPS", "space directions": np.vstack([[np.nan] * 3, np.eye(3)])}, "4 dimensions"),
        ((3, 4, 4), {"space": "LPS", "space directions": np.vstack([[np.nan] * 3, np.eye(3)[:2]])}, "directions"),
        ((4, 4, 4), {"spacings": [1.0, 1.0, 1.0]}, "space none"),
        ((4, 4, 4), {"space": "3D-right-handed", "space directions": np.eye(3)}, "3D-right-handed"),
        ((4, 4, 4), {"space": "LPS"}, "directions"),
        ((4, 4, 4), {"space": "LPS", "space directions": np.eye(3), "space units": ["cm"] * 3}, "cm"),
        ((4, 4, 4), {"space": "LPS", "space directions": np.diag([1, 1, 0])}, "singular"),
    ],
)
def test_a_nrrd_that_is_no_placed_volume_is_refused(
    tmp_path: Path, shape: tuple[int, ...], header: dict[str, object], said: str
) -> None:
    nrrd.write(str(tmp_path / "scan.nrrd"), np.zeros(shape, np.int16), header)
    assert said in refusal(tmp_path / "scan.nrrd")


# Output that cannot be written


@pytest.mark.parametrize(
    "name",
    ["scan.mha", "scan", "missing/scan.nii.gz", "file.txt/scan.nii.gz", "folder.nii.gz", "/proc/scan.nii.gz"],
)
def test_an_output_that_cannot_be_written_is_refused_early_and_late(tmp_path: Path, oblique: Volume, name: str) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.nii.gz").mkdir()
    if name.startswith("/") and not Path(name).parent.is_dir():
        pytest.skip("only Linux has a folder that not even an administrator can write")
    path = tmp_path / name
    for attempt in (lambda: ensure_writable(path), lambda: write_volume(oblique, path)):
        with pytest.raises(InputRefusedError) as caught:
            attempt()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file.txt", "folder.nii.gz"]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, oblique: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.nii"
    path.write_text("old")

    def full_disk(image: nib.Nifti1Image, unfinished: Path) -> None:
        unfinished.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(InputRefusedError, match="No space left"):
        write_volume(oblique, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii"]


def test_other_outputs_are_checked_by_their_own_ending(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "statistics.json", (".json",))
    with pytest.raises(InputRefusedError, match=r"\.json"):
        ensure_writable(tmp_path / "statistics.txt", (".json",))
    assert list(tmp_path.iterdir()) == []
