"""One run in two processes, sharded or not, and in parts of a batch: the same losses."""

import os
import socket
from pathlib import Path

import pytest
import torch

from meddelinea.cli.main import main
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.methods.protocol import Batch
from meddelinea.training.config import RunConfig
from meddelinea.training.run import Run
from support.forked import run_together
from support.tiny_models import CASES, run_config
from support.training_runs import CONSTANT, control_config, hand_made_batch, metrics, read_checkpoint, train


def train_as(rank: str, port: int, run_file: Path) -> None:
    """Train as `torchrun` and `accelerate launch` start each process of a machine."""
    os.environ.update(
        RANK=rank,
        LOCAL_RANK=rank,
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    main(["train", "--quiet", "--debug", str(run_file)])


def in_two_processes(config: RunConfig, folder: Path) -> None:
    """Run a config in two processes of this machine."""
    run_file = folder / f"{config.output.name}.json"
    run_file.write_text(config.model_dump_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert run_together(train_as, ("0", port, run_file), ("1", port, run_file)) == [0, 0]


@pytest.mark.parametrize("sharding", [False, True])
def test_two_processes_with_half_the_batch_equal_one(
    store: Path, parts: dict[str, Path], tmp_path: Path, sharding: bool
) -> None:
    same = {"steps": 20, "data": {"validation": CASES[2:]}, "validation": {"every": 8}}
    alone = train(control_config(store, parts, tmp_path / "alone", batch_size=4, **same))
    config = control_config(store, parts, tmp_path / "together", batch_size=2, sharding=sharding, **same)
    in_two_processes(config, tmp_path)

    one, two = metrics(alone), metrics(config.output)
    assert len(one) == len(two) == 20
    for mine, theirs in zip(one, two, strict=True):
        for loss in ("total", "diffusion", "segmentation"):
            assert mine[loss] == pytest.approx(theirs[loss], abs=1e-4)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-2, abs=1e-4)
    assert [row["step"] for row in two if "dice" in row] == [8, 16, 20]
    assert two[-1]["dice"] == pytest.approx(one[-1]["dice"], abs=1e-2)
    a, b = (MedDelineaPipeline.from_pretrained(run / "pipeline").control for run in (alone, config.output))
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-2, msg=name)


def test_two_processes_with_half_the_batch_equal_one_in_the_codecs_stage(store: Path, tmp_path: Path) -> None:
    same = {"steps": 20, "data": {"crop": 32}}
    alone = train(run_config("codec", store, tmp_path / "alone", batch_size=8, **same))
    config = run_config("codec", store, tmp_path / "together", batch_size=4, **same)
    in_two_processes(config, tmp_path)
    for mine, theirs in zip(metrics(alone), metrics(config.output), strict=True):
        for loss in ("total", "pixels", "kl", "palette"):
            assert mine[loss] == pytest.approx(theirs[loss], abs=1e-4)


def test_a_sharded_run_is_resumed_by_one_process(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    whole = train(control_config(store, parts, tmp_path / "whole", batch_size=4, steps=10, optimiser=CONSTANT))
    half = control_config(
        store, parts, tmp_path / "half", batch_size=2, steps=5, sharding=True, precision="no", optimiser=CONSTANT
    )
    in_two_processes(half, tmp_path)
    train(control_config(store, parts, tmp_path / "half", batch_size=4, steps=10, optimiser=CONSTANT), resume=True)
    for mine, theirs in zip(metrics(whole), metrics(half.output), strict=True):
        assert mine["total"] == pytest.approx(theirs["total"], abs=1e-4)


def test_accumulating_halves_equals_the_whole_batch(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the mean squared error alone; the Dice of a batch is no mean over its slices."""
    whole = hand_made_batch(4)
    halves = [Batch(*(tensor[i : i + 2] for tensor in whole)) for i in (0, 2)]
    base = {"model": {"codec": parts["codec"]}, "steps": 3}
    monkeypatch.setattr(Run, "load_batches", lambda run: iter([whole] * 3))
    once = train(run_config("base", store, tmp_path / "once", **base))
    monkeypatch.setattr(Run, "load_batches", lambda run: iter(halves * 3))
    twice = train(run_config("base", store, tmp_path / "twice", accumulation=2, batch_size=2, **base))
    for a, b in zip(metrics(once), metrics(twice), strict=True):
        for figure in ("total", "gradient_norm", "learning_rate"):
            assert a[figure] == pytest.approx(b[figure], rel=1e-4), figure
    mine, theirs = read_checkpoint(once).weights, read_checkpoint(twice).weights
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-5, rtol=1e-3, msg=name)
