"""Training batches: functions of the seed and the step, drawn with the frequencies that the run file asks for."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meddelinea.data.augment import Augmentation
from meddelinea.data.store import SliceStore
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.methods.protocol import Batch
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.config import DataConfig
from support.tiny_models import CASES, SIDE, write_blobs, write_store
from support.tiny_models import blobs as make_blobs

#: No augmentation.
STILL = dict.fromkeys((field.name for field in fields(Augmentation)), 0.0)


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("blobs") / "store")


def batches(
    root: Path, batch_size: int, *, rank: int = 0, processes: int = 1, seed: int = 5, **data: Any
) -> TrainingBatches:
    config = DataConfig.model_validate({"store": root, "train": CASES, "augmentation": STILL, **data})
    store = SliceStore(root)
    return TrainingBatches(
        store, config, batch_size=batch_size, noise_channels=4, seed=seed, rank=rank, processes=processes
    )


def assert_same(one: Batch, other: Batch) -> None:
    for name, a, b in zip(Batch._fields, one, other, strict=True):
        assert torch.equal(a, b), name


def drawn_organs(source: TrainingBatches, steps: int) -> np.ndarray:
    """The one organ that each drawn slice holds (0: none), where no slice holds two."""
    masks = torch.cat([source[step].masks for step in range(steps)])
    return masks.flatten(1).amax(dim=1).numpy()


def one_organ_slices(root: Path) -> Path:
    """12 slices of the first organ, 3 of the second, 1 of the third, 8 empty; none holds two."""
    mask = np.zeros((24, SIDE, SIDE), np.uint8)
    for index, organ in enumerate([1] * 12 + [2] * 3 + [3] + [0] * 8):
        mask[index, 20:40, 20:40] = organ
    return write_store(root / "single", {name: (np.zeros(mask.shape, np.float32), mask) for name in CASES})


def assert_frequencies(drawn: np.ndarray, expected: dict[int, float]) -> None:
    """Counts within five standard deviations of the binomial distribution: wrong once in a million runs."""
    assert set(np.unique(drawn)) == {organ for organ, p in expected.items() if p > 0}
    for organ, p in expected.items():
        deviation = np.sqrt(len(drawn) * p * (1 - p))
        assert abs((drawn == organ).sum() - len(drawn) * p) <= 5 * deviation, organ


def test_an_item_is_a_function_of_seed_and_step(blobs: Path) -> None:
    changing = {"augmentation": {}, "neighbours": 1, "rare_organ_share": 0.5}
    first = batches(blobs, 3, **changing)[7]
    other_reader = batches(blobs, 3, **changing)
    _ = other_reader[0]  # what was read before must not matter
    assert_same(first, other_reader[7])
    for different in (batches(blobs, 3, **changing)[8], batches(blobs, 3, seed=6, **changing)[7]):
        assert not torch.equal(first.images, different.images)
        assert not torch.equal(first.noise, different.noise)
        assert not torch.equal(first.uniform, different.uniform)


def test_shards_of_two_processes_make_the_batch_of_one(blobs: Path) -> None:
    changing = {"augmentation": {}, "neighbours": 1, "rare_organ_share": 0.5, "empty_share": 0.5}
    whole = batches(blobs, 6, **changing)[3]
    parts = [batches(blobs, 3, rank=rank, processes=2, **changing)[3] for rank in (0, 1)]
    assert_same(whole, Batch(*(torch.cat(pair) for pair in zip(*parts, strict=True))))


def test_shapes_types_and_ranges(blobs: Path) -> None:
    batch = batches(blobs, 5, augmentation={})[0]
    assert batch.images.shape == (5, 3, SIDE, SIDE)
    assert batch.images.dtype == torch.float32
    assert batch.images.abs().max() <= 1.0
    assert batch.masks.shape == (5, SIDE, SIDE)
    assert batch.masks.dtype == torch.int64
    assert batch.noise.shape == (5, 4, SIDE // 8, SIDE // 8)
    assert ((batch.uniform >= 0) & (batch.uniform <= 1)).all()


def test_noise_is_standard_normal(blobs: Path) -> None:
    source = batches(blobs, 16)
    noise = torch.stack([source[step].noise for step in range(4)]).flatten()  # 16384 numbers
    assert abs(float(noise.mean())) < 5 / len(noise) ** 0.5
    assert abs(float(noise.var()) - 1.0) < 5 * (2 / len(noise)) ** 0.5


def test_uniform_numbers_are_stratified_over_the_global_batch(blobs: Path) -> None:
    parts = [batches(blobs, 4, rank=rank, processes=2)[2].uniform for rank in (0, 1)]
    assert torch.equal((torch.cat(parts) * 8).floor(), torch.arange(8.0))


def test_rare_organ_share_draws_each_organ_equally_often(tmp_path: Path) -> None:
    source = batches(one_organ_slices(tmp_path), 100, rare_organ_share=1.0)
    assert_frequencies(drawn_organs(source, 6), {0: 0.0, 1: 1 / 3, 2: 1 / 3, 3: 1 / 3})


@pytest.mark.parametrize(
    ("empty_share", "expected"),
    [
        (0.0, {0: 0.0, 1: 12 / 16, 2: 3 / 16, 3: 1 / 16}),
        (0.5, {0: 4 / 20, 1: 12 / 20, 2: 3 / 20, 3: 1 / 20}),
        (1.0, {0: 8 / 24, 1: 12 / 24, 2: 3 / 24, 3: 1 / 24}),
    ],
)
def test_empty_share_thins_slices_without_organs(
    tmp_path: Path, empty_share: float, expected: dict[int, float]
) -> None:
    source = batches(one_organ_slices(tmp_path), 100, empty_share=empty_share)
    assert_frequencies(drawn_organs(source, 6), expected)


def test_without_augmentation_a_slice_comes_as_it_is_stored(blobs: Path) -> None:
    batch = batches(blobs, 8)[0]
    store = SliceStore(blobs)
    stored = [
        (store.image(c, s, 0)[0] / np.float32(127.5) - 1, store.mask(c, s))
        for c, case in enumerate(store.cases)
        for s in range(case.slices)
    ]
    for image, mask in zip(batch.images.numpy(), batch.masks.numpy(), strict=True):
        found = [i for i, (grey, ids) in enumerate(stored) if np.abs(image[1] - grey).max() < 1e-4]
        assert len(found) == 1
        assert np.array_equal(stored[found[0]][1], mask)


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_neighbours_stop_at_the_ends_of_a_scan(tmp_path: Path, reach: int) -> None:
    slices = 4
    # The grey level of a slice tells its index.
    image = np.broadcast_to(np.linspace(-1, 1, slices, dtype=np.float32)[:, None, None], (slices, SIDE, SIDE))
    root = write_store(tmp_path / "grey", {"a": (image, np.zeros(image.shape, np.uint8))})
    pixels = batches(root, 40, neighbours=reach)[0].images
    assert torch.allclose(pixels, pixels[:, :, :1, :1].expand_as(pixels), atol=1e-4)
    index = ((pixels[:, :, 0, 0] + 1) / 2 * (slices - 1)).round().long().numpy()
    middle = index[:, 1]
    assert set(middle) == set(range(slices))
    assert np.array_equal(index[:, 0], np.maximum(middle - reach, 0))
    assert np.array_equal(index[:, 2], np.minimum(middle + reach, slices - 1))


@pytest.mark.parametrize("reach", [0, 1])
def test_thick_slices_are_means_of_their_slabs(tmp_path: Path, reach: int) -> None:
    slices = 9
    image = np.broadcast_to(np.linspace(-1, 1, slices, dtype=np.float32)[:, None, None], (slices, SIDE, SIDE))
    mask = np.broadcast_to(np.arange(slices, dtype=np.uint8)[:, None, None] % 4, image.shape)
    root = write_store(tmp_path / "grey", {"a": (image, mask)})
    thin, thick = (batches(root, 200, neighbours=reach, thickest=k)[0] for k in (1, 3))
    assert torch.equal(thin.masks, thick.masks)  # the same slices are drawn
    level = np.rint((thin.images[:, 1, 0, 0].numpy() + 1) / 2 * (slices - 1)).astype(int)
    grey = np.rint((image[:, 0, 0] + 1) * 127.5) / 127.5 - 1
    seen = set()
    for index, ours in zip(level, thick.images[:, :, 0, 0].numpy(), strict=True):
        expected = {
            k: [
                grey[np.clip(np.arange(k) + index - (k - 1) // 2 + side * reach * k, 0, slices - 1)].mean()
                for side in (-1, 0, 1)
            ]
            for k in (1, 2, 3)
        }
        seen |= {min(expected, key=lambda k: np.abs(np.array(expected[k]) - ours).max())}
        assert min(np.abs(np.array(e) - ours).max() for e in expected.values()) < 1e-3
    assert seen == {1, 2, 3}


def test_a_crop_is_the_window_around_an_organ_pixel(blobs: Path) -> None:
    side = 16
    batch = batches(blobs, 12, crop=side, empty_share=0.0)[0]
    assert batch.masks.shape == (12, side, side)
    assert batch.noise.shape == (12, 4, side // 8, side // 8)
    store = SliceStore(blobs)
    windows = []
    for c, case in enumerate(store.cases):
        for s in range(case.slices):
            padded = np.pad(store.mask(c, s), side)
            for row, column in np.argwhere(store.mask(c, s)):
                top, left = row + side // 2, column + side // 2
                windows.append(padded[top : top + side, left : left + side])
    candidates = np.stack(windows)
    for mask in batch.masks.numpy():
        assert mask[side // 2, side // 2] > 0
        assert (candidates == mask).all(axis=(1, 2)).any()


def test_crops_of_empty_slices_come_from_everywhere(tmp_path: Path) -> None:
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    image = np.broadcast_to(ramp, (2, SIDE, SIDE))  # the grey level of a pixel tells its column
    root = write_store(tmp_path / "ramp", {"a": (image, np.zeros(image.shape, np.uint8))})
    centre = batches(root, 200, crop=8)[0].images[:, 1, 4, 4]
    counts = np.histogram(centre.numpy(), bins=4, range=(-1.001, 1.001))[0]
    assert (abs(counts - 50) <= 5 * np.sqrt(200 / 4 * 3 / 4)).all(), counts


def test_organs_that_no_case_holds_cannot_be_drawn(tmp_path: Path) -> None:
    blank = np.zeros((2, SIDE, SIDE), np.float32)
    root = write_store(tmp_path / "blank", {"a": (blank, blank.astype(np.uint8))})
    assert len(batches(root, 2)[0].masks) == 2  # a codec may be trained on images alone
    for impossible in ({"rare_organ_share": 0.5}, {"empty_share": 0.0}):
        with pytest.raises(InputRefusedError, match="no organ"):
            batches(root, 2, **impossible)


def test_a_resolution_is_the_stores_size_over_a_whole_number(blobs: Path) -> None:
    large, small = batches(blobs, 3), batches(blobs, 3, resolutions=[64, 64])
    assert_same(large[1], small[1])  # the store's own size is no change
    with pytest.raises(UsageError, match=r"data\.resolutions: 128; expected .*'s size 64"):
        batches(blobs, 3, resolutions=[64, 128])


def test_a_smaller_resolution_is_a_block_mean_of_the_image_and_a_sample_of_the_mask(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", make_blobs(2 * SIDE), size=2 * SIDE)
    source = batches(store, 3, resolutions=[64, 128])
    assert [source[step].images.shape[2] for step in range(4)] == [64, 128, 64, 128]
    assert [source[step].noise.shape for step in range(2)] == [(3, 4, 8, 8), (3, 4, 16, 16)]
    small, whole = source[0], batches(store, 3)[0]
    blocks = whole.images.unflatten(3, (SIDE, 2)).unflatten(2, (SIDE, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(small.images, blocks, atol=1e-5, rtol=0)
    of_block = whole.masks.unflatten(2, (SIDE, 2)).unflatten(1, (SIDE, 2)).transpose(2, 3).flatten(3)
    assert (of_block == small.masks[..., None]).any(dim=3).all()


def test_the_slices_of_a_step_are_named_for_all_processes(blobs: Path) -> None:
    both = [batches(blobs, 2, rank=rank, processes=2) for rank in range(2)]
    names = both[0].slices(7)
    assert names == both[1].slices(7) == batches(blobs, 4).slices(7)
    shown = batches(blobs, 4)[7].masks
    for (case, index), mask in zip(names, shown, strict=True):
        np.testing.assert_array_equal(SliceStore(blobs).mask(case, index), mask.numpy())


@pytest.mark.parametrize("thickness", [1, 2])
def test_tilted_slices_and_their_masks_lie_on_one_plane(tmp_path: Path, thickness: int) -> None:
    """In a scan whose grey level is the slice's number, grey values tell the height at each pixel."""
    number, level = np.arange(48), 5.0  # of 256 grey levels from slice to slice
    image = np.broadcast_to((number * level / 127.5 - 1.0)[:, None, None], (48, SIDE, SIDE)).astype(np.float32)
    mask = np.broadcast_to((number > 20).astype(np.uint8)[:, None, None], (48, SIDE, SIDE))
    root = write_store(tmp_path / "ramp", dict.fromkeys(CASES, (image, mask)))
    source = batches(root, 60, neighbours=2, thickest=thickness, augmentation={**STILL, "tilt_deg": 4.0})
    batch = source[0]
    height = (batch.images + 1.0) * 127.5 / level  # (60, 3, SIDE, SIDE), in slices
    whole = (height.amin((1, 2, 3)) > 1.0) & (height.amax((1, 2, 3)) < 46.0)  # nowhere beyond the scan
    assert whole.sum() > 20

    rows, columns = height[whole].diff(dim=2), height[whole].diff(dim=3)
    for slopes in (rows, columns):  # a plane has one slope, of at most 4 degrees, and each sample its own
        assert float(slopes.flatten(1).std(dim=1).max()) < 1e-3
        steepest = float(np.tan(np.deg2rad(4.0))) * 6.0 / 3.0  # pixels of 6 mm, slices of 3 mm
        assert 0.5 * steepest < float(slopes.abs().max()) <= steepest + 1e-3
    apart = (height[whole, 2] - height[whole, 0]).flatten(1).mean(dim=1)
    assert set(apart.round().tolist()) == {4.0 * k for k in range(1, thickness + 1)}

    thin = whole & ((height[:, 2] - height[:, 0]).mean((1, 2)).round() == 4.0)
    middle, ids = height[thin, 1], batch.masks[thin]
    clear = (middle - 20.5).abs() > 1e-2
    assert torch.equal(ids[clear] == 1, middle[clear] > 20.5)
    assert 0.1 < float(ids.float().mean()) < 0.9


def test_a_tilt_leaves_the_other_numbers_as_they_are(blobs: Path) -> None:
    level, tilted = (batches(blobs, 4, augmentation={**STILL, "tilt_deg": tilt})[0] for tilt in (0.0, 30.0))
    assert torch.equal(level.noise, tilted.noise)
    assert not torch.equal(level.images, tilted.images)
