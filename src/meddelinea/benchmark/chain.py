"""The stages of a method, one after the other, within one budget of processor time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meddelinea.benchmark.bench_file import BenchFile
from meddelinea.errors import UsageError
from meddelinea.training.checkpoint import load_checkpoint
from meddelinea.training.config import ENDLESS, RunConfig
from meddelinea.training.engine import Progress, train
from meddelinea.training.metrics_log import MetricsLog, Row
from meddelinea.training.run_file import load_config


@dataclass(frozen=True)
class StageCost:
    """What the training of a stage took: optimiser steps, slices seen, and the processor's seconds."""

    stage: str
    steps: int
    slices: int
    cpu_seconds: float


def train_chain(
    run_files: tuple[Path, ...], folder: Path, bench: BenchFile, train_on: tuple[str, ...]
) -> Iterator[tuple[str, Progress]]:
    """Train the stages in order, each on the results of those before; a step each time that the next one is asked for.

    Finished stages are kept, a stopped one is resumed. Stages without `cpu_minutes` take their steps. Those with it
    share what is left of the budget in proportion of it, so that the same files fit any budget; the last has all that
    is left then. Without a budget each takes what its file says. Cases of the files are not used, and the benchmark's
    validation cases only in a stage that trains a whole model. `read_chain` says what came of it.

    Parameters
    ----------
    folder
        For the runs, `1-codec` and so on.
    bench
        What all methods share: the slice store, the time of all stages together, by the processor or by the clock, and
        the seed of each.
    train_on
        Cases of the store that every stage is trained on.

    Yields
    ------
    A stage's name and its progress.

    Raises
    ------
    UsageError
        If nothing of the budget is left for a stage, the last stage leaves no whole model or has no `cpu_minutes` where
        another has, or `folder` holds runs of other settings.
    """
    runs = [load_config(path) for path in run_files]
    budget = bench.cpu_minutes or bench.minutes
    limit, spent = ("cpu_minutes", "cpu_seconds") if bench.minutes is None else ("minutes", "seconds")
    shares = [0.0 if budget is None else run.cpu_minutes or 0.0 for run in runs]
    if any(shares) and not shares[-1]:
        raise UsageError(f"{run_files[-1]}: no cpu_minutes; expected its share of the time, as of the stages before it")
    if runs[-1].stage != "model":
        raise UsageError(f"{run_files[-1]}: stage '{runs[-1].stage}' leaves no whole model; expected 'model' as last")
    if budget is not None:
        shares[-1] = shares[-1] or 1.0
    results: dict[str, Path] = {}
    used = 0.0
    for number, (path, output) in enumerate(zip(run_files, _outputs(run_files, folder), strict=True)):
        config = runs[number].changed(
            output=output,
            data={
                "store": bench.store,
                "train": train_on,
                "validation": bench.validation if runs[number].stage == "model" else (),
                "test": (),
                "split": None,
                "train_share": 1.0,
            },
            model=_parts(results, another=runs[number - 1].model.method != runs[number].model.method),
            seed=bench.seed,
        )
        if budget is not None and shares[number]:
            left = budget - used
            if left <= 0:
                unit = "CPU minutes" if limit == "cpu_minutes" else "minutes"
                raise UsageError(
                    f"{path}: the stages before it took {used:.1f} of {budget:g} {unit}; give more, or shorten them"
                )
            minutes = left * shares[number] / sum(shares[number:])
            config = config.changed(**{"cpu_minutes": None, "minutes": None, limit: minutes}, steps=ENDLESS)
        for progress in _train(config):
            yield config.stage, progress
        results[config.stage] = config.result
        used += _last(output)[spent] / 60.0


def read_chain(run_files: tuple[Path, ...], folder: Path) -> tuple[Path, tuple[StageCost, ...], int]:
    """What `train_chain` left in `folder`: the model, each stage's cost, the parameters that the last one trained."""
    outputs = _outputs(run_files, folder)
    costs = tuple(map(_cost, outputs))
    checkpoint = load_checkpoint(outputs[-1])
    trained = sum(weight.numel() for weight in checkpoint.weights.values()) if checkpoint else 0
    return outputs[-1] / "pipeline", costs, trained


def _outputs(run_files: tuple[Path, ...], folder: Path) -> list[Path]:
    return [folder / f"{number}-{path.stem}" for number, path in enumerate(run_files, start=1)]


def _parts(results: dict[str, Path], another: bool) -> dict[str, Path | None]:
    """Settings that let a stage start from the results of those before it, or take the boxes of `another` method."""
    if "model" in results and another:
        return {"boxes": results["model"]}
    if "model" in results:
        return {"pipeline": results["model"], "codec": None, "dit": None}
    keys = {"codec": "codec", "base": "dit"}
    return {key: results[stage] for stage, key in keys.items() if stage in results}


def _train(config: RunConfig) -> Iterator[Progress]:
    """Train the stage, unless its result is there."""
    begun = config.output / "run.json"
    if begun.is_file() and _without_places(load_config(begun)) != _without_places(config):
        raise UsageError(f"{config.output}: a run with other settings; remove it, or choose another output")
    if not config.result.is_dir():
        yield from train(config, resume=begun.is_file())


def _without_places(config: RunConfig) -> RunConfig:
    """The run without its folders, which may be moved together."""
    return config.changed(output=Path(), model={"codec": None, "dit": None, "boxes": None, "pipeline": None})


def _cost(output: Path) -> StageCost:
    config, last = load_config(output / "run.json"), _last(output)
    steps = int(last["step"])
    return StageCost(config.stage, steps, steps * config.batch_size * config.accumulation, last["cpu_seconds"])


def _last(output: Path) -> Row:
    """The last row of a run's log."""
    rows = MetricsLog(output).read()
    return rows[-1] if rows else {"step": 0, "cpu_seconds": 0.0, "seconds": 0.0}
