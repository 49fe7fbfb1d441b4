"""Volumes keep each voxel at its place in the patient, whichever way their axes run."""

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from meddelinea.errors import InputRefusedError
from meddelinea.volume import Volume
from support.orientations import ORIENTATIONS


def volume_in(orientation: str) -> Volume:
    """Voxels with distinct values, spacing 1.5 x 0.7 x 4 mm, axes 11 degrees off `orientation`."""
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(orientation)), (0, 0, 0))[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([0.1, -0.15, 0.05]).as_matrix() @ axes.T @ np.diag([1.5, 0.7, 4.0])
    affine[:3, 3] = -12.5, 80.0, 301.0
    return Volume(np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5), affine)


def positions_by_value(volume: Volume) -> np.ndarray:
    """(voxels, 3) patient position of each voxel, in the order of the voxels' values."""
    voxels = np.argwhere(np.ones(volume.array.shape, bool))
    return nib.affines.apply_affine(volume.affine, voxels)[np.argsort(volume.array[tuple(voxels.T)])]


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("source", ORIENTATIONS)
def test_reorienting_keeps_every_voxel_in_its_place_and_is_undone_exactly(source: str) -> None:
    volume = volume_in(source)
    assert volume.orientation == source
    for target in ORIENTATIONS:
        turned = volume.reorient(target)
        assert turned.orientation == target
        np.testing.assert_allclose(positions_by_value(turned), positions_by_value(volume), atol=1e-9)
        back = turned.reorient(source)
        np.testing.assert_array_equal(back.array, volume.array)
        np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)


@pytest.mark.parametrize("source", ORIENTATIONS)
def test_reorienting_to_ras_is_nibabels_closest_canonical(source: str) -> None:
    volume = volume_in(source)
    theirs = nib.as_closest_canonical(nib.Nifti1Image(volume.array, volume.affine))
    ours = volume.reorient("RAS")
    np.testing.assert_array_equal(ours.array, np.asanyarray(theirs.dataobj))
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-9)


def test_spacing_and_obliqueness_are_those_the_affine_was_built_from() -> None:
    volume = volume_in("LPS")
    np.testing.assert_allclose(volume.spacing_mm, (1.5, 0.7, 4.0))
    tilted = np.eye(4)
    tilted[:3, :3] = Rotation.from_euler("x", 20, degrees=True).as_matrix()
    assert Volume(np.zeros((2, 2, 2)), tilted).obliqueness_deg == pytest.approx(20)


def test_a_voxel_of_a_tilted_gantry_is_the_slanted_box_between_its_neighbours() -> None:
    # Slices 5 mm further along the table, which the gantry's tilt of 20 degrees shifts aside: the slab between two of
    # them is 5 cos 20 mm thick, and a voxel 0.8 x 0.9 mm of it.
    tilt = np.deg2rad(20)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0.8, 0, 0], [0, -0.9 * np.cos(tilt), 0], [0, 0.9 * np.sin(tilt), 5.0]])
    tilted = Volume(np.zeros((2, 2, 2)), affine)
    assert tilted.voxel_ml == pytest.approx(0.8 * 0.9 * 5.0 * np.cos(tilt) / 1000)
    assert np.prod(tilted.spacing_mm) / 1000 == pytest.approx(tilted.voxel_ml / np.cos(tilt))  # what spacings would say
    for orientation in ORIENTATIONS:  # whichever way the axes run, and mirrored ones included
        assert volume_in(orientation).voxel_ml == pytest.approx(1.5 * 0.7 * 4.0 / 1000)


@pytest.mark.parametrize("source", ORIENTATIONS)
def test_the_corners_are_where_nibabel_places_the_corner_voxels(source: str) -> None:
    volume = volume_in(source)
    ends = [(0, n - 1) for n in volume.shape]
    voxels = [(i, j, k) for i in ends[0] for j in ends[1] for k in ends[2]]
    np.testing.assert_allclose(volume.corners_mm(), nib.affines.apply_affine(volume.affine, voxels))
    moved = volume.affine.copy()
    moved[:3, 3] += 3.0, 0.0, -4.0
    assert volume.corner_distance_mm(moved) == pytest.approx(5.0)


def test_slices_run_along_k_with_rows_along_j_and_make_the_volume_again() -> None:
    volume = volume_in("LPS")
    slices = volume.slices()
    assert slices.shape == volume.shape[::-1]
    for i, j, k in np.ndindex(volume.shape):
        assert slices[k, j, i] == volume.array[i, j, k]
    again = Volume.from_slices(slices, volume.affine)
    np.testing.assert_array_equal(again.array, volume.array)


@pytest.mark.parametrize("source", ORIENTATIONS)
def test_a_grid_is_continued_to_where_another_volume_reaches(source: str) -> None:
    whole = volume_in("LPS")
    cut = np.eye(4)
    cut[:3, 3] = 1, 0, 2
    piece = Volume(whole.array[1:3, :3, 2:4], whole.affine @ cut)
    affine, shape = piece.grid_over(whole.reorient(source))
    assert shape == whole.shape
    np.testing.assert_allclose(affine, whole.affine, atol=1e-9)
    affine, shape = whole.grid_over(piece.reorient(source))  # which reaches nowhere beyond it
    assert shape == whole.shape
    np.testing.assert_array_equal(affine, whole.affine)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4, 2), (4, 0, 4)])
def test_an_array_that_is_no_volume_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputRefusedError, match="shape"):
        Volume(np.zeros(shape), np.eye(4))


@pytest.mark.parametrize(
    "affine", [np.eye(3), np.diag([1.0, 1.0, 0.0, 1.0]), np.diag([1.0, np.nan, 1.0, 1.0])], ids=["3x3", "flat", "nan"]
)
def test_an_affine_that_places_no_voxel_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(InputRefusedError, match="affine"):
        Volume(np.zeros((2, 2, 2)), affine)


@pytest.mark.parametrize("source", ORIENTATIONS)
def test_a_piece_of_a_volume_goes_back_to_its_place_from_any_orientation(source: str) -> None:
    whole = volume_in("LPS")
    cut = np.eye(4)
    cut[:3, 3] = 1, 0, 2
    piece = Volume(whole.array[1:3, :, 2:4], whole.affine @ cut)
    expected = np.zeros_like(whole.array)
    expected[1:3, :, 2:4] = whole.array[1:3, :, 2:4]
    back = piece.reorient(source).onto(whole.affine, whole.array.shape)
    assert back is not None
    np.testing.assert_array_equal(back.array, expected)
    np.testing.assert_array_equal(back.affine, whole.affine)
    assert whole.reorient(source).onto(piece.affine, piece.array.shape) is None  # voxels would be lost


@pytest.mark.parametrize(
    ("turn", "shift"),
    [
        (np.eye(3), (0.2, 0, 0)),
        (np.diag([1, 1, 1.05]), (0, 0, 0)),
        (Rotation.from_euler("z", 3, degrees=True).as_matrix(), (0, 0, 0)),
    ],
    ids=["between voxels", "other spacing", "turned"],
)
def test_a_volume_between_the_voxels_of_a_grid_is_not_put_onto_it(turn: np.ndarray, shift: tuple[float, ...]) -> None:
    change = np.eye(4)
    change[:3, :3], change[:3, 3] = turn, shift
    whole = volume_in("LPS")
    cut = np.eye(4)
    cut[:3, 3] = 1, 1, 2
    piece = Volume(whole.array[1:3, 1:3, 2:4], whole.affine @ cut @ change)
    assert piece.onto(whole.affine, whole.array.shape) is None
