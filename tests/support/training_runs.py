"""Training from the first step to the last, for tests that are about what it leaves."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meddelinea.methods.protocol import Batch
from meddelinea.training import adapt as adapting
from meddelinea.training import engine
from meddelinea.training.adapt import Adaptation, AdaptSettings
from meddelinea.training.checkpoint import Checkpoint, load_checkpoint
from meddelinea.training.config import RunConfig
from support.tiny_models import SIZES, run_config

CONSTANT = {"schedule": "constant"}


def train(config: RunConfig, *, resume: bool = False) -> Path:
    """Train to the end; returns the run's folder."""
    for _ in engine.train(config, resume=resume):
        pass
    return config.output


def adapt(base: Path, store: Path, cases: tuple[str, ...], output: Path, settings: AdaptSettings) -> Adaptation:
    """Adapt to the end; returns what came of it."""
    for _ in adapting.adapt(base, store, cases=cases, output=output, settings=settings):
        pass
    return Adaptation.read(output)


def control_config(store: Path, parts: dict[str, Path], output: Path, **sections: Any) -> RunConfig:
    """A run of the control stage on the parts that were trained before."""
    model = {"sizes": SIZES, **parts, **sections.pop("model", {})}
    return run_config("model", store, output, model=model, **sections)


def metrics(folder: Path) -> list[dict[str, float]]:
    """The figures of each step."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint of a run, which has one."""
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Bit by bit, under the same names."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def hand_made_batch(size: int) -> Batch:
    """Random images, labels, noise and times."""
    g = torch.Generator().manual_seed(3)
    return Batch(
        torch.rand(size, 3, 64, 64, generator=g) * 2 - 1,
        torch.randint(0, 4, (size, 64, 64), generator=g),
        torch.randn(size, 4, 8, 8, generator=g),
        torch.rand(size, generator=g),
    )
