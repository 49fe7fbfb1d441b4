"""Measuring a base: what counts as plausible, a loss that is known, and what the command writes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from meddelinea.benchmark.prior import Plausibility, held_out_loss, measure_prior, plausibility
from meddelinea.errors import UsageError
from meddelinea.training.stages import BaseStage
from support.cli import Run
from support.tiny_models import CASES, ORGANS, run_config, write_blobs
from support.training_runs import train


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("prior") / "store")


@pytest.fixture(scope="module")
def codec(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(run_config("codec", store, tmp_path_factory.mktemp("codec") / "run", data={"crop": 32})) / "codec"


def slice_of(*organs: tuple[int, int, int]) -> np.ndarray:
    """A slice of squares of 8 x 8 pixels, each an organ's id, row and column."""
    mask = np.zeros((64, 64), np.uint8)
    for organ, row, column in organs:
        mask[row : row + 8, column : column + 8] = organ
    return mask


def test_organs_in_pieces_or_on_the_wrong_side_are_not_plausible() -> None:
    names = ("spleen", "liver")  # columns run to the patient's left, where the spleen lies
    right = slice_of((1, 20, 50), (2, 20, 5))
    exchanged = slice_of((2, 20, 50), (1, 20, 5))
    torn = slice_of((1, 20, 50), (1, 50, 50), (2, 20, 5))
    specked = right.copy()
    specked[60, 60] = 1  # less than a tenth of the organ
    alone = slice_of((1, 20, 5))  # no other organ says which side it is
    found = plausibility(np.stack([right, exchanged, torn, specked, alone]), names)
    assert found == Plausibility(one_piece=0.8, sides=0.8, both=0.6, organs=1.8)


def test_the_loss_of_a_network_that_answers_zero_is_the_variance_of_its_target(
    store: Path, codec: Path, tmp_path: Path
) -> None:
    config = run_config("base", store, tmp_path / "run", model={"codec": codec})
    stage = BaseStage(config, ORGANS)
    for parameter in stage.dit.final_layer.parameters():
        torch.nn.init.zeros_(parameter)
    masks = np.zeros((64, 64, 64), np.uint8)
    loss = held_out_loss(stage, masks, seed=0)  # of epsilon, which is standard normal
    values = 4 * masks.size * stage.noise_channels / 64
    assert loss == pytest.approx(1.0, abs=4 * (2 / values) ** 0.5)
    assert loss == held_out_loss(stage, masks, seed=0) != held_out_loss(stage, masks, seed=1)


def test_bases_are_measured_on_cases_that_they_have_not_seen(
    store: Path, codec: Path, tmp_path: Path, run: Run
) -> None:
    trained = train(run_config("base", store, tmp_path / "run", model={"codec": codec}, steps=2))
    with pytest.raises(UsageError, match="was trained on"):
        measure_prior([trained], (CASES[0],), samples=8, steps=2)
    code, out, err = run(
        "benchmark", "prior", trained, "-o", tmp_path / "out", "--cases", CASES[2], "--samples", 8, "--steps", 2
    )
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[2].startswith("| run | 2 |")
    assert lines[3].startswith("| real masks |")
    assert (tmp_path / "out" / "prior.md").read_text() == out
    assert json.loads((tmp_path / "out" / "prior.json").read_text())["rows"][0]["steps"] == 2
    assert (tmp_path / "out" / "prior.png").read_bytes().startswith(b"\x89PNG")
