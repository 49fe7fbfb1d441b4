"""A mask carries both forms of its scan, so that every program, of whichever it reads, finds it on the scan."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea.io.content import first_bytes
from meddelinea.io.nifti import from_nibabel, to_nibabel
from meddelinea.io.volumes import read_scan, write_volume
from meddelinea.volume import Volume
from support.reading import refusal, remarks
from support.spoiled_scans import rewritten

SHAPE = (40, 30, 20)
AFFINE = np.array([[-0.8, 0, 0, 17.5], [0, 0.9, 0, -120.25], [0, 0, 3.0, 812.0], [0, 0, 0, 1]])
SHEAR = np.eye(4) + np.eye(4, k=1) * [0, 0.002, 0.0015, 0]
MOVED = np.array([[1, 0, 0, 30], [0, 1, 0, -40], [0, 0, 1, 25], [0, 0, 0, 1.0]]) @ AFFINE
PLACING = ("sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x")


def turn(degrees: float) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def scan(
    path: Path, sform: tuple[np.ndarray | None, int], qform: tuple[np.ndarray | None, int], **fields: float
) -> Path:
    """A NIfTI with those forms and codes; `fields` of its header are then set in the file itself."""
    array = np.random.default_rng(0).integers(-1000, 1000, SHAPE, dtype=np.int16)
    image = nib.Nifti1Image(array, AFFINE)
    image.set_sform(*sform)
    image.set_qform(*qform)
    nib.save(image, path)
    return rewritten(path, **fields)


FORMS: dict[str, Callable[[Path], Path]] = {
    "both": lambda path: scan(path, (AFFINE, 1), (AFFINE, 1)),
    "a moved sform": lambda path: scan(path, (MOVED, 2), (AFFINE, 1)),
    "a moved qform": lambda path: scan(path, (AFFINE, 1), (MOVED, 2)),
    "a turned sform": lambda path: scan(path, (turn(15) @ AFFINE, 2), (AFFINE, 1)),
    "a sheared sform": lambda path: scan(path, (SHEAR @ AFFINE, 1), (AFFINE, 1)),
    "a sheared sform alone": lambda path: scan(path, (SHEAR @ AFFINE, 1), (None, 0)),
    "a qform alone": lambda path: scan(path, (None, 0), (turn(15) @ AFFINE, 1)),
    "a sform alone": lambda path: scan(path, (turn(15) @ AFFINE, 1), (None, 0)),
    "neither": lambda path: scan(path, (None, 0), (None, 0)),
    "an atlas": lambda path: scan(path, (MOVED, 4), (AFFINE, 3)),
    "no qfac": lambda path: scan(path, (None, 0), (np.diag([0.8, 0.9, 3.0, 1.0]), 1), pixdim0=0),
    "a quaternion that is a little long": lambda path: scan(
        path, (None, 0), (np.diag([-0.8, -0.9, 3.0, 1]), 1), quatern_d=1.001
    ),
    "metres": lambda path: scan(path, (np.diag([1e-3, 1e-3, 1e-3, 1]) @ AFFINE, 1), (None, 0), xyzt_units=1),
    "a first voxel size of 0 beside a sform": lambda path: scan(path, (AFFINE, 1), (AFFINE, 1), pixdim1=0),
}


def geometry(path: Path) -> np.ndarray | str:
    """Where SimpleITK has eight corners, or that it does not open the file."""
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return "refused"
    corners = np.array(np.meshgrid(*((0, n - 1) for n in SHAPE), indexing="ij")).reshape(3, -1).T
    return np.array([image.TransformIndexToPhysicalPoint([int(i) for i in corner]) for corner in corners])


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_a_mask_lies_on_its_scan_for_readers_of_either_form(tmp_path: Path, make: Callable, ending: str) -> None:
    source = make(tmp_path / "scan.nii")
    read = read_scan(source)
    mask = Volume((read.volume.array > 0).astype(np.uint8), read.volume.affine)
    write_volume(mask, tmp_path / f"mask{ending}", read.forms)

    np.testing.assert_array_equal(geometry(tmp_path / f"mask{ending}"), geometry(source))
    ours, theirs = (
        nib.Nifti1Header(first_bytes(path)[:348], check=False) for path in (tmp_path / f"mask{ending}", source)
    )
    assert {name: ours[name].tolist() for name in PLACING} == {name: theirs[name].tolist() for name in PLACING}
    np.testing.assert_array_equal(ours["pixdim"][:4], theirs["pixdim"][:4])
    np.testing.assert_array_equal(read_scan(tmp_path / f"mask{ending}").volume.affine, read.volume.affine)


def test_an_image_in_memory_hands_its_forms_on_and_one_that_was_moved_does_not(tmp_path: Path) -> None:
    image = nib.load(FORMS["a moved sform"](tmp_path / "scan.nii"))
    kept = from_nibabel(image)
    made = to_nibabel(kept.volume, kept.forms)
    np.testing.assert_array_equal(made.affine, image.affine)
    header = made.header
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-4)
    np.testing.assert_allclose(header.get_sform(), MOVED, atol=1e-4)

    moved = from_nibabel(nib.Nifti1Image(np.asarray(image.dataobj), turn(30) @ AFFINE, image.header))
    np.testing.assert_allclose(moved.volume.affine, turn(30) @ AFFINE, atol=1e-4)
    header = to_nibabel(moved.volume, moved.forms).header
    for form in (header.get_sform(), header.get_qform()):
        np.testing.assert_allclose(form, turn(30) @ AFFINE, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("both", []),
        ("a sheared sform", []),
        ("a qform alone", []),
        ("a sform alone", []),
        ("a moved sform", [("forms_differ", "warn")]),
        ("a moved qform", [("forms_differ", "warn")]),
        ("a turned sform", [("forms_differ", "warn")]),
        ("an atlas", [("forms_differ", "warn")]),
        ("neither", [("no_geometry", "warn")]),
        ("a first voxel size of 0 beside a sform", [("spacing_conflict", "warn")]),
    ],
)
def test_forms_that_lie_apart_are_remarked_upon(tmp_path: Path, name: str, expected: list[tuple[str, str]]) -> None:
    assert remarks(FORMS[name](tmp_path / "scan.nii")) == expected


def test_the_remark_names_both_places_and_how_far_they_are_apart(tmp_path: Path) -> None:
    (finding,) = read_scan(FORMS["a moved sform"](tmp_path / "scan.nii")).findings
    assert "(47.5, -160.2, 837.0) mm by the sform (code 2)" in finding.message
    assert "(17.5, -120.2, 812.0) mm by the qform (code 1)" in finding.message
    assert f"up to {np.linalg.norm([30, 40, 25]):.1f} mm apart" in finding.message


def test_oblique_forms_that_agree_are_not_taken_for_turned(tmp_path: Path) -> None:
    """At 45 degrees rounding decides which patient axis a voxel axis is closest to."""
    for degrees in (44.99, 45.0, 45.01, 135.0):
        path = scan(tmp_path / "scan.nii", (turn(degrees + 0.02) @ AFFINE, 1), (turn(degrees) @ AFFINE, 1))
        assert remarks(path) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sform_code": 0, "pixdim2": 0}, "0.8 x 0 x 3"),
        ({"sform_code": 0, "pixdim2": -0.9}, "0.8 x -0.9 x 3"),
        ({"sform_code": 0, "pixdim3": np.nan}, "nan"),
        ({"sform_code": 0, "qform_code": 0, "pixdim3": -3}, "-3"),
        ({"sform_code": 0, "quatern_b": 3.0}, "quaternion (3"),
        ({"sform_code": 0, "quatern_c": np.nan}, "nan"),
        ({"sform_code": -4}, "sform_code is -4"),
        ({"qform_code": 258}, "qform_code is 258"),
        ({"srow_x0": np.inf}, "inf"),
        ({"srow_z3": 1e12}, "1e+12"),
        ({"srow_z3": 1e30}, "1e+30"),
        ({"srow_x0": 1e30}, "1e+30"),
        ({"sform_code": 0, "qoffset_y": -1e12}, "1e+12"),
        ({"sform_code": 0, "pixdim1": 1e20}, "1e+20"),
    ],
)
def test_a_place_that_cannot_be_is_refused(tmp_path: Path, fields: dict[str, float], said: str) -> None:
    assert said in refusal(scan(tmp_path / "scan.nii", (AFFINE, 1), (AFFINE, 1), **fields))
