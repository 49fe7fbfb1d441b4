"""The metrics against hand-derived shapes, MONAI and a second, plain implementation."""

import dataclasses
import math
import time

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from monai.metrics.utils import get_surface_distance
from scipy import ndimage
from scipy.spatial.transform import Rotation

from meddelinea.errors import UsageError
from meddelinea.evaluation.metrics import (
    assd_mm,
    dice,
    hd95_mm,
    hd95_pooled_mm,
    nsd,
    score_organ,
    surface_distances,
)

SPACING_MM = (3.0, 1.0, 1.0)


def box(shape, *ranges):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def random_blobs(seed, shape=(28, 32, 24)):
    """Two overlapping ragged masks, some of which touch the edge of the volume."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), 2.5)
    other = smooth + 0.4 * ndimage.gaussian_filter(rng.standard_normal(shape), 2.0)
    return smooth > 0.02, other > 0.02


def ball(shape, spacing_mm, centre_mm, radius_mm):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum((a * s - c) ** 2 for a, s, c in zip(axes, spacing_mm, centre_mm, strict=True)) <= radius_mm**2


def test_a_box_shifted_by_two_voxels_by_hand():
    # 10x10x10 voxels of 1x2x3 mm, shifted by 2 voxels (2 mm) along I. Shared: 8/10 of either.
    prediction, reference = box((20, 14, 14), (2, 12), (2, 12), (2, 12)), box((20, 14, 14), (4, 14), (2, 12), (2, 12))
    distances = surface_distances(prediction, reference, (1.0, 2.0, 3.0))
    # The surface of a box is 1000 - 8*8*8 = 488 voxels. Of the two layers that stick out, the 10x10 face is 2 mm from
    # the other's face and the ring of 36 behind it 1 mm. The eight rings further in are surface of both boxes: 0 mm.
    # The inner 8x8 of the opposite face lie 2 mm below the other's face, and no side wall is nearer.
    expected = [0.0] * (8 * 36) + [1.0] * 36 + [2.0] * (100 + 64)
    np.testing.assert_allclose(np.sort(distances.to_reference_mm), expected)
    np.testing.assert_allclose(np.sort(distances.to_prediction_mm), expected)
    assert dice(prediction, reference) == pytest.approx(0.8)
    assert assd_mm(distances) == pytest.approx(np.mean(expected))
    assert hd95_mm(distances) == hd95_pooled_mm(distances) == pytest.approx(np.percentile(expected, 95))
    assert nsd(distances, 1.0) == pytest.approx(np.mean(np.array(expected) <= 1))


def test_nested_boxes_by_hand():
    # 4 voxels inside 10 along each axis: every inner surface voxel is 3 voxels of 2 mm from the outer wall.
    outer, inner = box((14, 14, 14), (2, 12), (2, 12), (2, 12)), box((14, 14, 14), (5, 9), (5, 9), (5, 9))
    distances = surface_distances(inner, outer, (2.0, 2.0, 2.0))
    assert len(distances.to_reference_mm) == 4**3 - 2**3
    assert set(distances.to_reference_mm) == {6.0}
    assert len(distances.to_prediction_mm) == 10**3 - 8**3
    assert distances.to_prediction_mm.min() == 6.0
    assert distances.to_prediction_mm.max() == pytest.approx(6 * math.sqrt(3))  # corner to corner
    assert dice(inner, outer) == pytest.approx(2 * 64 / 1064)
    assert nsd(distances, 6.0) == pytest.approx((56 + 6 * 4 * 4) / (56 + 488))  # 4x4 outer voxels face each inner face
    assert nsd(distances, 5.9) == 0


def test_one_voxel_each_is_the_distance_between_their_centres():
    prediction, reference = np.zeros((2, 5, 9, 9), bool)
    prediction[1, 2, 3] = reference[3, 5, 4] = True
    score = score_organ("liver", prediction, reference, (2.5, 0.7, 0.8))
    expected = math.dist((2.5, 1.4, 2.4), (7.5, 3.5, 3.2))
    assert (score.hd95_mm, score.hd95_pooled_mm, score.assd_mm) == pytest.approx((expected,) * 3)
    assert score.dice == score.nsd == 0
    assert score.prediction_ml == pytest.approx(2.5 * 0.7 * 0.8 / 1000)


def test_far_blob_separates_the_two_conventions_of_hd95():
    # The blob adds (7/24)^3 of the sphere's volume, so Dice = 2 / (2 + (7/24)^3) = 0.9877.
    # Surfaces go with the square: the blob is q = 49/(576 + 49) = 7.8 % of the prediction's surface but only
    # 49/(2*576 + 49) = 4.1 % of both together: below 5 %, hence the pooled percentile is 0. In its own direction the
    # 95th percentile is the blob's quantile f = 1 - 0.05/q. Height is uniform on a sphere, so the point of that
    # quantile stands h = 2 f - 1 blob radii beyond the blob's centre, at sqrt(D^2 + 49 + 14 D h) from the centre of the
    # large sphere if the blob's is at D. That less 24 mm is to be 34 mm: a quadratic equation, D = 59.5 mm.
    radius_mm, blob_mm, target_mm = 24.0, 7.0, 34.0
    height = 2 * (1 - 0.05 * (radius_mm**2 + blob_mm**2) / blob_mm**2) - 1
    half = blob_mm * height
    distance_mm = -half + math.sqrt(half**2 - blob_mm**2 + (radius_mm + target_mm) ** 2)

    shape, centre_mm = (22, 64, 128), (31.5, 32.0, 28.0)
    reference = ball(shape, SPACING_MM, centre_mm, radius_mm)
    prediction = reference | ball(shape, SPACING_MM, (31.5, 32.0, 28.0 + distance_mm), blob_mm)
    score = score_organ("spleen", prediction, reference, SPACING_MM)
    assert score.dice == pytest.approx(2 / (2 + (blob_mm / radius_mm) ** 3), abs=1e-3)
    assert math.floor(score.dice * 1000) / 1000 == 0.987
    assert score.hd95_mm == pytest.approx(target_mm, abs=1)
    assert score.hd95_pooled_mm == 0
    assert score.nsd < 1


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI warns of its own call
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (3.0, 0.8, 1.3)])
def test_agrees_with_monai(seed, spacing_mm):
    prediction, reference = random_blobs(seed)
    assert (prediction | reference)[0].any()  # the volume's edge is part of the test
    p, r = torch.from_numpy(prediction)[None, None], torch.from_numpy(reference)[None, None]
    ours = score_organ("liver", prediction, reference, spacing_mm, nsd_tolerance_mm=1.0)
    same = {"include_background": True, "spacing": spacing_mm}
    assert ours.hd95_mm == pytest.approx(compute_hausdorff_distance(p, r, percentile=95, **same).item(), rel=1e-5)
    assert ours.assd_mm == pytest.approx(
        compute_average_surface_distance(p, r, symmetric=True, **same).item(), rel=1e-5
    )
    # With sub-voxels MONAI weighs the surface by area: another definition, not compared.
    assert ours.nsd == pytest.approx(compute_surface_dice(p, r, [1.0], **same).item(), rel=1e-5)
    assert ours.dice == pytest.approx(2 * (p & r).sum().item() / (p.sum() + r.sum()).item())


@pytest.mark.parametrize("seed", range(3))
def test_pooled_hd95_agrees_with_a_plain_distance_transform(seed):
    prediction, reference = random_blobs(seed, (14, 20, 22))

    def border(mask):
        padded = np.pad(mask, 1)
        inside = np.ones_like(mask)
        for axis in range(3):
            for step in (-1, 1):
                inside &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        return mask & ~inside

    edges = [border(prediction), border(reference)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=SPACING_MM) for edge in edges]
    pooled = np.hstack([maps[1][edges[0]], maps[0][edges[1]]])
    distances = surface_distances(prediction, reference, SPACING_MM)
    assert hd95_pooled_mm(distances) == pytest.approx(np.percentile(pooled, 95))
    assert hd95_pooled_mm(distances) <= hd95_mm(distances)


def test_swapping_moving_and_scaling():
    prediction, reference = random_blobs(7)
    score = score_organ("liver", prediction, reference, SPACING_MM)
    swapped = score_organ("liver", reference, prediction, SPACING_MM)
    moved = score_organ(
        "liver", np.pad(prediction, ((3, 1), (0, 5), (2, 2))), np.pad(reference, ((3, 1), (0, 5), (2, 2))), SPACING_MM
    )
    scaled = score_organ("liver", prediction, reference, (7.5, 2.5, 2.5), nsd_tolerance_mm=5.0)
    assert (swapped.prediction_ml, swapped.reference_ml) == (score.reference_ml, score.prediction_ml)
    for name in ("dice", "nsd", "hd95_mm", "hd95_pooled_mm", "assd_mm"):
        value = getattr(score, name)
        assert getattr(swapped, name) == pytest.approx(value)
        assert getattr(moved, name) == pytest.approx(value)
        assert getattr(scaled, name) == pytest.approx(value * 2.5 if name.endswith("_mm") else value)
    assert scaled.reference_ml == pytest.approx(score.reference_ml * 2.5**3)


def test_a_mask_and_itself_agree_perfectly_in_any_memory_order():
    mask = random_blobs(3)[0]
    score = score_organ("liver", np.asfortranarray(mask)[::-1], mask[::-1], SPACING_MM)
    assert (score.dice, score.nsd, score.hd95_mm, score.hd95_pooled_mm, score.assd_mm) == (1, 1, 0, 0, 0)


def test_the_cut_face_of_an_organ_at_the_volume_edge_is_surface():
    full, half = np.ones((2, 4, 5, 6), bool)
    half[2:] = False
    distances = surface_distances(half, full, (1.0, 1.0, 1.0))
    assert len(distances.to_prediction_mm) == 4 * 5 * 6 - 2 * 3 * 4
    assert len(distances.to_reference_mm) == 2 * 5 * 6  # two layers: both are surface


def test_empty_masks_are_told_apart():
    full, empty = np.zeros((2, 6, 6, 6), bool)
    full[2:4, 2:4, 2:4] = True

    missed = score_organ("spleen", empty, full, SPACING_MM)
    assert (missed.status, missed.dice, missed.nsd) == ("missed", 0, 0)
    assert missed.hd95_mm == missed.hd95_pooled_mm == missed.assd_mm == math.inf
    assert (missed.prediction_ml, missed.reference_ml) == pytest.approx((0, 8 * 3 / 1000))

    invented = score_organ("spleen", full, empty, SPACING_MM)
    assert (invented.status, invented.dice, invented.nsd) == ("false_positive", 0, 0)
    assert invented.hd95_mm == invented.hd95_pooled_mm == invented.assd_mm == math.inf

    absent = score_organ("spleen", empty, empty, SPACING_MM)
    assert absent.status == "both_empty"
    assert all(math.isnan(getattr(absent, n)) for n in ("dice", "nsd", "hd95_mm", "hd95_pooled_mm", "assd_mm"))


def test_a_distance_of_exactly_the_tolerance_counts_despite_float32_spacing():
    # A NIfTI header stores 0.1 as 0.10000000149: twenty voxels are then 2.00000003 mm.
    spacing_mm = (float(np.float32(0.1)), 1.0, 1.0)
    distances = surface_distances(
        box((30, 3, 3), (0, 1), (1, 2), (1, 2)), box((30, 3, 3), (20, 21), (1, 2), (1, 2)), spacing_mm
    )
    assert nsd(distances, 2.0) == 1
    assert nsd(distances, 1.99) == 0


def tilted(spacing_mm, degrees):
    """Affine of a gantry tilted about the patient's left-right axis: slices lie aslant, the table moves along z."""
    tilt = np.deg2rad(degrees)
    affine = np.eye(4)
    affine[:3, 0] = spacing_mm[0], 0, 0
    affine[:3, 1] = 0, spacing_mm[1] * np.cos(tilt), spacing_mm[1] * np.sin(tilt)
    affine[:3, 2] = 0, 0, spacing_mm[2]
    affine[:3, 3] = -20.0, 35.0, 400.0
    return affine


