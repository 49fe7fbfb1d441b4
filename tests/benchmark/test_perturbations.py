"""Perturbations against closed forms and SimpleITK, on spheres in soft tissue and on a part of a real CT."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
from scipy import ndimage

from meddelinea.benchmark.perturbations import PERTURBATIONS
from meddelinea.benchmark.perturbations.geometry import (
    body,
    canonical,
    half_of_slices,
    off_centre,
    round_field,
    square_field,
    thick_slices,
    thin_slices,
    turned,
)
from meddelinea.benchmark.perturbations.intensities import (
    ARTERIAL_HU,
    UNENHANCED_HU,
    contrast_phase,
    noisy,
    sharp_kernel,
    smooth_kernel,
    windowed,
    without_table,
)
from meddelinea.data.case import LabelledScan, read_case
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.data.preprocess import ORIENTATION
from meddelinea.errors import InputRefusedError
from meddelinea.volume import Volume
from support.scans import as_ct, as_mr

ORGANS = ("liver", "aorta", "gallbladder")
SPACING = np.array([2.0, 2.2, 2.5])
SHAPE = (80, 70, 36)
#: Millimetres from the grid's first voxel: centre and radius.
LIVER, AORTA = ((52.0, 80.0, 45.0), 22.0), ((110.0, 90.0, 50.0), 12.0)
TOLERANCE_MM = 0.1


def grid_mm() -> np.ndarray:
    return np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING


@pytest.fixture(scope="module")
def case() -> LabelledScan:
    """Two organs in an elliptic cylinder of soft tissue on a table, noise of 10 HU, axes LPS."""
    mm = grid_mm()
    rng = np.random.default_rng(0)
    ids = np.zeros(SHAPE, np.uint8)
    for index, (centre, radius) in enumerate((LIVER, AORTA), start=1):
        ids[((mm - centre) ** 2).sum(axis=-1) < radius**2] = index
    x, y = mm[..., 0] - 80, mm[..., 1] - 75
    tissue = (x / 70) ** 2 + (y / 55) ** 2 < 1
    hu = np.where(tissue, 40.0, -1000.0) + 60.0 * (ids == 1) + 110.0 * (ids == 2)
    hu = np.where((y > 63) & (y < 68), 200.0, hu) + rng.normal(0, 10, SHAPE)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    affine[:3, 3] = (90.0, 70.0, -300.0)
    return canonical(
        LabelledScan(scan=as_ct(Volume(hu.astype(np.float32), affine)), mask=Volume(ids, affine), organs=ORGANS)
    )


@pytest.fixture(scope="module")
def real(data: Path) -> LabelledScan:
    """24 slices of a real CT with 13 organs, clipped at -125 HU."""
    cases = find_cases("btcv", data / "btcv").cases
    read = read_case(next(c for c in cases if c.name == "img0027"), organs_of(cases))
    middle = int(ndimage.center_of_mass(read.mask.array > 0)[2])
    affine = read.volume.affine @ nib.affines.from_matvec(np.eye(3), (0, 0, middle - 12))
    box = np.s_[:, :, middle - 12 : middle + 12]
    return canonical(read.with_voxels(Volume(read.volume.array[box], affine), Volume(read.mask.array[box], affine)))


def centroid_mm(case: LabelledScan, organ: str) -> np.ndarray:
    index = np.argwhere(case.mask.array == case.organs.index(organ) + 1).mean(axis=0)
    return nib.affines.apply_affine(case.mask.affine, index)


def sphere_mm(case: LabelledScan, sphere: tuple[tuple[float, float, float], float]) -> np.ndarray:
    """Where a sphere's centre lies in the patient, from the phantom's plan."""
    return nib.affines.apply_affine(case.volume.affine, np.array(sphere[0]) / SPACING)


def brightness_centre_mm(case: LabelledScan) -> np.ndarray:
    """Where the aorta's grey values, which nothing else in the body has, are."""
    near = ndimage.binary_dilation(case.mask.array == 2, iterations=2)
    index = np.argwhere(near)
    return np.average(nib.affines.apply_affine(case.volume.affine, index), axis=0, weights=case.volume.array[near] - 40)


