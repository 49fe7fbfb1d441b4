"""Small pieces go, as scipy labels them, whatever else the mask holds."""

import numpy as np
import pytest
from scipy import ndimage

from meddelinea.segmentation.postprocess import remove_small_components


def blobs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = np.stack([ndimage.gaussian_filter(rng.normal(size=(20, 24, 16)), 1.2) for _ in range(4)])
    return smooth.argmax(axis=0).astype(np.uint8) * (rng.random((20, 24, 16)) < 0.9)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_small_pieces_go_as_scipy_labels_them(seed: int, share: float) -> None:
    mask = blobs(seed)
    expected = np.zeros_like(mask)
    for organ in range(1, 4):
        pieces, count = ndimage.label(mask == organ, np.ones((3, 3, 3)))
        sizes = [int((pieces == piece).sum()) for piece in range(1, count + 1)]
        for piece, size in enumerate(sizes, start=1):
            if size >= share * max(sizes):
                expected[pieces == piece] = organ
    cleaned = remove_small_components(mask, share)
    assert cleaned.dtype == np.uint8
    assert np.array_equal(cleaned, expected)
    if share == 0.0:
        assert np.array_equal(cleaned, mask)


def test_share_1_leaves_one_piece_of_each_organ() -> None:
    cleaned = remove_small_components(blobs(7), 1.0)
    for organ in range(1, 4):
        assert ndimage.label(cleaned == organ, np.ones((3, 3, 3)))[1] == 1


@pytest.mark.parametrize("value", [0, 2, 255])
def test_a_mask_of_one_value_stays(value: int) -> None:
    mask = np.full((4, 5, 6), value, np.uint8)
    assert np.array_equal(remove_small_components(mask, 0.5), mask)


def test_pieces_of_different_organs_that_touch_stay_apart() -> None:
    mask = np.zeros((10, 4, 4), np.uint8)
    mask[:6], mask[6:7], mask[9:] = 1, 2, 1  # the last piece of organ 1 is a sixth of the first
    cleaned = remove_small_components(mask, 0.2)
    assert (cleaned[:6] == 1).all()
    assert (cleaned[6] == 2).all()
    assert not cleaned[9].any()


def test_the_mask_given_is_left_alone() -> None:
    mask = blobs(1)
    before = mask.copy()
    remove_small_components(mask, 1.0)
    assert np.array_equal(mask, before)
