"""A trained model and a few labelled scans -> a model for them, and only if it is better than the one before.

With so few scans the danger is not a slow start but a worse model: the paper's own few-shot models lie below its
zero-shot one (Tables 2 and 3, BTCV at 1 and 10 %). So the adapted model is compared with its base on patients that it
was not trained on, and the base is kept unless it loses.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic.dataclasses import dataclass as checked_dataclass

from meddelinea.checks.limits import ScanLimits
from meddelinea.collisions import require_apart
from meddelinea.data.splits import split_by_patient
from meddelinea.data.store import read_manifest
from meddelinea.errors import UsageError, WeightsMissingError
from meddelinea.files import ensure_name, whole_folder, write_json, write_text
from meddelinea.json_files import read_json, read_object
from meddelinea.training.config import OptimiserConfig, check
from meddelinea.training.engine import Progress
from meddelinea.training.engine import train as run_training
from meddelinea.training.metrics_log import MetricsLog

#: From so many patients on, a quarter of them is held out; fewer take turns in being left out.
PATIENTS_TO_HOLD_OUT_FROM = 4
#: Every how many slices of a held-out scan are measured.
STRIDE = 2

#: In the folder of an adapted model.
FILE = "adaptation.json"

#: Model card of an adapted model.
CARD = """---
license: other
base_model: {base}
---

`{base}` adapted to the labelled scans {cases}. The licence of `{base}` and that of the scans bind this model too. What
it was compared on, and what came of it, is in `adaptation.json`. **Research software, not a medical device.**
"""

#: Dice by its name in a run's log.
Figures = dict[str, float]
Check = Literal["held-out patients", "each patient left out in turn", "none: one patient"]


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """How long and how fast an adaptation learns."""

    steps: int = 400  # most optimiser steps of a training
    every: int = 25  # steps between measurements on held-out scans
    #: Measurements without a better one after which a training ends; organs that are new to a model stand still for a
    #: while before they come.
    patience: int = 12
    #: Of the training.
    learning_rate: float = 5e-4
    batch_size: int = 8
    seed: int = 0
    decoder: bool = False  # whether the decoder is trained too, or the control branch and the mask head only


@checked_dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What came of an adaptation; `adaptation.json` in the model's folder."""

    kept: Literal["adapted", "base"]  # which model the output folder holds
    check: Check  # what the two were compared on
    #: Cases of the adapted model's training, and of the comparison.
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    steps: int  # optimiser steps of the adapted model
    #: `dice/<organ>` and `dice`, their mean, on the held-out cases; empty where there were none.
    base: Mapping[str, float]
    adapted: Mapping[str, float]
    #: Those of the cases that the kept model refuses to segment, with the reason.
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, model: Path) -> Adaptation:
        """What the folder of an adapted model says of its adaptation."""
        return cls(**read_json(model / FILE))


#: A part of the work by name, and how far its training is.
Step = tuple[str, Progress]


def adapt(
    base: Path, store: Path, *, cases: tuple[str, ...], output: Path, settings: AdaptSettings | None = None
) -> Iterator[Step]:
    """Adapt a model to the organs and scans of a store, a training step each time that the next one is asked for.

    ::

        for part, progress in adapt(base, store, cases=cases, output=output):
            print(part, progress.step)
        result = Adaptation.read(output)

    Four patients and more: a quarter is held out, training stops when they get no better, and the best weights are
    kept. Two or three: each is left out in turn; the steps that serve them best on average are then trained on all.
    One: all steps are trained, and nothing is compared.

    Parameters
    ----------
    base
        Folder of a trained model.
    store
        Slice store with the model's preprocessing; its organs may be others than the model's.
    cases
        Those of its cases to use.
    output
        Folder of the resulting model, which must not exist.

    Raises
    ------
    UsageError
        If `output` exists, or no case is given.
    WeightsMissingError
        If `base` is not a model's folder.
    """
    settings = settings or AdaptSettings()
    if output.exists():
        raise UsageError(f"{output}: exists already; choose another output, or remove it")
    if not cases:
        raise UsageError("no case to adapt to; expected at least one labelled scan")
    stored = [case for case in read_manifest(store).cases if case.name in cases]
    patients = {case.name: case.patient for case in stored}
    ensure_name(output)
    require_apart([output], {}, base)
    output.parent.mkdir(parents=True, exist_ok=True)
    # Of its own for each run: two may have one output, and the second must not remove what the first works on.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".meddelinea-") as work:
        result, chosen = yield from _adapted(_Runs(base, store, Path(work), settings), patients)
        if output.exists():
            raise UsageError(f"{output}: another run has made it meanwhile; choose another output")
        with whole_folder(output) as folder:
            shutil.copytree(chosen, folder, dirs_exist_ok=True)
            limits = ScanLimits.read(folder)
            refused = {case.name: "; ".join(why) for case in stored if (why := case.refusals(limits))}
            result = replace(result, refused=refused)
            document = {**asdict(result), "from": base.name, "settings": asdict(settings)}
            write_json(document, folder / FILE)
            if result.kept == "adapted":
                write_text(CARD.format(base=base.name, cases=", ".join(result.train)), folder / "README.md")


