"""Many answers for one scan: their agreement against a count by hand, images turned there and back, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from meddelinea.benchmark.bench_file import BenchFile
from meddelinea.benchmark.spread import TURNED, _moved, _turned_back, disagreement_auroc
from meddelinea.benchmark.spread_picture import AnswerRow
from meddelinea.data.augment import draw
from support.cli import Run
from support.tiny_models import run_config, write_model
from support.training_runs import train


def test_the_auroc_is_the_share_of_pairs_in_which_the_wrong_voxel_is_less_agreed_on() -> None:
    rng = np.random.default_rng(0)
    truth, label = rng.integers(0, 3, (2, 4, 5, 6)).astype(np.uint8)
    labels = [np.where(rng.random(label.shape) < 0.3, rng.integers(0, 3, label.shape), label).astype(np.uint8)] * 2
    labels.append(np.where(rng.random(label.shape) < 0.5, truth, label).astype(np.uint8))
    asked = (truth > 0) | np.any(np.stack(labels) > 0, axis=0)
    differing = sum((one != label).astype(int) for one in labels)[asked]
    wrong = (label != truth)[asked]
    pairs = [(w > r) + 0.5 * (w == r) for w in differing[wrong] for r in differing[~wrong]]
    assert disagreement_auroc(labels, label, truth) == pytest.approx(np.mean(pairs))


def test_an_image_that_is_moved_is_turned_back_where_it_was() -> None:
    smooth = gaussian_filter(np.random.default_rng(0).normal(size=(4, 1, 64, 64)), (0, 0, 5, 5)).astype(np.float32)
    image = torch.from_numpy(smooth / np.abs(smooth).max() * 0.5)
    drawn = draw(TURNED, [(0, 1, 0, index) for index in range(4)])
    moved = _moved(image, drawn)
    plain = (moved - drawn.offset[:, None, None, None]) / drawn.gain[:, None, None, None]
    back = _turned_back(plain, drawn)
    inside = (slice(None), slice(None), slice(16, 48), slice(16, 48))
    assert float((moved - image)[inside].abs().max()) > 0.1
    assert float((back - image)[inside].abs().max()) < 0.02


def test_disagreement_is_the_share_of_the_answers_that_the_most_frequent_one_is_not() -> None:
    masks = np.array([[[0, 1, 2]], [[0, 1, 1]], [[0, 2, 0]], [[0, 1, 1]]], np.uint8)
    assert AnswerRow("", masks).disagreement.tolist() == [[0.0, 0.25, 0.5]]


def test_a_model_that_samples_and_one_that_does_not_are_asked_for_the_same_time(
    bench: BenchFile, tmp_path: Path, run: Run
) -> None:
    network = {"method": "unet", "sizes": {"widths": [4, 8, 8]}}
    unet = train(run_config("model", bench.store, tmp_path / "unet", model=network, data={"train": bench.train}))
    models = (write_model(tmp_path), unet / "pipeline")
    asked = (
        "--source",
        bench.source,
        "--format",
        "pairs",
        "--cases",
        ",".join(bench.test),
        "--samples",
        3,
        "--steps",
        2,
        "--scheduler",
        "ddim",
    )
    code, out, err = run("benchmark", "spread", *models, *asked, "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    assert (tmp_path / "out" / "spread.md").read_text() == out
    with Image.open(tmp_path / "out" / "spread.png") as picture:
        assert picture.height > 4 * 200  # one step, four and twenty, and augmented images
    ours, theirs = json.loads((tmp_path / "out" / "spread.json").read_text())["models"]
    assert [case["passes"] for case in ours["cases"]] == [3] * len(bench.test)
    assert (ours["steps"], theirs["steps"]) == (2, None)
    for own, other in zip(ours["cases"], theirs["cases"], strict=True):
        assert other["passes"] == 128 or other["seconds"] >= own["seconds"] * 0.9
        best, single = np.array(own["best"], float), np.array(own["single"], float)
        assert (best[np.isfinite(best)] >= single[np.isfinite(single)]).all()
    code, _, err = run("benchmark", "spread", models[1], *asked, "-o", tmp_path / "no")
    assert code == 2
    assert "does not sample" in err
