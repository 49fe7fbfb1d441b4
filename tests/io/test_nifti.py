"""NIfTI: its unit, forms and scaling are heeded, and a header that contradicts itself or its file is told of."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.volume import Volume
from support.reading import assert_same, from_simpleitk, refusal, remarks
from support.spoiled_scans import rewritten


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


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dim1": 5}, "5 x 7 x 8 voxels"),
        ({"dim3": 7}, "6 x 7 x 7 voxels"),
        ({"dim3": 12}, "6 x 7 x 12 voxels"),
        ({"dim0": 2}, "2 dimensions"),
        ({"dim0": 4, "dim4": 3}, "4 dimensions"),
        ({"dim0": 4, "dim4": 0}, "4 dimensions"),
        ({"dim0": 9}, "dimensions"),
        ({"dim0": -3}, "dimensions"),
        ({"dim2": -7}, "-7"),
        ({"dim2": 0}, "6 x 0 x 8"),
        ({"datatype": 16}, "datatype 16 gives it 32"),
        ({"datatype": 2}, "datatype 2 gives it 8"),
        ({"bitpix": 32}, "gives a voxel 32 bits"),
        ({"datatype": 77}, "77"),
        ({"datatype": 16, "bitpix": 32}, f"expected {352 + 4 * 6 * 7 * 8}"),
        ({"vox_offset": 0}, "vox_offset is 0"),
        ({"vox_offset": -352}, "vox_offset is -352"),
        ({"vox_offset": 348}, "at least 352"),
        ({"vox_offset": 352.5}, "whole number"),
        ({"vox_offset": 354}, "expected 1026"),
        ({"vox_offset": 1e30}, "vox_offset is 1e+30"),
        ({"vox_offset": np.nan}, "vox_offset is nan"),
        ({"scl_slope": np.inf}, "scaled by inf"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "moved by nan"),
        ({"scl_slope": 2, "scl_inter": -np.inf}, "moved by -inf"),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_contradicts_itself_or_its_file_is_refused(
    tmp_path: Path, oblique: Volume, suffix: str, fields: dict[str, float], said: str
) -> None:
    write_volume(oblique, tmp_path / "scan.nii")
    raw = rewritten(tmp_path / "scan.nii", **fields).read_bytes()
    (tmp_path / f"scan{suffix}").write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    assert said in refusal(tmp_path / f"scan{suffix}")


@pytest.mark.parametrize("fields", [{"scl_slope": 0}, {"scl_slope": np.nan, "scl_inter": np.nan}, {"bitpix": 0}])
def test_what_a_header_leaves_unstated_is_no_contradiction(
    tmp_path: Path, oblique: Volume, fields: dict[str, float]
) -> None:
    write_volume(oblique, tmp_path / "scan.nii")
    assert_same(read_volume(rewritten(tmp_path / "scan.nii", **fields)), (oblique.array, oblique.affine))


def test_a_nifti_with_an_extension_is_read(tmp_path: Path, oblique: Volume) -> None:
    image = nib.Nifti1Image(oblique.array, oblique.affine)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"thirty-two bytes of a comment..."))
    nib.save(image, tmp_path / "scan.nii.gz")
    assert_same(read_volume(tmp_path / "scan.nii.gz"), (oblique.array, oblique.affine))


def test_a_nifti_with_a_wrong_checksum_is_refused(tmp_path: Path, oblique: Volume) -> None:
    write_volume(oblique, tmp_path / "scan.nii")
    packed = bytearray(gzip.compress((tmp_path / "scan.nii").read_bytes(), compresslevel=0))
    packed[-100] ^= 0xFF  # a voxel, stored uncompressed: only the checksum can tell
    (tmp_path / "scan.nii.gz").write_bytes(packed)
    assert "CRC" in refusal(tmp_path / "scan.nii.gz")
