"""How sure a model is: against expectations worked out by hand and by drawing truths from the shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nibabel.orientations import aff2axcodes

from meddelinea.segmentation.confidence import Shares, uncertainty_percent
from meddelinea.volume import Volume

LABELS = {"liver": 1, "spleen": 2}


def shares_of(generator: np.random.Generator, slices: int = 6, side: int = 40) -> torch.Tensor:
    """Smooth shares (slices, 3, side, side): a liver and a spleen with soft borders."""
    rows, columns = np.indices((side, side)) / side
    logits = np.zeros((slices, 3, side, side))
    for k in range(slices):
        for channel, (row, column) in ((1, (0.4, 0.3)), (2, (0.6, 0.75))):
            away = np.hypot(rows - row, columns - column) + 0.02 * generator.standard_normal()
            logits[k, channel] = 25.0 * (0.2 - away)
    return torch.from_numpy(logits).float().softmax(dim=1)


def gathered(shares: torch.Tensor, batch: int) -> Shares:
    evidence = Shares((len(shares), *shares.shape[2:]), shares.shape[1])
    for start in range(0, len(shares), batch):
        part = shares[start : start + batch]
        evidence.add(start, part, part)
    return evidence


def test_expected_dice_and_volume_are_the_means_over_truths_drawn_from_the_shares() -> None:
    generator = np.random.default_rng(1)
    shares = shares_of(generator)
    evidence = gathered(shares, 4)
    found = evidence.confidence(np.ones_like(evidence.label, bool), LABELS, voxel_ml=0.5)
    mask = shares.argmax(dim=1).numpy()
    cumulative = shares.cumsum(dim=1).numpy()
    dice, volume = {name: [] for name in LABELS}, {name: [] for name in LABELS}
    for _ in range(200):
        truth = (generator.random((len(shares), 1, *mask.shape[1:])) > cumulative).sum(axis=1)
        for name, index in LABELS.items():
            overlap = ((truth == index) & (mask == index)).sum()
            dice[name].append(2.0 * overlap / ((truth == index).sum() + (mask == index).sum()))
            volume[name].append(0.5 * (truth == index).sum())
    for name in LABELS:
        assert found[name].expected_dice == pytest.approx(np.mean(dice[name]), abs=0.003)
        assert found[name].expected_ml == pytest.approx(np.mean(volume[name]), rel=0.005)
        assert found[name].surely_ml < found[name].expected_ml < found[name].possibly_ml


def test_a_sure_mask_is_expected_to_be_right_and_a_missing_organ_has_no_expected_dice() -> None:
    shares = torch.zeros(2, 3, 4, 4)
    shares[:, 0] = 1.0
    shares[0, :, :2] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    evidence = gathered(shares, 1)
    found = evidence.confidence(np.ones((2, 4, 4), bool), LABELS, voxel_ml=2.0)
    liver, spleen = found["liver"], found["spleen"]
    assert (liver.expected_dice, liver.expected_ml, liver.surely_ml, liver.possibly_ml) == (1.0, 16.0, 16.0, 16.0)
    assert (spleen.expected_dice, spleen.expected_ml) == (None, 0.0)
    assert not evidence.uncertainty().any()


def test_uncertainty_is_of_the_probabilities_and_an_organs_confidence_of_the_shares() -> None:
    shares = torch.tensor([0.1, 0.9, 0.0]).view(1, 3, 1, 1)
    evidence = Shares((1, 1, 1), 3)
    evidence.add(0, shares, torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1))
    assert evidence.uncertainty()[0, 0, 0] == pytest.approx(0.4, abs=1e-3)
    assert evidence.confidence(np.ones((1, 1, 1), bool), LABELS, 1.0)["liver"].expected_ml == pytest.approx(0.9)


def test_what_cleaning_took_counts_against_the_mask() -> None:
    shares = torch.zeros(1, 3, 2, 2)
    shares[0, :, 0] = torch.tensor([0.2, 0.8, 0.0])[:, None]
    shares[0, 0, 1] = 1.0
    evidence = gathered(shares, 1)
    kept = np.array([[[True, False], [True, True]]])
    # One voxel of 0.8 in the mask; 1.6 expected in all: 2 x 0.8 / (1 + 1.6).
    assert evidence.confidence(kept, LABELS, 1.0)["liver"].expected_dice == pytest.approx(1.6 / 2.6, abs=1e-3)


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "SLA"])
def test_uncertainty_lies_on_the_scans_grid(orientation: str) -> None:
    """A linear ramp of the model's grid is the same ramp, in per cent, on a finer one that is turned."""
    ramp = np.broadcast_to(np.linspace(0.0, 1.0, 21, dtype=np.float32)[:, None, None], (21, 9, 7))
    coarse = Volume(ramp, np.diag([4.0, 4.0, 5.0, 1.0]))
    fine = Volume(np.zeros((33, 20, 70), np.int16), np.diag([2.0, 1.5, 0.4, 1.0])).reorient(orientation)
    percent = uncertainty_percent(coarse, fine)
    assert percent.array.dtype == np.uint8
    assert np.array_equal(percent.affine, fine.affine)
    assert percent.array.shape == fine.array.shape
    x_mm = np.arange(33) * 2.0
    expected = 100.0 * x_mm / 80.0
    straight = percent.reorient("RAS")
    assert aff2axcodes(straight.affine) == ("R", "A", "S")
    np.testing.assert_allclose(
        straight.array, np.broadcast_to(expected[:, None, None], straight.array.shape), atol=0.51
    )
