"""The steps of a run: their learning rate, time, precision, resolution and log."""

import json
import math
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from meddelinea.errors import MedDelineaError
from meddelinea.methods.protocol import Batch
from meddelinea.training import clock, engine
from meddelinea.training.config import OptimiserConfig
from meddelinea.training.run import Run, learning_rate_factor
from meddelinea.training.stages import BaseStage
from support.tiny_models import CASES, SIDE, blobs, run_config, write_store
from support.training_runs import control_config, metrics, read_checkpoint, train


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_learning_rate_without_warmup(share: float) -> None:
    step = 7  # plays no part
    assert learning_rate_factor(OptimiserConfig(schedule="constant"), step, share) == 1.0
    assert learning_rate_factor(OptimiserConfig(schedule="linear"), step, share) == pytest.approx(1 - share)
    half_turn = math.cos(math.pi * share / 2) ** 2  # the half-angle formula
    assert learning_rate_factor(OptimiserConfig(schedule="cosine"), step, share) == pytest.approx(half_turn)


def test_learning_rate_warms_up_linearly() -> None:
    config = OptimiserConfig(schedule="constant", warmup_steps=4)
    assert [learning_rate_factor(config, step, 0.1) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    both = OptimiserConfig(schedule="linear", warmup_steps=4)
    assert learning_rate_factor(both, 1, 0.2) == pytest.approx(0.5 * 0.8)


@pytest.mark.parametrize(("limit", "hand"), [("minutes", "seconds"), ("cpu_minutes", "cpu_seconds")])
def test_a_time_ends_a_run_and_drives_its_learning_rate(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, hand: str
) -> None:
    hands = {"seconds": 100.0, "cpu_seconds": 7.0}
    faked = SimpleNamespace(monotonic=lambda: hands["seconds"], process_time=lambda: hands["cpu_seconds"])
    monkeypatch.setattr(clock, "time", faked)
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, steps=10**6, **{limit: 1.0})
    for _ in engine.train(config):
        hands[hand] += 15.0
    rows = metrics(config.output)
    other = "seconds" if hand == "cpu_seconds" else "cpu_seconds"
    assert [row[hand] for row in rows] == [0, 15, 30, 45, 60]
    assert {row[other] for row in rows} == {0}
    shares = [0.0, 0.0, 0.25, 0.5, 0.75]  # at the start of each step
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * share)) for share in shares]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)


def test_progress_and_learning_rate_follow_the_steps(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    optimiser = {"schedule": "linear", "warmup_steps": 2}
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, optimiser=optimiser)
    seen = list(engine.train(config))
    assert [(p.step, p.steps, p.share) for p in seen] == [(1, 4, 0.25), (2, 4, 0.5), (3, 4, 0.75), (4, 4, 1.0)]
    assert [p.figures["learning_rate"] for p in seen] == pytest.approx([0.5e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_a_tensorboard_log_appears(parts: dict[str, Path]) -> None:
    pytest.importorskip("tensorboard")
    run = parts["dit"].parent
    assert list(run.rglob("events.out.tfevents.*"))


def test_half_precision_does_not_round_what_is_trained_on(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(control_config(store, parts, tmp_path / "run", precision="bf16"))
    run.open()
    seen: list[Batch] = []
    forward = run.stage.forward

    def watched(batch: Batch) -> dict[str, Tensor]:
        seen.append(batch)
        return forward(batch)

    monkeypatch.setattr(run.stage, "forward", watched)
    run.step()
    for drawn, expected in zip(seen[0], run.dataset[0], strict=True):
        assert torch.equal(drawn, expected)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", ["codec", "base", "model"])
def test_half_precision_runs(store: Path, parts: dict[str, Path], tmp_path: Path, stage: str, precision: str) -> None:
    model = {"codec": {}, "base": {"codec": parts["codec"]}, "model": parts}[stage]
    config = run_config(stage, store, tmp_path / "run", model=model, precision=precision, steps=2, batch_size=2)
    train(config)
    assert all(math.isfinite(row["total"]) for row in metrics(config.output))
    assert {p.dtype for p in read_checkpoint(config.output).weights.values()} == {torch.float32}


def test_gradient_checkpointing_changes_the_cost_and_not_the_losses(
    store: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    plain = train(control_config(store, parts, tmp_path / "plain"))
    switched = train(control_config(store, parts, tmp_path / "switched", gradient_checkpointing=True))
    for mine, theirs in zip(metrics(plain), metrics(switched), strict=True):
        assert mine["total"] == pytest.approx(theirs["total"], abs=1e-5)


@pytest.mark.filterwarnings("ignore")  # of torch.compile about itself
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiling_changes_the_cost_and_not_the_losses(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """The graphs are what `aot_eager` runs; only the default backend turns them into C++."""
    if backend == "inductor" and which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    compiled: list[object] = []
    through = torch.compile

    def compile_by(model: Any, **options: Any) -> Any:
        compiled.append(model)
        return through(model, backend=backend, **options)

    plain = train(control_config(store, parts, tmp_path / "plain"))
    monkeypatch.setattr(torch, "compile", compile_by)
    switched = train(control_config(store, parts, tmp_path / "switched", compile=True))
    assert compiled
    for mine, theirs in zip(metrics(plain), metrics(switched), strict=True):
        assert mine["total"] == pytest.approx(theirs["total"], abs=1e-5)


def test_resolutions_take_turns(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    large = write_store(tmp_path / "large", blobs(2 * SIDE), size=2 * SIDE)
    config = control_config(
        large, parts, tmp_path / "run", data={"resolutions": [64, 128], "validation": CASES[2:]}, accumulation=2
    )
    folder = train(config) / "pipeline"
    preprocessing = json.loads((folder / "preprocessing.json").read_text())
    assert (preprocessing["size"], preprocessing["spacing_mm"]) == (64, 12.0)
    assert "dice" in metrics(config.output)[-1]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = run_config(
        "base", store, tmp_path / "run", model={"codec": parts["codec"]}, steps=9, checkpoint_minutes=1e-9
    )
    sane, calls = BaseStage.forward, []

    def forward(stage: BaseStage, batch: Batch) -> dict[str, Tensor]:
        losses = sane(stage, batch)
        calls.append(None)
        if len(calls) == 4:
            # The derivative of sqrt(0 * x) is not a number, its value is 0.
            poison = {"loss": losses["total"] * math.nan, "gradient": (losses["total"] * 0.0).sqrt()}
            losses["total"] = losses["total"] + poison[where]
        return losses

    monkeypatch.setattr(BaseStage, "forward", forward)
    with pytest.raises(MedDelineaError, match=r"nan at step 4 on the slices [ab] \d, .* resume the run") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    kept = read_checkpoint(config.output)
    assert kept.step == 3
    assert all(torch.isfinite(value).all() for value in kept.weights.values())
    assert len(metrics(config.output)) == 3

    train(config, resume=True)  # the fault was the test's, so the run now ends
    assert [row["step"] for row in metrics(config.output)] == list(range(1, 10))
