"""From what a dataset is like to how it is trained: every decision by a rule, with its reason.

A plan depends on the survey, on what it may cost, and on nothing else: the same data give the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meddelinea.data.preprocess import Preprocessing
from meddelinea.data.splits import drawn_order
from meddelinea.errors import InputRefusedError
from meddelinea.fitting.rules import (
    SIDE,
    Decision,
    choose_augmentation,
    choose_draw,
    choose_grid,
    choose_network,
    choose_view,
)
from meddelinea.fitting.stage_files import BASE, COARSE, CODEC, from_model, stage_files
from meddelinea.fitting.survey import CaseFacts, Survey

#: Share of the time that the trainings have, and the trial of where to start; the rest is for reading and testing.
TRAINING_SHARE, TRIAL_SHARE = 0.8, 0.05
#: How much faster than a core a GPU is taken to be, and how many more slices a step has there.
GPU_SPEED, GPU_SLICES = 20.0, 4
#: Bytes: of torch and the weights with gradients, averages and Adam's moments; of a pixel of a slice in training, of
#: one of its organs; and of a voxel of a scan that is read.
FIXED_BYTES, PIXEL_BYTES, ORGAN_BYTES, VOXEL_BYTES = 0.9e9, 6_000, 60, 20

Start = Literal["scratch", "base"]


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a plan may cost."""

    hours: float
    clock: Literal["wall", "processor"]  # whether hours are those of the clock, or of each core
    cores: int
    memory_gb: float  # of the machine, or of a GPU
    gpus: int = 0


@dataclass(frozen=True, kw_only=True)
class Base:
    """A model that could be started from."""

    name: str
    folder: Path
    neighbours: int
    neighbour_pairs: int
    organs: tuple[str, ...]
    unfit: str  # why it cannot be; empty where it can


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a dataset is trained: what the files of a plan's folder hold."""

    organs: tuple[str, ...]
    cases: tuple[str, ...]  # in the order that folds are taken of
    folds: int  # 0 where there are too few patients
    preprocessing: Preprocessing
    minutes: float  # of a training
    trial_minutes: float  # of a trial; 0 for none
    trainings: int  # that run side by side
    starts: Mapping[Start, tuple[str, ...]]  # stages in their order, by where they start from
    stages: Mapping[str, Mapping[str, Any]]  # run files, but for store, cases and folders, by name
    decisions: tuple[Decision, ...]


