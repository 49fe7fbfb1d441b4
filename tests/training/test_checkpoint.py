"""Checkpoints: a run that is killed and resumed is the same run, and what is no checkpoint of it is refused."""

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.models.dit import DiT
from meddelinea.training import checkpoint, engine
from meddelinea.training.checkpoint import load_checkpoint
from meddelinea.training.config import RunConfig
from support.forked import run_together
from support.tiny_models import CASES, SIZES, run_config
from support.training_runs import assert_same_weights, control_config, metrics, read_checkpoint, train

SAME: dict[str, Any] = {
    "steps": 8,
    "data": {"validation": CASES[2:]},
    "validation": {"every": 3},
    "optimiser": {"learning_rate": 1e-2, "warmup_steps": 3, "ema_decay": 0.9},
}


@pytest.fixture(scope="module")
def straight(store: Path, parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    return train(control_config(store, parts, tmp_path_factory.mktemp("straight") / "run", **SAME))


def train_and_die(config: RunConfig, moment: str) -> None:
    """Train and be killed, at a moment."""
    saved: list[Path] = []
    save = torch.save

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save_or_die(state: object, path: Path) -> None:
        saved.append(path)
        if moment == "in a checkpoint" and len(saved) == 5:
            path.write_bytes(b"half a checkpoint")
            die()
        save(state, path)

    torch.set_num_threads(1)
    checkpoint.torch.save = save_or_die  # this process is about to end
    if moment == "in the result":
        MedDelineaPipeline.save_pretrained = die
    for progress in engine.train(config):
        if (moment, progress.step) in (("between two checkpoints", 5), ("before the first checkpoint", 2)):
            die()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize(
    ("moment", "minutes", "step"),
    [
        ("before the first checkpoint", 60.0, None),
        ("between two checkpoints", 1e-9, 4),  # one after every step
        ("in a checkpoint", 1e-9, 4),
        ("in the result", 1e-9, 8),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    store: Path,
    parts: dict[str, Path],
    straight: Path,
    tmp_path: Path,
    moment: str,
    minutes: float,
    step: int | None,
) -> None:
    config = control_config(store, parts, tmp_path / "killed", checkpoint_minutes=minutes, **SAME)
    assert run_together(train_and_die, (config, moment)) == [-signal.SIGKILL]
    left = load_checkpoint(config.output)
    assert (left and left.step) == step
    assert not (config.output / "pipeline").exists()
    with (config.output / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "tot')  # as a kill within a write would leave it
    train(config, resume=True)

    ours, theirs = read_checkpoint(config.output), read_checkpoint(straight)
    assert ours.step == theirs.step == 8
    for name, value in theirs.weights.items():
        assert torch.equal(ours.weights[name], value), name
    assert any(not torch.equal(a, b) for a, b in zip(theirs.ema["shadow_params"], theirs.weights.values(), strict=True))
    for a, b in zip(ours.ema["shadow_params"], theirs.ema["shadow_params"], strict=True):
        assert torch.equal(a, b)
    one, other = (MedDelineaPipeline.from_pretrained(run / "pipeline") for run in (config.output, straight))
    assert_same_weights(one.control, other.control)
    assert_same_weights(one.mask_head, other.mask_head)

    times = {"seconds": None, "cpu_seconds": None}
    rows = [[{**row, **times} for row in metrics(run)] for run in (config.output, straight)]
    assert [row["step"] for row in rows[1]] == list(range(1, 9))
    assert ["dice" in row for row in rows[1]] == [step in (3, 6, 8) for step in range(1, 9)]
    assert rows[0] == rows[1]


def test_the_result_holds_averaged_weights(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    folder = train(
        run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, optimiser={"ema_decay": 0.5})
    )
    checkpoint = read_checkpoint(folder)
    weights = dict(DiT.from_pretrained(folder / "dit").named_parameters())
    for name, average in zip(checkpoint.weights, checkpoint.ema["shadow_params"], strict=True):
        assert torch.equal(weights[name.removeprefix("dit.")], average), name


def test_a_run_is_not_overwritten(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, steps=1)
    train(config)
    files = {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds a run already; resume it"):
        train(config)
    assert files == {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()}


def test_resume_without_a_run_is_refused(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]})
    with pytest.raises(InputRefusedError, match="no run to resume"):
        train(config, resume=True)


@pytest.mark.parametrize("other", [{"width": 64}, {"depth": 3}, {"classes": 5}])
def test_the_checkpoint_of_another_model_is_refused(
    store: Path, parts: dict[str, Path], tmp_path: Path, other: dict[str, int]
) -> None:
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, steps=1)
    train(config)
    wider = run_config("base", store, config.output, model={"codec": parts["codec"], "sizes": {**SIZES, **other}})
    with pytest.raises(InputRefusedError, match="the checkpoint trains other parameters") as caught:
        train(wider, resume=True)
    assert "\n" not in str(caught.value)


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.made,)


@pytest.mark.parametrize("writer", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_checkpoint_is_never_unpickled(tmp_path: Path, writer: Any) -> None:
    writer({"step": Malicious(tmp_path / "made")}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputRefusedError, match="not a training checkpoint") as caught:
        read_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no checkpoint at all"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputRefusedError, match="not a training checkpoint"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("thing", [[1, 2], {"step": 1}, 3])
def test_something_else_saved_by_torch_is_refused(tmp_path: Path, thing: Any) -> None:
    torch.save(thing, tmp_path / "checkpoint.pt")
    with pytest.raises(InputRefusedError, match="not a training checkpoint"):
        read_checkpoint(tmp_path)