def all_distances(score):
    return score.hd95_mm, score.hd95_pooled_mm, score.assd_mm


def test_spacings_say_the_same_as_the_affine_of_perpendicular_axes():
    prediction, reference = random_blobs(5)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix() @ np.diag([-3.0, 1.0, 1.0])
    turned[:3, 3] = 5.0, -70.0, 12.0
    by_spacing = score_organ("liver", prediction, reference, SPACING_MM)
    by_affine = score_organ("liver", prediction, reference, turned)
    for field in dataclasses.fields(by_spacing):
        assert getattr(by_affine, field.name) == pytest.approx(getattr(by_spacing, field.name)), field.name


def test_two_voxels_of_a_tilted_grid_are_as_far_apart_as_their_places_in_the_patient():
    affine = tilted((0.8, 0.9, 5.0), 20)
    prediction, reference = np.zeros((2, 6, 9, 9), bool)
    prediction[1, 2, 3] = reference[4, 7, 5] = True
    tilt = np.deg2rad(20)
    expected = math.hypot(3 * 0.8, 5 * 0.9 * math.cos(tilt), 5 * 0.9 * math.sin(tilt) + 2 * 5.0)
    score = score_organ("liver", prediction, reference, affine)
    assert all_distances(score) == pytest.approx((expected,) * 3)
    by_spacing = score_organ("liver", prediction, reference, (0.8, 0.9, 5.0))
    assert by_spacing.assd_mm == pytest.approx(math.hypot(3 * 0.8, 5 * 0.9, 2 * 5.0))
    assert by_spacing.assd_mm < expected - 1  # the affine is what matters