# All of them


@pytest.mark.parametrize(("name", "perturb"), PERTURBATIONS, ids=[name for name, _ in PERTURBATIONS])
def test_each_is_deterministic_pure_and_keeps_scan_and_mask_together(
    case: LabelledScan, name: str, perturb: object
) -> None:
    before = case.volume.array.copy(), case.mask.array.copy()
    first, second = perturb(case), perturb(case)  # type: ignore[operator]
    np.testing.assert_array_equal(first.volume.array, second.volume.array)
    np.testing.assert_array_equal(first.mask.array, second.mask.array)
    np.testing.assert_array_equal(case.volume.array, before[0])
    np.testing.assert_array_equal(case.mask.array, before[1])
    assert first.volume.array.shape == first.mask.array.shape
    np.testing.assert_array_equal(first.volume.affine, first.mask.affine)
    assert (first.volume.orientation, first.scan.modality, first.organs) == (ORIENTATION, "CT", ORGANS)
    assert first.volume.array.dtype == np.float32
    assert first.mask.array.dtype == np.uint8
    assert np.isfinite(first.volume.array).all()
    changed = first.volume.array.shape != before[0].shape or not np.array_equal(first.volume.array, before[0])
    assert changed == (name != "as it is" and not name.startswith("field"))  # the phantom is smaller than those


def test_a_scan_in_other_axes_is_the_same_case(case: LabelledScan) -> None:
    other = canonical(case.with_voxels(case.volume.reorient("SRA"), case.mask.reorient("SRA")))
    np.testing.assert_array_equal(other.volume.array, case.volume.array)
    np.testing.assert_array_equal(other.mask.array, case.mask.array)
    np.testing.assert_allclose(other.volume.affine, case.volume.affine)


def test_an_mr_and_a_mask_on_another_grid_are_refused(case: LabelledScan) -> None:
    with pytest.raises(InputRefusedError, match="expected a CT"):
        canonical(replace(case, scan=as_mr(case.volume)))
    with pytest.raises(InputRefusedError, match="expected one grid"):
        canonical(replace(case, mask=Volume(case.mask.array[:-1], case.mask.affine)))


# Slices


@pytest.mark.parametrize(
    ("perturb", "slice_mm"), [(thin_slices, 1.0), (thick_slices, 5.0), (thick_slices, 8.0), (thick_slices, 10.0)]
)
def test_anatomy_keeps_its_place_in_other_slices(case: LabelledScan, perturb: object, slice_mm: float) -> None:
    result = perturb(case, slice_mm)  # type: ignore[operator]
    np.testing.assert_allclose(result.volume.spacing_mm, (2.0, 2.2, slice_mm))
    assert result.volume.array.shape[2] == {1.0: 88, 5.0: 18, 8.0: 11, 10.0: 9}[slice_mm]
    # The grey values of a sphere, and its labels, up to what few and thick slices of it can tell.
    np.testing.assert_allclose(brightness_centre_mm(result), brightness_centre_mm(case), atol=0.3)
    limit = TOLERANCE_MM if slice_mm <= 5 else 0.1 * slice_mm
    np.testing.assert_allclose(centroid_mm(result, "liver"), sphere_mm(case, LIVER), atol=limit)


def test_slabs_of_whole_slices_average_a_ramp_exactly_and_others_as_their_overlaps_say(case: LabelledScan) -> None:
    ramp = np.broadcast_to(np.arange(SHAPE[2], dtype=np.float32) * 2.5, SHAPE)
    on_ramp = case.with_grey(np.ascontiguousarray(ramp))
    for slice_mm in (5.0, 10.0):
        slabs = thick_slices(on_ramp, slice_mm)
        z_mm = slabs.volume.affine[2, 3] + slice_mm * np.arange(slabs.volume.array.shape[2]) + 300.0
        np.testing.assert_allclose(slabs.volume.array[3, 4], z_mm, rtol=1e-6)
    fine = np.repeat(ramp[3, 4], 100)  # 0.025 mm; a slab of 8 mm is 320 of them
    expected = fine[: 11 * 320].reshape(11, 320).mean(axis=1)
    np.testing.assert_allclose(thick_slices(on_ramp, 8.0).volume.array[3, 4], expected, rtol=1e-5)


