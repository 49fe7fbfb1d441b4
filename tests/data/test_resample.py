"""Resampling against closed forms, SimpleITK, and interpolation of every label written out."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
from scipy import ndimage
from scipy.spatial.transform import Rotation

from meddelinea.data.resample import block_mean, resample_labels, resample_linear
from meddelinea.io.volumes import read_volume
from meddelinea.volume import Volume

Triple = tuple[float, float, float]


def affine_of(spacing: Triple, turn_deg: Triple, origin: Triple) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix() @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def positions(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(I, J, K, 3) millimetres of every voxel centre."""
    return nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


GRIDS = [
    affine_of((1.0, 1.0, 1.0), (0, 0, 0), (2.5, 3.0, -4.0)),
    affine_of((0.7, -1.3, 2.2), (0, 0, 0), (3.0, 22.0, 3.3)),
    affine_of((0.9, 1.1, 1.7), (12, -20, 35), (8.0, 4.0, 6.0)),
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("turned", [False, True])
def test_a_function_that_is_affine_in_position_is_reproduced_inside_and_is_the_outside_value_beyond(
    grid: np.ndarray, turned: bool
) -> None:
    source = affine_of((1.5, 0.8, 3.0), (5, 9, -14) if turned else (0, 0, 0), (-1.0, 2.0, 0.5))
    slope, level = np.array([1.3, -0.4, 0.25]), 7.0
    volume = Volume(positions(source, (14, 25, 9)) @ slope + level, source)
    ours = resample_linear(volume, grid, (16, 14, 12), outside=-99.0)
    assert ours.array.dtype == np.float32
    place = positions(grid, (16, 14, 12))
    index = nib.affines.apply_affine(np.linalg.inv(source), place)
    last = np.array(volume.array.shape) - 1
    inside = ((index > 1e-4) & (index < last - 1e-4)).all(axis=-1)
    outside = ((index < -1e-4) | (index > last + 1e-4)).any(axis=-1)
    assert inside.sum() > 100
    assert outside.sum() > 100
    np.testing.assert_allclose(ours.array[inside], (place @ slope + level)[inside], rtol=1e-5, atol=1e-4)
    assert (ours.array[outside] == -99.0).all()


def to_sitk(volume: Volume) -> sitk.Image:
    """The same volume in ITK's terms: axes reversed in memory, coordinates LPS."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0)))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def test_linear_resampling_of_a_real_crop_is_simpleitks(data: Path) -> None:
    scan = read_volume(data / "btcv" / "img" / "img0002.nii.gz")
    start = nib.affines.from_matvec(np.eye(3), (80, 70, 60))
    crop = Volume(scan.array[80:140, 70:120, 60:80].astype(np.float32), scan.affine @ start)
    centre = nib.affines.apply_affine(crop.affine, (30, 25, 10))
    grid = affine_of((-1.1, 1.6, 2.1), (8, -15, 24), (0, 0, 0))
    shape = (40, 30, 16)
    grid[:3, 3] = centre - grid[:3, :3] @ ((np.array(shape) - 1) / 2)
    reference = to_sitk(Volume(np.zeros(shape, np.float32), grid))
    theirs = sitk.GetArrayFromImage(sitk.Resample(to_sitk(crop), reference, sitk.Transform(), sitk.sitkLinear, -1000.0))
    ours = resample_linear(crop, grid, shape, outside=-1000.0).array
    index = nib.affines.apply_affine(np.linalg.inv(crop.affine), positions(grid, shape))
    # ITK repeats the outermost voxel for half a voxel beyond its centre; the two agree up to the centres.
    inside = ((index > 1e-3) & (index < np.array(crop.array.shape) - 1.001)).all(axis=-1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(ours[inside], theirs.transpose(2, 1, 0)[inside], rtol=0, atol=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_the_first_and_last_slice_are_inside_whatever_the_affine(seed: int) -> None:
    """Products of affines miss whole numbers by rounding; a slice lost to that would be air."""
    rng = np.random.default_rng(seed)
    affine = affine_of(rng.uniform(0.6, 5, 3), rng.uniform(-4, 4, 3), rng.uniform(-500, 500, 3))
    shape = (9, 8, int(rng.integers(5, 60)))
    volume = Volume(rng.normal(size=shape), affine)
    axes = affine[:3, :3] / volume.spacing_mm
    same = np.eye(4)  # built another way, equal up to rounding
    same[:3, :3] = axes * volume.spacing_mm
    same[:3, 3] = axes @ (np.linalg.inv(axes) @ affine[:3, 3])
    np.testing.assert_allclose(resample_linear(volume, same, shape, outside=99.0).array, volume.array, atol=1e-3)


def brute_force(mask: Volume, affine: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The label with the largest share, background among them and all there is beyond the grid; and its lead."""
    index = nib.affines.apply_affine(np.linalg.inv(mask.affine) @ affine, np.moveaxis(np.indices(shape), 0, -1))
    padded = np.pad(mask.array, 2)
    at = np.moveaxis(index, -1, 0) + 2
    shares = np.stack(
        [
            ndimage.map_coordinates((padded == label).astype(float), at, order=1, cval=float(label == 0))
            for label in range(int(mask.array.max()) + 1)
        ]
    )
    ordered = np.sort(shares, axis=0)
    return shares.argmax(axis=0), ordered[-1] - ordered[-2]


@pytest.mark.parametrize("seed", range(12))
def test_labels_are_those_of_interpolating_every_label_by_itself(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Blobs of several labels beside single voxels; label 3 is absent, so that a gap in the ids is met too.
    mask = rng.integers(0, 7, (4, 5, 3)).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    speckle = rng.random(mask.shape) < 0.1
    mask[speckle] = rng.integers(0, 7, int(speckle.sum()))
    mask[mask == 3] = 0
    source = affine_of(rng.uniform(0.8, 2.5, 3), rng.uniform(-180, 180, 3), rng.uniform(-20, 20, 3))
    turn = rng.uniform(-180, 180, 3) if seed % 3 else (0, 0, 0)
    grid = source @ affine_of(rng.uniform(0.4, 1.8, 3) * rng.choice([-1, 1], 3), turn, (0, 0, 0))
    shape = (13, 12, 11)
    centre = np.array(mask.shape) / 2 + rng.uniform(-4, 4, 3)
    grid[:3, 3] = nib.affines.apply_affine(source, centre) - grid[:3, :3] @ ((np.array(shape) - 1) / 2)
    expected, lead = brute_force(Volume(mask, source), grid, shape)
    ours = resample_labels(Volume(mask, source), grid, shape).array
    assert ours.dtype == np.uint8
    clear = lead > 1e-4
    assert clear.mean() > 0.8
    assert len(np.unique(expected[clear])) > 3
    np.testing.assert_array_equal(ours[clear], expected[clear])


def test_the_same_grid_gives_the_same_labels_and_values() -> None:
    rng = np.random.default_rng(0)
    affine = affine_of((1.2, 0.9, 3.0), (20, 5, -8), (-120, 33, 900))
    mask = Volume(rng.integers(0, 14, (9, 8, 7)).astype(np.uint8), affine)
    np.testing.assert_array_equal(resample_labels(mask, affine, (9, 8, 7)).array, mask.array)
    # A larger grid around the same voxels, so that the shortcut for identical grids is not taken.
    wider = affine @ nib.affines.from_matvec(np.eye(3), (-1, -2, 0))
    np.testing.assert_array_equal(
        resample_labels(mask, wider, (11, 12, 7)).array, np.pad(mask.array, ((1, 1), (2, 2), (0, 0)))
    )
    scan = Volume(rng.normal(size=(9, 8, 7)), affine)
    np.testing.assert_allclose(resample_linear(scan, affine, (9, 8, 7), 0.0).array, scan.array, atol=1e-4)


def test_labels_on_a_grid_elsewhere_are_background() -> None:
    full, empty = (Volume(np.full((4, 4, 4), value, np.uint8), np.eye(4)) for value in (1, 0))
    elsewhere = nib.affines.from_matvec(np.eye(3), (50, 0, 0))
    assert not resample_labels(full, elsewhere, (5, 5, 5)).array.any()
    assert not resample_labels(empty, np.diag([2.0, 2.0, 2.0, 1.0]), (5, 5, 5)).array.any()


@pytest.mark.parametrize("factors", [(1, 1, 3), (2, 2, 1), (3, 2, 4)])
def test_block_mean_is_numpys_mean_and_stands_in_the_middle_of_its_blocks(factors: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    affine = affine_of((0.7, 0.8, 1.5), (10, -4, 30), (-60, 12, 400))
    volume = Volume(rng.integers(0, 900, (12, 8, 24)).astype(np.int16), affine)
    coarse = block_mean(volume, factors)
    a, b, c = factors
    expected = volume.array.reshape(12 // a, a, 8 // b, b, 24 // c, c).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(coarse.array, expected, rtol=1e-6)
    assert coarse.array.dtype == np.float32
    np.testing.assert_allclose(coarse.spacing_mm, np.multiply(volume.spacing_mm, factors))
    # A function that is affine in position has its mean in the middle of a block, so it is left as it was.
    slope = np.array([0.3, -1.1, 0.7])
    ramp = block_mean(Volume(positions(affine, (12, 8, 24)) @ slope, affine), factors)
    np.testing.assert_allclose(ramp.array, positions(ramp.affine, ramp.array.shape) @ slope, rtol=1e-5)


def test_block_mean_fills_an_incomplete_block_with_its_last_voxel() -> None:
    volume = Volume(np.arange(5.0).reshape(1, 1, 5), np.eye(4))
    np.testing.assert_allclose(block_mean(volume, (1, 1, 2)).array.ravel(), [0.5, 2.5, 4.0])
    assert block_mean(volume, (1, 1, 1)) is volume