def test_parallel_planes_of_a_tilted_grid_by_hand():
    # From slice to slice 3 mm along the rows and 4 mm up, so 5 mm in all: the planes k = 1 and k = 3 are 8 mm apart,
    # not 10, and the upper one is shifted by 6 rows of 1 mm. A row of one lies straight below a row of the other, but
    # for the outermost 6, whose nearest is the other's edge: d rows further on and 8 mm across.
    affine = np.array([[2.0, 0, 0, 0], [0, 1.0, 3.0, 0], [0, 0, 4.0, 0], [0, 0, 0, 1]])
    rows = 40
    prediction, reference = np.zeros((2, 5, rows, 5), bool)
    prediction[:, :, 1] = reference[:, :, 3] = True
    expected = np.array([8.0] * (rows - 6) + [math.hypot(8, d) for d in range(1, 7)])
    distances = surface_distances(prediction, reference, affine)
    for found in (distances.to_reference_mm, distances.to_prediction_mm):
        np.testing.assert_allclose(np.sort(found), np.repeat(expected, 5))
    score = score_organ("liver", prediction, reference, affine, nsd_tolerance_mm=8.0)
    percentile = np.percentile(np.repeat(expected, 5), 95)
    assert (score.hd95_mm, score.assd_mm) == pytest.approx((percentile, expected.mean()))
    assert score.hd95_pooled_mm == pytest.approx(np.percentile(np.repeat(expected, 10), 95))
    assert score.nsd == pytest.approx((rows - 6) / rows)
    assert score.prediction_ml == score.reference_ml == pytest.approx(5 * rows * 2 * 1 * 4 / 1000)


