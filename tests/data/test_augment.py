"""Augmentation: nothing where nothing is asked for, image and mask together, and each sample by its key alone."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from meddelinea.data.augment import TONES, Augmentation, apply, draw, zoom
from meddelinea.io.volumes import read_volume

NOTHING = Augmentation(**dict.fromkeys((field.name for field in fields(Augmentation)), 0.0))
KEYS = [(3, 1, 0, 7), (3, 2, 5, 0), (3, 3, 5, 1), (9, 1, 0, 7)]


def slices(count: int = 4, side: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(count, 3, side, side)), (0, 0, 2, 2))
    images = torch.from_numpy(np.clip(noise / np.abs(noise).max() * 1.5, -1, 1)).float()
    return images, torch.from_numpy(rng.integers(0, 14, (count, side, side)))


def test_no_ranges_change_nothing() -> None:
    images, masks = slices()
    moved, ids = apply(draw(NOTHING, KEYS), images, masks, 48)
    torch.testing.assert_close(moved, images, rtol=0, atol=1e-5)
    assert torch.equal(ids, masks)


def test_the_same_key_gives_the_same_sample_in_any_batch() -> None:
    images, masks = slices()
    together = apply(draw(Augmentation(), KEYS), images, masks, 48)
    backwards = apply(draw(Augmentation(), KEYS[::-1]), images.flip(0), masks.flip(0), 48)
    for i in range(4):
        alone = apply(draw(Augmentation(), KEYS[i : i + 1]), images[i : i + 1], masks[i : i + 1], 48)
        torch.testing.assert_close(alone[0][0], together[0][i], rtol=0, atol=1e-6)
        torch.testing.assert_close(backwards[0][3 - i], together[0][i], rtol=0, atol=1e-6)
        assert torch.equal(alone[1][0], together[1][i])
        assert torch.equal(backwards[1][3 - i], together[1][i])


def test_other_keys_give_other_samples_of_the_same_slice() -> None:
    images, masks = slices(1)
    moved, _ = apply(draw(Augmentation(), KEYS), images.expand(4, -1, -1, -1), masks.expand(4, -1, -1), 48)
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(moved[i], moved[j], atol=0.05)


@pytest.fixture(scope="module")
def organs(data: Path) -> torch.Tensor:
    """Six real slices of organ ids, (6, 256, 256)."""
    mask = read_volume(data / "btcv" / "label" / "label0002.nii.gz").array
    return torch.from_numpy(np.rint(mask[:256, :256, 84:108:4]).astype(np.int64)).permute(2, 0, 1).contiguous()


def test_image_and_mask_move_together(organs: torch.Tensor) -> None:
    keys = [(0, 1, 2, i) for i in range(6)]
    painted = torch.where(organs > 0, 1.0, -1.0)[:, None].expand(-1, 3, -1, -1)
    moving = Augmentation(contrast=0, brightness=0, noise=0)
    moved, ids = apply(draw(moving, keys), painted, organs, 256)
    for i in range(6):
        assert not torch.equal(ids[i], organs[i])
        inside, truth = moved[i, 0] > 0, ids[i] > 0
        assert truth.sum() > 1000
        assert 2 * float((inside & truth).sum()) / float(inside.sum() + truth.sum()) > 0.97


@pytest.mark.parametrize(
    "ranges",
    [
        replace(NOTHING, rotation_deg=30),
        replace(NOTHING, scale=0.3),
        replace(NOTHING, rotation_deg=20, scale=0.2, shear=0.2, translation=0.1),
    ],
)
def test_affine_moves_are_scipys(ranges: Augmentation) -> None:
    side = 64
    images, _ = slices(4, side)
    drawn = draw(ranges, KEYS)
    moved, _ = apply(drawn, images, torch.zeros(4, side, side, dtype=torch.long), side)
    middle = (side - 1) / 2
    for image, ours, affine in zip(images.double().numpy(), moved.numpy(), drawn.affine.double().numpy(), strict=True):
        matrix = affine[::-1, 1::-1]  # (x, y) of torch's grid to (row, column)
        offset = middle + affine[::-1, 2] * side / 2 - matrix @ [middle, middle]
        for before, after in zip(image + 1, ours + 1, strict=True):
            theirs = ndimage.affine_transform(before, matrix, offset, order=1, mode="grid-constant")
            np.testing.assert_allclose(after, theirs, atol=2e-4)


def test_drawn_numbers_fill_their_ranges_and_stay_inside() -> None:
    keys = [(0, 0, 0, i) for i in range(600)]
    turned = draw(replace(NOTHING, rotation_deg=25), keys).affine
    angles = torch.rad2deg(torch.atan2(turned[:, 1, 0], turned[:, 0, 0]))
    torch.testing.assert_close(torch.linalg.det(turned[:, :, :2]), torch.ones(600))
    assert not turned[:, :, 2].any()
    shifted = draw(replace(NOTHING, translation=0.1), keys).affine
    torch.testing.assert_close(shifted[:, :, :2], torch.eye(2).expand(600, -1, -1))
    grey = draw(replace(NOTHING, contrast=0.3, brightness=0.15, noise=0.05), keys)
    for values, low, high in (
        (angles, -25, 25),
        (shifted[:, 0, 2] / 2, -0.1, 0.1),  # a slice is 2 wide
        (shifted[:, 1, 2] / 2, -0.1, 0.1),
        (grey.gain, 0.7, 1.3),
        (grey.offset, -0.15, 0.15),
        (grey.noise, 0, 0.05),
    ):
        width = high - low
        assert low <= float(values.min()) < low + 0.02 * width
        assert high - 0.02 * width < float(values.max()) <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.05 * width)  # 4 standard errors


def test_intensities_change_by_the_drawn_numbers_and_stay_in_range() -> None:
    images, masks = slices()
    drawn = draw(replace(NOTHING, contrast=0.2, brightness=0.3), KEYS)
    moved, ids = apply(drawn, images, masks, 48)
    expected = (images * drawn.gain.view(4, 1, 1, 1) + drawn.offset.view(4, 1, 1, 1)).clamp(-1, 1)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    assert torch.equal(ids, masks)
    grainy = draw(replace(NOTHING, noise=0.2), KEYS)
    noisy, _ = apply(grainy, images * 0.1, masks, 48)
    torch.testing.assert_close((noisy - images * 0.1).flatten(1).std(1), grainy.noise, rtol=0.05, atol=0)


def test_elastic_displacements_have_the_stated_size() -> None:
    """A ramp along the columns, displaced, shows the displacement itself."""
    keys = [(1, 0, 0, i) for i in range(40)]
    side = 64
    ramp = ((torch.arange(side) * 2.0 + 1) / side - 1).expand(40, 1, side, side) * 0.5
    empty = torch.zeros(40, side, side, dtype=torch.long)
    moved, _ = apply(draw(replace(NOTHING, elastic=0.01), keys), ramp, empty, side)
    shift = (moved - ramp)[:, 0, 8:-8, 8:-8] / 0.5 / 2  # as a share of the side
    assert 0.004 < float(shift.std()) < 0.012  # smoothing between the coarse points takes some of 0.01
    assert float(shift.diff(dim=2).abs().max()) < 0.01  # smooth


@pytest.mark.parametrize(("row", "column", "crop"), [(8, 16, 24), (0, 0, 16), (24, 10, 24)])
def test_zoom_without_ranges_is_a_crop(row: int, column: int, crop: int) -> None:
    images, masks = slices()
    centre = torch.tensor([(2 * column + crop) / 48 - 1, (2 * row + crop) / 48 - 1]).expand(4, -1)
    moved, ids = apply(zoom(draw(NOTHING, KEYS), centre, crop / 48), images, masks, crop)
    torch.testing.assert_close(moved, images[:, :, row : row + crop, column : column + crop], rtol=0, atol=1e-4)
    assert torch.equal(ids, masks[:, row : row + crop, column : column + crop])


def test_beyond_the_slice_is_air_and_background() -> None:
    images, masks = slices()
    centre = torch.tensor([1.0, -1.0]).expand(4, -1)  # the upper right corner: three quarters of the window lie outside
    moved, ids = apply(zoom(draw(NOTHING, KEYS), centre, 0.5), images, masks, 24)
    assert (moved[:, :, :11] == -1).all()
    assert (moved[:, :, :, 13:] == -1).all()
    assert not ids[:, :11].any()
    assert not ids[:, :, 13:].any()
    torch.testing.assert_close(moved[:, :, 12:, :12], images[:, :, :12, 36:], rtol=0, atol=1e-4)


def windows(keys: list[tuple[int, int, int, int]], crop: float, side: int = 48) -> torch.Tensor:
    """First and last pixel of each crop by column and row, (B, 2, 2), read off slices of their own coordinates."""
    coordinates = torch.arange(side, dtype=torch.float32) * 2 / side - 1  # in range, so that nothing is clipped
    picture = torch.stack([coordinates.expand(side, side), coordinates[:, None].expand(side, side)])
    pictures = picture.expand(len(keys), -1, -1, -1)
    shown, _ = apply(draw(replace(NOTHING, crop=crop), keys), pictures, torch.zeros(len(keys), side, side), side)
    pixels = (shown + 1) * side / 2
    middle = side // 2  # a few pixels from the border, where what lies beyond is mixed in
    step = (pixels[:, 0, middle, middle + 8] - pixels[:, 0, middle, middle - 8]) / 16
    at = torch.stack([pixels[:, 0, middle, middle], pixels[:, 1, middle, middle]], dim=1)
    return torch.stack([at - step[:, None] * middle, at + step[:, None] * (side - 1 - middle)], dim=2)


def test_a_crop_is_a_part_of_the_slice_resized_to_fill_it() -> None:
    images, masks = slices()
    moved, ids = apply(draw(replace(NOTHING, crop=0.6), KEYS), images, masks, 48)
    for i, (columns, rows) in enumerate(windows(KEYS, 0.6).double().numpy()):
        place = np.meshgrid(np.linspace(*rows, 48), np.linspace(*columns, 48), indexing="ij")
        for ours, image in zip(moved[i].numpy(), images[i].numpy(), strict=True):
            theirs = ndimage.map_coordinates(image + 1, place, order=1, mode="grid-constant") - 1
            np.testing.assert_allclose(ours, theirs, atol=2e-3)
        nearest = ndimage.map_coordinates(masks[i].numpy(), place, order=0, mode="grid-constant")
        assert (ids[i].numpy() == nearest).mean() > 0.98  # halfway between two pixels, either is nearest
        assert not torch.equal(ids[i], masks[i])


def test_crops_fill_their_range_and_lie_in_the_slice() -> None:
    keys = [(0, 0, 0, i) for i in range(600)]
    first, last = windows(keys, 0.5).unbind(2)  # (600, 2) columns and rows
    share = (last - first) / 47
    torch.testing.assert_close(share[:, 0], share[:, 1], rtol=0, atol=1e-3)
    assert 0.5 <= float(share.min()) < 0.51
    assert 0.99 < float(share.max()) <= 1.001
    assert float(share.mean()) == pytest.approx(0.75, abs=0.025)
    lower = first - (share - 1) / 2  # a pixel's centre stands half a pixel of the crop behind its edge
    room = 48 * (1 - share)
    assert float(lower.min()) > -0.01
    assert float((lower - room).max()) < 0.01
    for place in (lower / room)[share[:, 0] < 0.9].T:  # uniform over the room
        assert float(place.min()) < 0.02
        assert float(place.max()) > 0.98
        assert float(place.mean()) == pytest.approx(0.5, abs=0.05)


def test_a_crop_leaves_the_other_numbers_as_they_were() -> None:
    """Those of one key come in the order in which they did before there were crops, so old runs can be repeated."""
    key, a = KEYS[0], Augmentation()
    rng = np.random.default_rng(key)
    angle = np.deg2rad(rng.uniform(-15, 15))
    width, height = 1.0 + rng.uniform(-0.2, 0.2) + rng.uniform(-0.2, 0.2, 2) / 4
    shear, shift = rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1, 2) * 2
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = np.column_stack([turn @ [[width, shear], [0, height]], shift]).astype(np.float32)
    displacement = rng.normal(0, 0.02, (2, 6, 6)).astype(np.float32)
    intensity = [1.0 + rng.uniform(-0.2, 0.2), rng.uniform(-0.15, 0.15), rng.uniform(0, 0.05)]
    uncropped, cropped = draw(a, [key]), draw(replace(a, crop=0.5), [key])
    assert np.array_equal(uncropped.affine[0], expected)
    assert not np.array_equal(cropped.affine[0], expected)
    for drawn in (uncropped, cropped):
        assert np.array_equal(drawn.displacement[0], displacement)
        assert [float(drawn.gain), float(drawn.offset), float(drawn.noise)] == [float(np.float32(x)) for x in intensity]
    assert cropped.seeds == uncropped.seeds == (int(rng.integers(2**32)),)


@pytest.mark.parametrize("crop", [-0.1, 1.0, 32])
def test_a_crop_is_a_share(crop: float) -> None:
    with pytest.raises(ValueError, match=rf"crop\n .* than .*input_value={crop}"):
        Augmentation(crop=crop)


def test_the_tone_curve_is_linear_between_its_points() -> None:
    images, masks = slices()
    drawn = draw(replace(NOTHING, tone=0.1), KEYS)
    assert float(drawn.tone.std()) == pytest.approx(0.1, rel=0.5)
    bent, ids = apply(drawn, images, masks, 48)
    for image, ours, shifts in zip(images.numpy(), bent.numpy(), drawn.tone.numpy(), strict=True):
        theirs = np.interp(image, TONES, np.array(TONES) + shifts)
        np.testing.assert_allclose(ours, theirs.clip(-1, 1), atol=1e-5)
    assert torch.equal(ids, masks)


def test_sharpness_adds_or_takes_what_a_mean_filter_takes() -> None:
    images, masks = slices()
    images = images * 0.5
    drawn = draw(replace(NOTHING, sharpness=0.8), KEYS)
    assert 0 < float(drawn.sharpness.abs().max()) <= 0.8
    changed, _ = apply(drawn, images, masks, 48)
    mean = torch.from_numpy(ndimage.uniform_filter(images.numpy(), (0, 0, 3, 3)))
    expected = images + drawn.sharpness.view(4, 1, 1, 1) * (images - mean)
    torch.testing.assert_close(changed[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_outside_a_round_field_is_air_and_background() -> None:
    keys = [(0, 0, 0, i) for i in range(40)]
    images, masks = (part[:1].expand(40, *part.shape[1:]) for part in slices())
    drawn = draw(replace(NOTHING, field=0.5), keys)
    assert 0.5 <= float(drawn.radius.min()) < 0.6
    assert 1.3 < float(drawn.radius.max()) <= 2**0.5
    seen, ids = apply(drawn, images, masks, 48)
    row, column = np.mgrid[:48, :48] - 23.5
    inside = torch.from_numpy(np.hypot(row, column)) <= 24 * drawn.radius[:, None, None]
    assert not ids[~inside].any()
    assert torch.equal(ids[inside], masks[inside])
    wide = inside[:, None].expand_as(seen)
    assert (seen[~wide] == -1).all()
    torch.testing.assert_close(seen[wide], images[wide], rtol=0, atol=1e-5)


def test_what_is_off_leaves_all_other_numbers_as_they_were() -> None:
    plain, more = draw(Augmentation(), KEYS), draw(Augmentation(crop=0.3, tone=0.1, sharpness=0.5, field=0.3), KEYS)
    for name in ("displacement", "gain", "offset", "noise"):
        assert torch.equal(getattr(plain, name), getattr(more, name)), name


def test_a_mirrored_slice_has_left_and_right_exchanged_and_nothing_else() -> None:
    images, masks = slices()
    moved, ids = apply(draw(replace(NOTHING, mirror=1.0), KEYS), images, masks, 48)
    torch.testing.assert_close(moved, images.flip(-1), rtol=0, atol=1e-5)
    assert torch.equal(ids, masks.flip(-1))


def test_a_share_of_the_slices_is_mirrored_and_the_others_stay_as_they_are() -> None:
    keys = [(0, 0, 0, i) for i in range(200)]
    plain, drawn = draw(Augmentation(), keys), draw(Augmentation(mirror=0.3), keys)
    mirrored = drawn.affine[:, 0, 0] * plain.affine[:, 0, 0] < 0
    assert 40 <= int(mirrored.sum()) <= 80
    assert torch.equal(drawn.affine[~mirrored], plain.affine[~mirrored])
    torch.testing.assert_close(drawn.affine[mirrored] * torch.tensor([-1.0, 1.0, 1.0]), plain.affine[mirrored])
