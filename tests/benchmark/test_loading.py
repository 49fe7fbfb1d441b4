"""Whether training waits for its data: figures that hang together, from the run's own batches."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from meddelinea.benchmark.loading import measure_loading
from meddelinea.data.store import SliceStore
from meddelinea.models.presets import build_codec, find_preset
from meddelinea.models.transformer import DiTBlock
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.run import Run as TrainingRun
from support.cli import Run
from support.tiny_models import SIZES, run_config, write_blobs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("store") / "store")


def test_a_slow_disk_and_slow_augmentation_show_where_they_are(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, batch = SliceStore.image, TrainingBatches.__getitem__

    def slow_image(self: SliceStore, case: int, index: int, reach: int, sides: int) -> np.ndarray:
        time.sleep(0.01)
        return image(self, case, index, reach, sides)

    def slow_batch(self: TrainingBatches, step: int) -> object:
        time.sleep(0.3)
        return batch(self, step)

    monkeypatch.setattr(SliceStore, "image", slow_image)
    monkeypatch.setattr(TrainingBatches, "__getitem__", slow_batch)
    measured = measure_loading(run_config("codec", store, tmp_path / "out", data={"crop": 32}), 3, (0,))
    assert 0.04 <= measured.read[0] < 0.3  # four slices
    assert measured.augmented[0] >= 0.34
    assert 0 < measured.step < 0.3  # on batches that are there
    assert (measured.batch_size, measured.device) == (4, "cpu")
    assert not (tmp_path / "out").exists()


def test_the_step_is_the_runs_own(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_codec(find_preset("small", SIZES)).save_pretrained(tmp_path / "codec")
    config = run_config(
        "base",
        store,
        tmp_path / "out",
        model={"codec": tmp_path / "codec"},
        gradient_checkpointing=True,
        accumulation=2,
    )
    step, averaged = TrainingRun.step, []

    def watched(run: TrainingRun) -> dict[str, float]:
        figures = step(run)
        assert all(block.gradient_checkpointing for block in run.stage.modules() if isinstance(block, DiTBlock))
        averaged.append(run.ema.optimization_step)
        return figures

    monkeypatch.setattr(TrainingRun, "step", watched)
    assert measure_loading(config, 4, (0,)).step > 0
    assert averaged == [1, 2, 3, 4]  # two that are not timed, and two of two batches each
    assert not (tmp_path / "out").exists()


def test_the_command_prints_a_row_for_each_way(run: Run, store: Path, tmp_path: Path) -> None:
    config = run_config("codec", store, tmp_path / "out", data={"crop": 32})
    (tmp_path / "run.json").write_text(config.model_dump_json())
    code, out, err = run("benchmark", "loading", tmp_path / "run.json", "--batches", 2, "--set", "batch_size=2")
    assert code == 0, err
    assert [re.split(r"\s{2,}", line)[1] for line in out.splitlines() if line.startswith("read")] == [
        "0",
        "2",
        "0",
        "2",
    ]
    assert "a training step on 2 slices takes" in out
    assert run("benchmark", "loading", tmp_path / "absent.yaml")[0] == 3