def test_slices_that_are_as_thick_already_stay_and_a_scan_thinner_than_a_slab_is_one_slice(case: LabelledScan) -> None:
    assert thick_slices(case, 2.5) is case
    single = thick_slices(case, 500.0)
    np.testing.assert_allclose(single.volume.array[:, :, 0], case.volume.array.mean(axis=2), rtol=1e-4, atol=0.01)
    assert single.volume.affine[2, 3] == pytest.approx(-300.0 + 2.5 * 35 / 2)


def test_thin_slices_hold_the_originals(case: LabelledScan) -> None:
    thin = thin_slices(case, 1.25)
    np.testing.assert_allclose(thin.volume.array[:, :, ::2], case.volume.array, atol=1e-2)
    np.testing.assert_array_equal(thin.mask.array[:, :, ::2], case.mask.array)


# Position


@pytest.mark.parametrize("angle_deg", [10.0, 30.0, -20.0])
def test_a_turned_sphere_is_where_the_rotation_puts_it(case: LabelledScan, angle_deg: float) -> None:
    result = turned(case, angle_deg)
    np.testing.assert_array_equal(result.volume.affine, case.volume.affine)
    centre = nib.affines.apply_affine(case.volume.affine, (np.array(SHAPE) - 1) / 2)
    angle = np.deg2rad(angle_deg)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    for organ, sphere in (("liver", LIVER), ("aorta", AORTA)):
        place = centre + rotation @ (sphere_mm(case, sphere) - centre)
        np.testing.assert_allclose(centroid_mm(result, organ), place, atol=0.15)
    place = centre + rotation @ (brightness_centre_mm(case) - centre)
    np.testing.assert_allclose(brightness_centre_mm(result), place, atol=0.1)


def test_turning_is_simpleitks(case: LabelledScan) -> None:
    image = sitk.GetImageFromArray(np.ascontiguousarray(case.volume.array.transpose(2, 1, 0)))
    image.SetSpacing(SPACING.tolist())  # axes LPS are ITK's
    image.SetOrigin((case.volume.affine[:3, 3] * (-1, -1, 1)).tolist())
    middle = image.TransformContinuousIndexToPhysicalPoint(((np.array(SHAPE) - 1) / 2).tolist())
    # ITK maps from the result to the source: the inverse of the patient's motion. The angle is the same in LPS.
    transform = sitk.Euler3DTransform(middle, 0.0, 0.0, -np.deg2rad(20.0))
    theirs = sitk.GetArrayFromImage(sitk.Resample(image, transform, sitk.sitkLinear, -1234.0)).transpose(2, 1, 0)
    ours = turned(case, 20.0).volume.array
    inside = ndimage.binary_erosion(theirs != -1234.0, np.ones((5, 5, 1)), border_value=1)
    assert inside.mean() > 0.7
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.05)
    assert (ours[0, 0] == case.air).all()


def test_off_centre_by_whole_voxels_and_what_leaves_is_lost(case: LabelledScan) -> None:
    result = off_centre(case, 40.0)  # 20 voxels towards the left, the direction of I
    np.testing.assert_array_equal(result.volume.array[20:], case.volume.array[:-20])
    assert (result.volume.array[:20] == case.air).all()
    assert not result.mask.array[:20].any()
    np.testing.assert_allclose(centroid_mm(result, "liver") - centroid_mm(case, "liver"), (-40.0, 0, 0), atol=1e-9)
    gone = off_centre(case, 80.0)
    assert (gone.mask.array == 1).any()
    assert not (gone.mask.array == 2).any()  # the aorta lay 110 of 160 mm to the left
    assert not off_centre(case, 500.0).mask.array.any()


