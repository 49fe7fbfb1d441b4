"""From a scan to the model's grid and back: the same in every orientation and format, and nothing lost on the way."""

from dataclasses import asdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
from scipy import ndimage
from scipy.spatial.transform import Rotation

from meddelinea.data.preprocess import (
    ORIENTATION,
    Preprocessing,
    intensity_window,
    mask_to_model_grid,
    to_model_grid,
    to_source_grid,
)
from meddelinea.io.volumes import read_volume
from meddelinea.labels import BTCV
from meddelinea.volume import Volume
from support.orientations import ORIENTATIONS
from support.scans import as_ct, as_mr

Case = tuple[Volume, Volume]


@pytest.fixture(scope="module")
def case(data: Path) -> Case:
    """A real abdominal CT, and its organs by the ids of BTCV."""
    scan = read_volume(data / "btcv" / "img" / "img0002.nii.gz")
    mask = read_volume(data / "btcv" / "label" / "label0002.nii.gz")
    return Volume(scan.array, scan.affine), Volume(np.rint(mask.array).astype(np.uint8), mask.affine)


def crop(volume: Volume, *box: tuple[int, int]) -> Volume:
    start = [a for a, _ in box]
    affine = volume.affine @ nib.affines.from_matvec(np.eye(3), start)
    return Volume(volume.array[tuple(slice(*side) for side in box)].copy(), affine)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def phantom(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], value: float = 40.0) -> Volume:
    """A block of tissue without air around it, centred on the origin, axes R, A, S."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing_mm
    return Volume(np.full(shape, value, np.float32), affine)


def positions(volume: Volume) -> np.ndarray:
    return nib.affines.apply_affine(volume.affine, np.moveaxis(np.indices(volume.array.shape), 0, -1))


@pytest.mark.parametrize("source", ORIENTATIONS)
def test_the_model_grid_and_the_way_back_do_not_depend_on_the_orientation(case: Case, source: str) -> None:
    box = (60, 190), (60, 190), (90, 104)
    scan, mask = (crop(volume, *box) for volume in case)
    small = Preprocessing(size=48, spacing_mm=4.0)
    reference = to_model_grid(as_ct(scan), small)
    labels = mask_to_model_grid(mask, reference)
    assert labels.array.any()

    turned = scan.reorient(source)
    model = to_model_grid(as_ct(turned), small)
    np.testing.assert_array_equal(model.array, reference.array)
    np.testing.assert_allclose(model.affine, reference.affine, atol=1e-9)
    back = to_source_grid(labels, turned)
    assert back.array.shape == turned.array.shape
    assert back.array.dtype == np.uint8
    np.testing.assert_array_equal(back.affine, turned.affine)
    expected = to_source_grid(labels, scan).reorient(source)
    for label in np.unique(labels.array)[1:]:
        assert dice(back.array == label, expected.array == label) >= 0.999
    assert dice(mask.reorient(source).array > 0, back.array > 0) > 0.8  # 4 mm pixels


def test_columns_run_to_the_left_rows_to_the_back_slices_to_the_head() -> None:
    scan = phantom((40, 40, 8), (3.0, 3.0, 3.0))
    x, y, z = np.moveaxis(positions(scan), -1, 0)
    # Tissue with a mark on the left, a brighter one at the back and the brightest at the head (RAS+).
    scan.array[(np.hypot(x + 40, y) < 8) & (z < 0)] = 150
    scan.array[(np.hypot(x, y + 40) < 8) & (z < 0)] = 200
    scan.array[(np.hypot(x, y) < 8) & (z > 5)] = 250
    model = to_model_grid(as_ct(scan), Preprocessing(size=64, spacing_mm=3.0))
    assert model.orientation == ORIENTATION == "LPS"
    grey = (model.array + 1) * 200 - 125
    for value, place in ((150, (-40, 0)), (200, (0, -40)), (250, (0, 0))):
        found = np.argwhere(np.abs(grey - value) < 10)
        column, row, level = found.mean(axis=0)
        assert column == pytest.approx(31.5 - place[0] / 3, abs=1)  # x to the right, columns to the left
        assert row == pytest.approx(31.5 - place[1] / 3, abs=1)
        assert (level > 3.5) == (value == 250)


def test_the_window_maps_to_minus_one_and_one_and_clips() -> None:
    ramp = phantom((16, 16, 9), (2.0, 2.0, 3.0))
    ramp.array[:] = np.array([-1000, -125, -25, 75, 175, 275, 300, 2000, 75], np.float32)
    model = to_model_grid(as_ct(ramp), Preprocessing(size=12, spacing_mm=2.0))
    np.testing.assert_allclose(model.array[6, 6], [-1, -1, -0.5, 0, 0.5, 1, 1, 1, 0], atol=1e-6)
    assert model.array.dtype == np.float32


def test_an_mr_is_windowed_by_its_own_percentiles() -> None:
    levels = np.arange(101) * 10.0  # a slice each, so that the k-th percentile is 10 k
    scan = Volume(np.broadcast_to(levels, (20, 20, 101)), np.diag([2.0, 2.0, 3.0, 1.0]))
    middle = Preprocessing(size=12, spacing_mm=2.0, percentiles=(10, 90), percentiles_of="scan")
    expected = np.clip((levels - 100) / 400 - 1, -1, 1)
    np.testing.assert_allclose(to_model_grid(as_mr(scan), middle).array[6, 6], expected, atol=1e-5)
    louder = Volume(7 * scan.array + 3000, scan.affine)
    np.testing.assert_allclose(to_model_grid(as_mr(louder), middle).array[6, 6], expected, atol=1e-5)


def test_air_around_the_patient_does_not_change_an_mr_window() -> None:
    rng = np.random.default_rng(0)
    tissue = rng.uniform(100.0, 1000.0, (40, 40, 20)).astype(np.float32)
    windows = {}
    for margin in (2, 30):
        air = np.abs(rng.normal(0.0, 8.0, (40 + 2 * margin, 40 + 2 * margin, 20))).astype(np.float32)
        air[margin : margin + 40, margin : margin + 40] = tissue
        scan = as_mr(Volume(air, np.eye(4)))
        windows[margin] = [intensity_window(scan, Preprocessing(percentiles_of=of)) for of in ("body", "scan")]
    np.testing.assert_allclose(windows[2][0], np.percentile(tissue, (0.5, 99.5)), rtol=0.01)
    np.testing.assert_allclose(windows[30][0], windows[2][0], rtol=0.01)
    assert windows[30][1][1] < windows[2][1][1] - 10  # as it was


def test_a_description_without_percentiles_of_means_the_whole_scan() -> None:
    content = asdict(Preprocessing())
    assert Preprocessing.from_json(content).percentiles_of == "body"
    del content["percentiles_of"]
    assert Preprocessing.from_json(content).percentiles_of == "scan"


def test_the_body_is_in_the_centre_whatever_lies_beside_it() -> None:
    scan = phantom((150, 150, 12), (2.0, 2.0, 3.0), value=-1000)
    x, y, _ = np.moveaxis(positions(scan), -1, 0)
    body = ((x - 45) / 90) ** 2 + ((y - 20) / 60) ** 2 < 1
    scan.array[body] = 50
    scan.array[(y < -90) & (y > -110) & (np.abs(x) < 140)] = 100  # a table under the patient
    scan.array[(np.abs(x - 45) < 2) & (y < -20) & (y > -95)] = 100  # a thin bridge to it
    model = to_model_grid(as_ct(scan), Preprocessing(size=128, spacing_mm=2.0))
    centre = nib.affines.apply_affine(model.affine, [63.5, 63.5, 0])
    np.testing.assert_allclose(centre[:2], (45, 20), atol=4.0)


@pytest.mark.parametrize(
    ("slice_mm", "expected"), [(0.5, 3.0), (0.625, 3.125), (1.0, 3.0), (1.25, 2.5), (1.5, 3.0), (3.0, 3.0), (5.0, 5.0)]
)
def test_thin_slices_are_averaged_in_whole_numbers_and_thick_ones_stay(slice_mm: float, expected: float) -> None:
    scan = phantom((8, 8, 30), (2.0, 2.0, slice_mm))
    scan.array[:, :, ::2] = 100.0
    model = to_model_grid(as_ct(scan), Preprocessing(size=8, spacing_mm=2.0))
    assert model.spacing_mm == pytest.approx((2.0, 2.0, expected))
    grey = (model.array[4, 4] + 1) * 200 - 125
    factor = round(expected / slice_mm)
    means = scan.array[4, 4, : 30 // factor * factor].reshape(-1, factor).mean(axis=1)
    np.testing.assert_allclose(grey[: len(means)], means, atol=0.01)
    last = nib.affines.apply_affine(model.affine, [0, 0, model.array.shape[2] - 1])[2]
    assert last == pytest.approx((30 - 1) / 2 * slice_mm, abs=expected)


@pytest.mark.parametrize("side_mm", [200.0, 500.0])
def test_a_body_larger_than_the_field_makes_the_pixels_larger(side_mm: float) -> None:
    scan = phantom((120, 80, 4), (side_mm / 120, side_mm / 120, 5.0))
    model = to_model_grid(as_ct(scan), Preprocessing(size=128, spacing_mm=2.0))
    expected = max(2.0, side_mm / 127)
    assert model.spacing_mm == pytest.approx((expected, expected, 5.0), rel=0.04)
    corners = nib.affines.apply_affine(np.linalg.inv(model.affine), positions(scan)[[0, -1]][:, [0, -1]].reshape(-1, 3))
    assert (corners[:, :2] * model.spacing_mm[0]).min() > -8.0
    assert ((127 - corners[:, :2]) * model.spacing_mm[0]).min() > -8.0


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7, 5.0), (1.0, 1.0, 1.0), (2.4, 2.4, 3.0), (0.8, 0.8, 1.25)])
def test_a_structure_of_16_mm_survives_the_way_there_and_back(spacing_mm: tuple[float, float, float]) -> None:
    scan = phantom(tuple(int(60 / s) for s in spacing_mm), spacing_mm)
    ball = np.linalg.norm(positions(scan) - (6.3, -9.1, 2.2), axis=-1) < 8
    model = to_model_grid(as_ct(scan), Preprocessing(size=64))
    there = mask_to_model_grid(Volume(ball.astype(np.uint8), scan.affine), model)
    back = to_source_grid(there, scan)
    assert dice(back.array == 1, ball) > 0.85


def turned_by_sitk(volume: Volume, degrees: float, interpolator: int) -> Volume:
    """The volume on a grid of its own spacing turned about its centre, resampled by SimpleITK."""
    spacing = np.array(volume.spacing_mm)
    centre = nib.affines.apply_affine(volume.affine, (np.array(volume.array.shape) - 1) / 2)
    affine = np.eye(4)
    turn = Rotation.from_rotvec(np.deg2rad(degrees) * np.array([2.0, -1.0, 2.0]) / 3).as_matrix()
    affine[:3, :3] = turn @ volume.affine[:3, :3]
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(volume.array.shape) - 1) / 2)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0])

    def image(array: np.ndarray, place: np.ndarray) -> sitk.Image:
        result = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        result.SetSpacing(spacing.tolist())
        result.SetOrigin((lps @ place)[:3, 3].tolist())
        result.SetDirection(((lps @ place)[:3, :3] / spacing).ravel().tolist())
        return result

    air = float(volume.array.min())
    moved = sitk.Resample(
        image(volume.array, volume.affine), image(volume.array, affine), sitk.Transform(), interpolator, air
    )
    return Volume(sitk.GetArrayFromImage(moved).transpose(2, 1, 0), affine)


def test_an_oblique_scan_is_resampled_along_the_patient_and_masks_find_their_place_again(
    case: Case,
) -> None:
    box = (60, 200), (60, 200), (70, 110)
    scan, mask = (crop(volume, *box) for volume in case)
    oblique = turned_by_sitk(scan, 15.0, sitk.sitkLinear)
    truth = turned_by_sitk(mask, 15.0, sitk.sitkNearestNeighbor)
    assert oblique.obliqueness_deg > 5
    model = to_model_grid(as_ct(oblique), Preprocessing(size=160))
    np.testing.assert_allclose(model.affine[:3, :3] / model.spacing_mm, np.diag([-1.0, -1.0, 1.0]), atol=1e-9)

    labels = mask_to_model_grid(mask, model)
    back = to_source_grid(labels, oblique)
    np.testing.assert_array_equal(back.affine, oblique.affine)
    large = [label for label in BTCV if (truth.array == label).sum() > 3000]
    assert len(large) >= 4
    for label in large:
        assert dice(back.array == label, truth.array == label) >= 0.9, BTCV[label]

    # Every grey value of the scan is found at its place in the model's image, and not one pixel beside it.
    index = np.moveaxis(nib.affines.apply_affine(np.linalg.inv(model.affine), positions(oblique)), -1, 0)
    grey = np.clip(oblique.array, -125, 275).ravel()

    def likeness(shift: tuple[int, ...]) -> float:
        found = ndimage.map_coordinates(model.array, index + np.reshape(shift, (3, 1, 1, 1)), order=1, cval=-1.0)
        return float(np.corrcoef(found.ravel(), grey)[0, 1])

    here = likeness((0, 0, 0))
    assert here > 0.95
    assert all(
        likeness(shift) < here - 0.01 for shift in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
    )


def test_the_ceiling_of_the_model_grid_on_a_real_case(case: Case) -> None:
    scan, mask = (crop(volume, (30, 230), (40, 220), (30, 139)) for volume in case)
    model = to_model_grid(as_ct(scan), Preprocessing())
    back = to_source_grid(mask_to_model_grid(mask, model), scan)
    scores = {name: dice(back.array == label, mask.array == label) for label, name in BTCV.items()}
    assert min(scores.values()) > 0.93, scores


def test_a_field_in_the_centre_is_kept_whole_and_its_voxels_are_split_evenly() -> None:
    mask = Volume(np.random.default_rng(0).integers(0, 3, (35, 50, 9)).astype(np.uint8), np.diag([1.0, 1.0, 1.0, 1.0]))
    grey = np.zeros(mask.shape, np.float32)
    grey[:20, :20] = 100.0  # all that is bright lies in a corner, where a body would be looked for
    whole = Preprocessing(size=128, spacing_mm=0.5, slice_mm=1.0, centre="field")
    model = to_model_grid(as_mr(Volume(grey, mask.affine)), whole)
    np.testing.assert_array_equal(to_source_grid(mask_to_model_grid(mask, model), mask).array, mask.array)


def test_settings_of_older_models_have_the_body_in_the_centre() -> None:
    older = {name: value for name, value in asdict(Preprocessing()).items() if name != "centre"}
    assert Preprocessing.from_json(older) == Preprocessing()
