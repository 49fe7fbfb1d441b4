"""The stages of a method, one after the other, within one budget of processor time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddelinea.errors import UsageError
from meddelinea.training.checkpoint import load_checkpoint
from meddelinea.training.config import RunConfig, load_config
from meddelinea.training.engine import Progress
from meddelinea.training.engine import train as run_stage

#: Steps of a stage that the clock ends.
ENDLESS = 10**9
#: Folder of each stage's result in that of its run.
RESULTS = {"codec": "codec", "base": "dit", "control": "pipeline", "baseline": "pipeline"}


@dataclass(frozen=True)
class ChainSettings:
    """What all methods of a comparison share.

    Parameters
    ----------
    store, train
        The slice store, and the cases of it that every stage is trained on.
    cpu_minutes
        Processor time of all stages together.
    seed
        Of every stage.
    """

    store: Path
    train: tuple[str, ...]
    cpu_minutes: float
    seed: int


@dataclass(frozen=True)
class StageCost:
    """What the training of a stage took: optimiser steps, slices seen, and the processor's seconds."""

    stage: str
    steps: int
    slices: int
    cpu_seconds: float


@dataclass(frozen=True)
class Chain:
    """The model that the stages leave, what each took, and the parameters that the last one trained."""

    model: Path
    stages: tuple[StageCost, ...]
    trained_parameters: int


def train_chain(
    run_files: tuple[Path, ...],
    folder: Path,
    settings: ChainSettings,
    report: Callable[[str, Progress], None] | None = None,
) -> Chain:
    """Train the stages in order, each on the results of those before; finished ones are kept, a stopped one resumed.

    Stages without `cpu_minutes` take their steps. Those with it share what is left of the budget in proportion of it,
    so that the same files fit any budget; the last has all that is left then. Validation and test cases of the files
    are not used.

    Parameters
    ----------
    folder
        For the runs, `1-codec` and so on.
    report
        Called with a stage's name and its progress.

    Raises
    ------
    UsageError
        If nothing of the budget is left for a stage, the last stage leaves no whole model or has no `cpu_minutes` where
        another has, or `folder` holds runs of other settings.
    """
    shares = [load_config(path).cpu_minutes or 0.0 for path in run_files]
    if any(shares) and not shares[-1]:
        raise UsageError(f"{run_files[-1]}: no cpu_minutes; expected its share of the time, as of the stages before it")
    shares[-1] = shares[-1] or 1.0
    results: dict[str, Path] = {}
    costs: list[StageCost] = []
    for number, path in enumerate(run_files, start=1):
        changes = [
            f"output={json.dumps(str(folder / f'{number}-{path.stem}'))}",
            f"data.store={json.dumps(str(settings.store))}",
            f"data.train={json.dumps(settings.train)}",
            *("data.validation=[]", "data.test=[]", "data.split=null", "data.train_share=1.0"),
            f"seed={settings.seed}",
            *_parts(results),
        ]
        timed = shares[number - 1 :]
        if timed[0]:
            left = settings.cpu_minutes - sum(cost.cpu_seconds for cost in costs) / 60.0
            if left <= 0:
                raise UsageError(
                    f"{path}: the stages before it took {settings.cpu_minutes - left:.1f} of "
                    f"{settings.cpu_minutes:g} CPU minutes; give more, or shorten them"
                )
            changes += [f"cpu_minutes={left * timed[0] / sum(timed)}", "minutes=null", f"steps={ENDLESS}"]
        config = load_config(path, tuple(changes))
        results[config.stage] = _trained(config, report)
        costs.append(_cost(config))
    if RESULTS[config.stage] != "pipeline":
        raise UsageError(f"{path}: stage '{config.stage}' leaves no whole model; expected control or baseline as last")
    checkpoint = load_checkpoint(config.output)
    trained = sum(weight.numel() for weight in checkpoint.weights.values()) if checkpoint else 0
    return Chain(results[config.stage], tuple(costs), trained)


def _parts(results: dict[str, Path]) -> list[str]:
    """Settings that let a stage start from the results of those before it."""
    for stage in ("control", "baseline"):
        if stage in results:
            return [f"model.pipeline={json.dumps(str(results[stage]))}", "model.codec=null", "model.dit=null"]
    keys = {"codec": "model.codec", "base": "model.dit"}
    return [f"{key}={json.dumps(str(results[stage]))}" for stage, key in keys.items() if stage in results]


def _trained(config: RunConfig, report: Callable[[str, Progress], None] | None) -> Path:
    """The stage's result, trained now unless it is there."""
    result = config.output / RESULTS[config.stage]
    begun = config.output / "run.json"
    if begun.is_file() and _without_places(load_config(begun)) != _without_places(config):
        raise UsageError(f"{config.output}: a run with other settings; remove it, or choose another output")
    if not result.is_dir():
        stage = config.stage
        run_stage(config, resume=begun.is_file(), report=None if report is None else lambda step: report(stage, step))
    return result


def _without_places(config: RunConfig) -> RunConfig:
    """The run without its folders, which may be moved together."""
    model = config.model.model_copy(update={"codec": None, "dit": None, "pipeline": None})
    return config.model_copy(update={"output": Path(), "model": model})


def _cost(config: RunConfig) -> StageCost:
    rows = (config.output / "metrics.jsonl").read_text().splitlines()
    last: dict[str, Any] = json.loads(rows[-1]) if rows else {"step": 0, "cpu_seconds": 0.0}
    slices = last["step"] * config.batch_size * config.accumulation
    return StageCost(config.stage, last["step"], slices, last["cpu_seconds"])