# Field of view


@pytest.mark.parametrize("part", ["lower", "middle", "upper"])
def test_half_of_the_slices(case: LabelledScan, part: str) -> None:
    result = half_of_slices(case, part)  # type: ignore[arg-type]
    start = {"lower": 0, "middle": 9, "upper": 18}[part]
    np.testing.assert_array_equal(result.volume.array, case.volume.array[:, :, start : start + 18])
    np.testing.assert_array_equal(result.mask.array, case.mask.array[:, :, start : start + 18])
    assert result.volume.affine[2, 3] == pytest.approx(-300.0 + 2.5 * start)
    if part == "middle":  # holds the aorta whole
        np.testing.assert_allclose(centroid_mm(result, "aorta"), sphere_mm(case, AORTA), atol=TOLERANCE_MM)


def test_a_square_field_is_about_the_body_and_anatomy_keeps_its_place(case: LabelledScan) -> None:
    result = square_field(case, 120.0)
    assert result.volume.array.shape == (60, 55, 36)
    np.testing.assert_allclose(np.array(result.volume.array.shape[:2]) * result.volume.spacing_mm[:2], 120, atol=2)
    middle = nib.affines.apply_affine(result.volume.affine, (np.array(result.volume.array.shape) - 1) / 2)
    body_centre = nib.affines.apply_affine(case.volume.affine, (80 / SPACING[0], 75 / SPACING[1], 0))
    np.testing.assert_allclose(middle[:2], body_centre[:2], atol=4.0)
    np.testing.assert_allclose(centroid_mm(result, "aorta"), sphere_mm(case, AORTA), atol=TOLERANCE_MM)
    np.testing.assert_array_equal(square_field(case, 900.0).volume.array, case.volume.array)


def test_a_round_field_is_air_in_the_corners(case: LabelledScan) -> None:
    result = round_field(case, 100.0)
    i, j, _ = result.volume.array.shape
    x, y = (np.arange(i) - (i - 1) / 2)[:, None] * 2.0, (np.arange(j) - (j - 1) / 2)[None] * 2.2
    distance = np.hypot(x, y)
    assert (result.volume.array[distance > 53] == case.air).all()
    assert not result.mask.array[distance > 53].any()
    whole = square_field(case, 100.0)
    np.testing.assert_array_equal(result.volume.affine, whole.volume.affine)
    np.testing.assert_array_equal(result.volume.array[distance < 47], whole.volume.array[distance < 47])
    np.testing.assert_array_equal(result.mask.array[distance < 47], whole.mask.array[distance < 47])


# Grey values


def test_a_window_clips(case: LabelledScan) -> None:
    result = windowed(case, -50.0, 200.0).volume.array
    assert (result.min(), result.max()) == (-50.0, 200.0)
    inside = (case.volume.array > -50) & (case.volume.array < 200)
    np.testing.assert_array_equal(result[inside], case.volume.array[inside])


def test_noise_has_the_stated_width_and_no_memory_of_the_mask(case: LabelledScan) -> None:
    added = {sigma: noisy(case, sigma).volume.array - case.volume.array for sigma in (15.0, 60.0)}
    for sigma, noise in added.items():
        assert noise.std() == pytest.approx(sigma, rel=0.01)  # 200,160 voxels
        assert abs(noise.mean()) < 0.01 * sigma
        neighbours = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
        assert abs(neighbours) < 0.01  # white
    np.testing.assert_allclose(added[60.0], 4 * added[15.0], atol=1e-3)
    other = case.with_grey(case.volume.array + np.float32(1.0))
    assert not np.allclose(noisy(other, 15.0).volume.array - other.volume.array, added[15.0], atol=1.0)


