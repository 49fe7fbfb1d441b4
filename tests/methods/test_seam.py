"""A new method is one file and one line of the list: nothing else of the package has to know of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from meddelinea.errors import UsageError
from meddelinea.methods import known
from meddelinea.methods.known import METHODS, load_pipeline, method_of, pipeline_of
from meddelinea.scan import Scan
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.training.adapt import AdaptSettings
from meddelinea.volume import Volume
from support.tiny_models import CASES, ORGANS, blobs, run_config, write_blobs, write_store
from support.training_runs import adapt, train

OTHERS = ("liver", "kidney stone", "spleen")


@pytest.fixture(autouse=True)
def _the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "METHODS", {**METHODS, "grey": "support.grey_method.GreyPipeline"})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_blobs(tmp_path / "store")


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """The same scans, one of whose organs a model of `store` does not know."""
    return write_store(tmp_path / "others", blobs(), organs=OTHERS)


@pytest.fixture
def trained(store: Path, tmp_path: Path) -> Path:
    model = {"method": "grey", "sizes": {}}
    config = run_config("model", store, tmp_path / "run", model=model, data={"validation": CASES[2:]}, steps=20)
    return train(config) / "pipeline"


def test_it_is_trained_and_validated(trained: Path) -> None:
    rows = [json.loads(line) for line in (trained.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    assert rows[-1]["dice"] > 0.5  # the blobs are told apart by their grey values
    pipeline = load_pipeline(trained)
    assert pipeline.organs == ORGANS
    assert (pipeline.levels.level != torch.linspace(-1, 1, len(ORGANS) + 1)).all()


def test_it_predicts(trained: Path) -> None:
    array = np.full((40, 32, 5), -125.0, np.float32)
    array[10:30, 8:24] = 275.0  # as bright as the gallbladder
    scan = Scan(volume=Volume(array, np.diag([8.0, 8.0, 5.0, 1.0])), modality="CT")
    found = segment(load_model(trained, "cpu"), scan)
    assert (found.mask.array[15:25, 12:20, 2] == 1 + ORGANS.index("gallbladder")).all()
    assert not found.mask.array[:5].any()
    assert (found.steps, found.scheduler, found.samples) == (None, None, None)


def test_it_is_fine_tuned_to_other_organs_and_measured_zero_shot(trained: Path, others: Path, tmp_path: Path) -> None:
    level = dict(zip(("background", *ORGANS), load_pipeline(trained).levels.level.tolist(), strict=True))
    model = {"method": "grey", "sizes": {}, "pipeline": trained}
    tuned = run_config("model", others, tmp_path / "tuned", model=model, optimiser={"learning_rate": 1e-9})
    after = load_pipeline(train(tuned) / "pipeline")
    assert after.organs == OTHERS
    expected = [level[name] for name in ("background", "liver", "background", "spleen")]
    assert after.levels.level.tolist() == pytest.approx(expected, abs=1e-6)

    measured = run_config("model", others, tmp_path / "zero", model=model, steps=0, data={"validation": CASES[2:]})
    assert load_pipeline(train(measured) / "pipeline").organs == ORGANS
    (row,) = [json.loads(line) for line in (measured.output / "metrics.jsonl").read_text().splitlines()]
    assert row["dice/kidney stone"] == 0.0


def test_it_is_adapted(trained: Path, others: Path, tmp_path: Path) -> None:
    result = adapt(trained, others, CASES[:1], tmp_path / "adapted", AdaptSettings(steps=2))
    assert result.kept == "adapted"
    assert load_pipeline(tmp_path / "adapted").organs == OTHERS


def test_its_sizes_are_checked_with_the_run_file(store: Path) -> None:
    with pytest.raises(ValidationError, match="grey levels have no sizes"):
        run_config("model", store, Path("run"), model={"method": "grey", "sizes": {"width": 3}})


def test_every_method_of_the_list_is_found_by_its_name_and_by_its_pipelines() -> None:
    for method in METHODS:
        assert method_of(pipeline_of(method).__name__) == method
    assert len({pipeline_of(method) for method in METHODS}) == len(METHODS)
    assert method_of("StableDiffusionPipeline") is None
    with pytest.raises(UsageError, match="unknown method 'vnet'; expected one of meddelinea"):
        pipeline_of("vnet")
