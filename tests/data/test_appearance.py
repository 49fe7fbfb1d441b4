"""Random appearance: a function of the key, of grey values alone, and different for each organ."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from meddelinea.data.appearance import AIR, random_appearance
from meddelinea.data.augment import Key
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.cases import open_cases
from support.tiny_models import run_config, write_blobs

KEYS: list[Key] = [(0, step, 1, 2) for step in range(24)]


def slices(count: int = len(KEYS)) -> tuple[Tensor, Tensor]:
    """A body with two organs in air, three channels that differ by noise."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(count, 48, 48, dtype=torch.long)
    mask[:, 10:20, 10:20], mask[:, 24:36, 20:40] = 1, 2
    image = torch.full((count, 3, 48, 48), -1.0)
    image[:, :, 6:42, 4:44] = -0.2
    for organ, grey in ((1, 0.1), (2, 0.3)):
        image = torch.where(mask[:, None] == organ, torch.tensor(grey), image)
    grain = 0.05 * torch.randn(image.shape, generator=generator)
    return torch.where(image > AIR, image + grain, image), mask


def test_a_slice_depends_on_its_key_alone() -> None:
    images, masks = slices()
    together = random_appearance(images, masks, KEYS, 0.5)
    for index in (0, 5, 23):
        alone = random_appearance(images[index : index + 1], masks[index : index + 1], [KEYS[index]], 0.5)
        assert torch.equal(alone[0], together[index])
    other = random_appearance(images, masks, [(1, *key[1:]) for key in KEYS], 1.0)
    assert not torch.allclose(other, random_appearance(images, masks, KEYS, 1.0), atol=0.1)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_is_drawn_anew_within_the_range_and_air_stays_air(share: float) -> None:
    images, masks = slices(24)
    drawn = random_appearance(images, masks, KEYS, share)
    assert drawn.shape == images.shape
    assert float(drawn.abs().max()) <= 1.0
    assert bool((drawn[images <= AIR] == -1.0).all())
    changed = [not torch.equal(one, other) for one, other in zip(drawn, images, strict=True)]
    assert abs(sum(changed) - 24 * share) <= 8 * (0.0 < share < 1.0)


def test_neither_order_nor_contrast_of_organs_can_be_relied_on() -> None:
    images, masks = slices()
    drawn = random_appearance(images, masks, KEYS, 1.0)[:, 1]
    brighter = [
        float(image[mask == 2].mean() - image[mask == 1].mean()) for image, mask in zip(drawn, masks, strict=True)
    ]
    assert min(brighter) < -0.2
    assert max(brighter) > 0.2
    spread = torch.stack([image[mask == 1].mean() for image, mask in zip(drawn, masks, strict=True)]).std()
    assert float(spread) > 0.3


def test_channels_are_changed_alike() -> None:
    images, masks = slices(8)
    same = images[:, :1].expand(-1, 3, -1, -1).clone()
    drawn = random_appearance(same, masks, KEYS[:8], 1.0)
    difference = (drawn[:, 0] - drawn[:, 2]).abs().mean()
    assert float(difference) < 0.08  # the scanner's noise


def test_an_empty_slice_stays_empty() -> None:
    air, nothing = torch.full((2, 3, 16, 16), -1.0), torch.zeros(2, 16, 16, dtype=torch.long)
    assert torch.equal(random_appearance(air, nothing, KEYS[:2], 1.0), air)


def test_batches_have_it_and_keep_their_masks(tmp_path: Path) -> None:
    store, batches = write_blobs(tmp_path / "store"), []
    for share in (0.0, 1.0):
        config = run_config("base", store, tmp_path, data={"augmentation": {"appearance": share}})
        cases = open_cases(config.data).train
        batches.append(
            TrainingBatches(cases, config.data, batch_size=4, noise_channels=4, seed=0, rank=0, processes=1)[3]
        )
    plain, drawn = batches
    assert torch.equal(plain.masks, drawn.masks)
    assert torch.equal(plain.noise, drawn.noise)
    assert not torch.allclose(plain.images, drawn.images, atol=0.1)