def test_what_was_clipped_gets_no_noise(case: LabelledScan) -> None:
    clipped = windowed(case, -125.0, 275.0)
    noisy_ = noisy(clipped, 60.0).volume.array
    air = clipped.volume.array == -125.0
    assert air.mean() > 0.2
    assert (noisy_[air] == -125.0).all()
    assert (noisy_ - clipped.volume.array)[~air].std() == pytest.approx(60.0, rel=0.02)


def test_kernels_pass_or_raise_a_wave_as_their_transfer_says(case: LabelledScan) -> None:
    wavelength_mm = 16.0
    wave = np.cos(2 * np.pi * grid_mm()[..., 0] / wavelength_mm).astype(np.float32) * 100
    along_z = np.cos(2 * np.pi * grid_mm()[..., 2] / wavelength_mm).astype(np.float32) * 100
    passed = np.exp(-2 * (np.pi * 1.5 / wavelength_mm) ** 2)
    inner = np.s_[10:-10, 10:-10]
    soft, sharp = smooth_kernel(case.with_grey(wave), 1.5), sharp_kernel(case.with_grey(wave), 1.5, 1.0)
    np.testing.assert_allclose(soft.volume.array[inner], passed * wave[inner], atol=2)
    np.testing.assert_allclose(sharp.volume.array[inner], (2 - passed) * wave[inner], atol=2)
    np.testing.assert_allclose(smooth_kernel(case.with_grey(along_z), 1.5).volume.array, along_z, atol=1e-3)


def test_without_its_table_the_body_is_the_same(case: LabelledScan) -> None:
    mm = grid_mm()
    x, y = mm[..., 0] - 80, mm[..., 1] - 75
    inside = (x / 67) ** 2 + (y / 52) ** 2 < 1
    table = (y > 63) & (y < 68)
    result = without_table(case).volume.array
    np.testing.assert_array_equal(result[inside], case.volume.array[inside])
    assert (result[table] == case.air).all()
    outside = (x / 74) ** 2 + (y / 59) ** 2 > 1
    assert (result[outside] == case.air).all()


def test_the_body_of_a_real_scan_holds_its_organs_and_not_its_table(real: LabelledScan) -> None:
    found = body(real.volume)
    assert found[real.mask.array > 0].all()
    assert 0.3 < found.mean() < 0.9
    assert (~found & (real.volume.array > -50)).any(), "a table or clothes, which are to go"


@pytest.mark.parametrize("phase", [UNENHANCED_HU, ARTERIAL_HU])
def test_a_phase_has_the_stated_means_and_leaves_what_is_far(case: LabelledScan, phase: dict[str, float]) -> None:
    result = contrast_phase(case, phase)
    for index, organ in ((1, "liver"), (2, "aorta")):
        assert result.volume.array[case.mask.array == index].mean() == pytest.approx(phase[organ], abs=0.05)
    distance = ndimage.distance_transform_edt(case.mask.array == 0, sampling=SPACING)
    far = distance > 20
    np.testing.assert_array_equal(result.volume.array[far], case.volume.array[far])
    added = result.volume.array - case.volume.array
    # Texture is kept where the field is flat, and half of the step is reached at the label's edge.
    core = ndimage.distance_transform_edt(case.mask.array == 1, sampling=SPACING) > 8
    assert added[core].std() < 0.5
    rim = (distance > 0) & (distance < 2.3) & (ndimage.distance_transform_edt(case.mask.array != 2) > 12)
    step = added[core].mean()
    assert 0.1 < (added[rim] / step).mean() < 0.5


def test_phases_of_real_organs_that_touch(real: LabelledScan) -> None:
    for phase in (UNENHANCED_HU, ARTERIAL_HU):
        result = contrast_phase(real, phase)
        for index, organ in enumerate(real.organs, start=1):
            inside = real.mask.array == index
            if organ in phase and inside.any():
                assert result.volume.array[inside].mean() == pytest.approx(phase[organ], abs=0.1), organ


def test_a_scan_without_the_organs_of_a_phase_stays(case: LabelledScan) -> None:
    assert contrast_phase(case, {"spleen": 50.0}) is case