def make_plan(
    survey: Survey, means: Means, *, folds: int, base: Base | None = None, scratch: bool = True, seed: int = 0
) -> Plan:
    """Decide how a dataset is trained.

    Parameters
    ----------
    survey
        The dataset, without its faulty cases.
    folds
        Of the cross-validation; fewer where there are fewer patients.
    base
        A model that may be started from.
    scratch
        Whether a new model may be started, too.
    seed
        Of the order of patients.

    Raises
    ------
    InputRefusedError
        If no case is left.
    """
    cases = survey.cases
    if not cases:
        raise InputRefusedError(f"{survey.source}: no case is left to train on; repair the faulty ones")
    organs = tuple(organ for organ in survey.organs if any(organ in case.organs for case in cases))
    patients = drawn_order(tuple({case.patient for case in cases}), seed)
    count = min(folds, len(patients)) if len(patients) > 1 else 0
    unfit = base is None or bool(base.unfit)

    # How long a training takes, what the network sees in that time, and how many trainings the memory holds.
    side_by_side = min(means.gpus or means.cores, count + 1)
    last_stage = (1 - CODEC[0] - BASE[0]) * (1 - COARSE) * (GPU_SPEED if means.gpus else 1.0)
    grid, grid_decisions = choose_grid(cases, 60 * _minutes(means, count + 1, side_by_side) * last_stage)
    batch = 4 * (GPU_SLICES if means.gpus else 1) * (2 if grid.size <= SIDE else 1)
    memory_gb = (FIXED_BYTES + batch * grid.size**2 * (PIXEL_BYTES + ORGAN_BYTES * (len(organs) + 1))) / 1e9
    if not means.gpus:
        side_by_side = max(1, min(side_by_side, int(means.memory_gb / memory_gb)))
    minutes = _minutes(means, count + 1, side_by_side)

    # How slices are drawn and changed, and by what network they are segmented.
    fixed = None if base is None or unfit else (base.neighbours, base.neighbour_pairs, f"{base.name} sees so many")
    view, draw = choose_view(cases, grid.slice_mm, fixed), choose_draw(cases, organs)
    augmentation, network = choose_augmentation(organs, grid), choose_network(organs)

    # The stages, from each of the places where they may start.
    stages = stage_files(
        {**view.settings, **draw.settings},
        augmentation.settings,
        network.settings,
        side=grid.size,
        batch=batch,
        minutes=minutes,
    )
    models = [name for name, content in stages.items() if content["stage"] == "model"]
    starts: dict[Start, tuple[str, ...]] = {"scratch": tuple(stages)} if scratch or unfit else {}
    shares = ", ".join(f"{name} {content['cpu_minutes'] / minutes:.0%}" for name, content in stages.items())
    if base is not None and not unfit:
        stages[f"{models[0]}-from-{base.name}"] = from_model(models[0], str(base.folder))
        starts["base"] = (f"{models[0]}-from-{base.name}", *models[1:])
    if count < 2 and len(starts) > 1:  # nobody is left to try it on
        del starts["base"]

    order = {patient: place for place, patient in enumerate(patients)}
    return Plan(
        organs=organs,
        cases=tuple(case.name for case in sorted(cases, key=lambda case: (order[case.patient], case.name))),
        folds=count,
        preprocessing=grid,
        minutes=minutes,
        trial_minutes=means.hours * 60 * TRIAL_SHARE if len(starts) > 1 else 0.0,
        trainings=side_by_side,
        starts=starts,
        stages=stages,
        decisions=(
            *grid_decisions,
            *view.decisions,
            *draw.decisions,
            *augmentation.decisions,
            *network.decisions,
            _start(base, starts, organs),
            Decision("stages", shares, "coarse slices, a quarter of the cost, show where organs are"),
            _folds(count, folds, patients=len(patients), cases=len(cases)),
            _time(means, minutes, trainings=count + 1, side_by_side=side_by_side),
            _memory(cases, means, f"{batch} slices of {grid.size} pixels, {len(organs)} organs", memory_gb),
        ),
    )


def _minutes(means: Means, trainings: int, side_by_side: int) -> float:
    """Of each training."""
    return means.hours * 60 * TRAINING_SHARE / math.ceil(trainings / side_by_side)


def _start(base: Base | None, starts: Mapping[Start, tuple[str, ...]], organs: tuple[str, ...]) -> Decision:
    """Where training starts from."""
    if base is None:
        return Decision("start", "from scratch", "as asked for")
    if base.unfit:
        return Decision("start", "from scratch", f"{base.name} {base.unfit}")
    known = f"{base.name} knows {', '.join(organ for organ in organs if organ in base.organs) or 'none'} of the organs"
    if len(starts) > 1:
        return Decision("start", f"tried: from scratch, from {base.name}", f"{known}; the better one goes on")
    if "base" in starts:
        return Decision("start", f"from {base.name}", f"as asked for; {known}")
    return Decision("start", "from scratch", f"{known}, and no second patient is there to try it on")


def _folds(count: int, wanted: int, *, patients: int, cases: int) -> Decision:
    if not count:
        return Decision("folds", "none", "one patient: nothing is left to test on")
    few = f", fewer than {wanted}" if count < wanted else ""
    return Decision("folds", str(count), f"{cases} cases of {patients} patients{few}; split by patient")


def _time(means: Means, minutes: float, *, trainings: int, side_by_side: int) -> Decision:
    where = f"{means.gpus} GPU" if means.gpus else f"{means.cores} core"
    given = f"{means.hours:g} h by the {'clock' if means.clock == 'wall' else 'processor'} on {where}(s)"
    value = f"{minutes:.3g} minutes a training, {side_by_side} side by side"
    return Decision("time", value, f"{given}, {TRAINING_SHARE:.0%} of it for {trainings} training(s)")


def _memory(cases: Sequence[CaseFacts], means: Means, size: str, training_gb: float) -> Decision:
    reading_gb = max(math.prod(case.shape) for case in cases) * VOXEL_BYTES / 1e9
    value = f"about {training_gb:.1f} GB a training, {reading_gb:.1f} GB to read the largest scan"
    return Decision("memory", value, f"{size}; {means.memory_gb:.0f} GB are there")