@pytest.mark.parametrize("degrees", [-30, 20])
def test_balls_on_a_tilted_grid_score_as_on_an_upright_one(degrees):
    # Concentric balls of 24 and 18 mm: every point of either surface is 6 mm from the other, whatever the grid.
    def balls(affine, shape):
        places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T
        radii = np.linalg.norm(places - places[tuple(n // 2 for n in shape)], axis=-1)
        return radii <= 24.0, radii <= 18.0

    shape, scores = (53, 61, 73), []
    for angle in (0, degrees):
        affine = tilted((1.0, 1.0, 1.0), angle)
        score = score_organ("liver", *balls(affine, shape), affine, nsd_tolerance_mm=7.0)
        assert score.hd95_mm == pytest.approx(6, abs=0.7)
        assert score.hd95_pooled_mm == pytest.approx(6, abs=0.7)
        assert score.assd_mm == pytest.approx(6, abs=0.3)
        assert score.nsd == 1
        assert score.prediction_ml == pytest.approx(4 / 3 * math.pi * 24**3 / 1000, rel=0.005)
        assert score.reference_ml == pytest.approx(4 / 3 * math.pi * 18**3 / 1000, rel=0.005)
        assert score.dice == pytest.approx(2 * 18**3 / (18**3 + 24**3), rel=0.005)
        scores.append(score)
    by_spacing = score_organ("liver", *balls(affine, shape), (1.0, 1.0, 1.0))
    assert by_spacing.prediction_ml > 1.05 * scores[1].prediction_ml  # what spacings alone would say of the tilted one
    assert by_spacing.hd95_mm > 1.1 * scores[1].hd95_mm


@pytest.mark.parametrize("seed", range(3))
def test_surfaces_on_a_tilted_grid_are_as_far_apart_as_monai_finds_them_on_the_upright_one(seed):
    # A shear by whole rows moves each voxel onto one of an upright grid: its slice k lies 3 k rows further. There MONAI
    # measures from surface to surface with a distance transform. The surfaces themselves are the tilted grid's.
    prediction, reference = random_blobs(seed, (14, 20, 12))
    affine = np.array([[2.0, 0, 0, 0], [0, 1.0, 3.0, 0], [0, 0, 4.0, 0], [0, 0, 0, 1]])

    def upright(mask):
        surface = mask & ~ndimage.binary_erosion(mask)
        there = np.zeros((14, 20 + 3 * 11, 12), bool)
        for k in range(12):
            there[:, 3 * k : 3 * k + 20, k] = surface[:, :, k]
        return there

    edges = [upright(mask) for mask in (prediction, reference)]
    one_way, back = (
        np.asarray(get_surface_distance(a, b, "euclidean", (2.0, 1.0, 4.0))) for a, b in (edges, edges[::-1])
    )
    both = np.concatenate([one_way, back])
    score = score_organ("liver", prediction, reference, affine, nsd_tolerance_mm=1.5)
    assert score.hd95_mm == pytest.approx(max(np.percentile(one_way, 95), np.percentile(back, 95)))
    assert score.hd95_pooled_mm == pytest.approx(np.percentile(both, 95))
    assert score.assd_mm == pytest.approx(both.mean())
    assert score.nsd == pytest.approx((both <= 1.5).mean())
    assert score.prediction_ml == pytest.approx(prediction.sum() * 2 * 1 * 4 / 1000)


@pytest.mark.parametrize(
    ("prediction", "reference", "spacing_mm", "message"),
    [
        (np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool), SPACING_MM, r"\(2, 2, 2\) and \(2, 2, 3\)"),
        (np.zeros((2, 2), bool), np.zeros((2, 2), bool), SPACING_MM, "one shape"),
        (np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 2), bool), SPACING_MM, "uint8 and bool"),
        (np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool), (1.0, 0.0, 1.0), "three positive"),
        (np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool), np.diag([1.0, 1.0, 0.0, 1.0]), "three positive"),
        (np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool), np.eye(3), "three positive"),
    ],
)
def test_unfit_masks_are_refused(prediction, reference, spacing_mm, message):
    with pytest.raises(UsageError, match=message):
        score_organ("liver", prediction, reference, spacing_mm)


@pytest.mark.parametrize("tolerance_mm", [-1.0, math.nan, math.inf])
def test_unfit_tolerances_are_refused(tolerance_mm):
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(UsageError, match="tolerance"):
        score_organ("liver", mask, mask, SPACING_MM, tolerance_mm)


def test_a_whole_body_volume_takes_seconds():
    # 131 million voxels: a distance transform of the whole would take minutes and gigabytes.
    prediction, reference = np.zeros((2, 512, 512, 500), bool)
    reference[200:300, 200:300, 200:300] = True
    prediction[202:300, 200:303, 200:300] = True
    prediction[20, 20, 20] = True  # a stray voxel stretches the box that holds both
    start = time.perf_counter()
    score = score_organ("liver", prediction, reference, (0.7, 0.7, 1.0))
    assert time.perf_counter() - start < 30
    assert score.hd95_mm < 3