def _adapted(run: _Runs, patients: Mapping[str, str]) -> Generator[Step, None, tuple[Adaptation, Path]]:
    """What came of it, and the folder of the model to keep."""
    count = len(set(patients.values()))
    if count >= PATIENTS_TO_HOLD_OUT_FROM:
        return (yield from _hold_out(run, patients))
    if count > 1:
        return (yield from _leave_one_out(run, patients))
    names, steps = tuple(patients), run.settings.steps
    result = Adaptation(
        kept="adapted", check="none: one patient", train=names, held_out=(), steps=steps, base={}, adapted={}
    )
    return result, (yield from run.train("all", names, (), steps=steps)) / "pipeline"


def _hold_out(run: _Runs, patients: Mapping[str, str]) -> Generator[Step, None, tuple[Adaptation, Path]]:
    """Train on three quarters of the patients, stop and compare on the others."""
    s, split = run.settings, split_by_patient(patients, 0.75, 0.25, run.settings.seed)
    untrained = yield from run.train("base", split.train, split.validation, steps=0)
    trained = yield from run.train("adapted", split.train, split.validation, steps=s.steps, patience=s.patience)
    ((_, before),) = run.measured(untrained)
    result = _compared("held-out patients", split.train, split.validation, base=before, course=run.measured(trained))
    return result, trained / "pipeline" if result.kept == "adapted" else run.base


def _leave_one_out(run: _Runs, patients: Mapping[str, str]) -> Generator[Step, None, tuple[Adaptation, Path]]:
    """Leave each patient out in turn for the number of steps and the comparison, then train on all."""
    names, befores, courses = tuple(patients), [], []
    for patient in sorted(set(patients.values())):
        rest = tuple(name for name in names if patients[name] != patient)
        left_out = tuple(name for name in names if patients[name] == patient)
        untrained = yield from run.train(f"base without {patient}", rest, left_out, steps=0)
        trained = yield from run.train(f"without {patient}", rest, left_out, steps=run.settings.steps)
        befores += [figures for _, figures in run.measured(untrained)]
        courses.append(run.measured(trained))
    course = [(rows[0][0], _mean([figures for _, figures in rows])) for rows in zip(*courses, strict=True)]
    result = _compared("each patient left out in turn", names, names, base=_mean(befores), course=course)
    if result.kept == "base":
        return result, run.base
    return result, (yield from run.train("all", names, (), steps=result.steps)) / "pipeline"


def _compared(
    check: Check, train: tuple[str, ...], held_out: tuple[str, ...], *, base: Figures, course: list[tuple[int, Figures]]
) -> Adaptation:
    """The step of `course` that was the best on the held-out cases, beside the base."""
    steps, adapted = max(course, key=lambda row: row[1]["dice"])
    kept: Literal["adapted", "base"] = "adapted" if adapted["dice"] > base["dice"] else "base"
    return Adaptation(kept=kept, check=check, train=train, held_out=held_out, steps=steps, base=base, adapted=adapted)


def _mean(rows: list[Figures]) -> Figures:
    """Mean of each figure over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


@dataclass(frozen=True)
class _Runs:
    """The training runs of an adaptation, which differ in their cases and length."""

    base: Path
    store: Path
    work: Path
    settings: AdaptSettings

    def train(
        self, part: str, train_on: tuple[str, ...], held_out: tuple[str, ...], *, steps: int, patience: int = 0
    ) -> Generator[Step, None, Path]:
        """Train as the base was, on other cases and with the rates of an adaptation; returns the run's folder.

        No steps measure the base itself.
        """
        path = self.base / "run.json"
        if not path.is_file():
            raise WeightsMissingError(f"{self.base}: no run.json; expected the folder of a trained model")
        own, s = check(read_object(path, "the settings of a training run"), str(path)), self.settings
        head = "none" if own.model.trainable_decoder == "none" else "all" if s.decoder else "final_layer"
        cases = {"train": train_on, "validation": held_out, "test": (), "split": None, "train_share": 1.0}
        config = own.changed(
            output=self.work / part.replace(" ", "-"),
            data={"store": self.store, **cases, "resolutions": (), "workers": 0},
            model={"codec": None, "dit": None, "boxes": None, "pipeline": self.base, "trainable_decoder": head},
            optimiser=OptimiserConfig(
                learning_rate=s.learning_rate,
                schedule="constant",
                warmup_steps=min(20, math.ceil(steps / 10)),
                ema_decay=0.99,
            ),
            validation={"every": s.every, "stride": STRIDE, "patience": patience},
            steps=steps,
            minutes=None,
            cpu_minutes=None,
            batch_size=s.batch_size,
            accumulation=1,
            precision="auto",  # the base may have been trained on another machine
            seed=s.seed,
        )
        for progress in run_training(config):
            yield part, progress
        return config.output

    def measured(self, folder: Path) -> list[tuple[int, Figures]]:
        """Step and Dice of each measurement of a run; all zero where no held-out slice holds an organ."""
        rows = MetricsLog(folder).read()
        steps = [row for row in rows if row["step"] % self.settings.every == 0 or row is rows[-1]]
        return [
            (int(row["step"]), {"dice": 0.0, **{k: v for k, v in row.items() if k.startswith("dice")}}) for row in steps
        ]
