"""A trained model and a few labelled scans -> a model for them, and only if it is better than the one before.

With so few scans the danger is not a slow start but a worse model: the paper's own few-shot models lie below its
zero-shot one (Tables 2 and 3, BTCV at 1 and 10 %). So the adapted model is compared with its base on patients that it
was not trained on, and the base is kept unless it loses.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from meddelinea.data.splits import split_by_patient
from meddelinea.data.store import read_manifest
from meddelinea.errors import UsageError, WeightsMissingError
from meddelinea.training.config import RunConfig, load_config
from meddelinea.training.engine import Progress
from meddelinea.training.engine import train as run_training

#: From so many patients on, a quarter of them is held out; fewer take turns in being left out.
PATIENTS_TO_HOLD_OUT_FROM = 4
#: Every how many slices of a held-out scan are measured.
STRIDE = 2

#: Model card of an adapted model.
CARD = """---
license: other
base_model: {base}
---

`{base}` adapted to the labelled scans {cases}. The licence of `{base}` and that of the scans bind this model too. What
it was compared on, and what came of it, is in `adaptation.json`. **Research software, not a medical device.**
"""

Check = Literal["held-out patients", "each patient left out in turn", "none: one patient"]


@dataclass(frozen=True)
class AdaptSettings:
    """How long and how fast an adaptation learns.

    Parameters
    ----------
    steps
        Most optimiser steps of a training.
    every
        Steps between measurements on held-out scans.
    patience
        Measurements without a better one after which a training ends; organs that are new to a model stand still for
        a while before they come.
    learning_rate, batch_size, seed
        Of the training.
    decoder
        Whether the decoder is trained too, or the control branch and the mask head only.
    """

    steps: int = 400
    every: int = 25
    patience: int = 12
    learning_rate: float = 5e-4
    batch_size: int = 8
    seed: int = 0
    decoder: bool = False


@dataclass(frozen=True)
class Adaptation:
    """What came of it; `adaptation.json` in the model's folder.

    Parameters
    ----------
    kept
        Which model the output folder holds.
    check
        What the two were compared on.
    train, held_out
        Cases of the adapted model's training, and of the comparison.
    steps
        Optimiser steps of the adapted model.
    base, adapted
        `dice/<organ>` and `dice`, their mean, on the held-out cases; empty where there were none.
    """

    kept: Literal["adapted", "base"]
    check: Check
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    steps: int
    base: Mapping[str, float]
    adapted: Mapping[str, float]


def adapt(
    base: Path,
    store: Path,
    cases: tuple[str, ...],
    output: Path,
    settings: AdaptSettings | None = None,
    report: Callable[[str, Progress], None] | None = None,
) -> Adaptation:
    """Adapt a model to the organs and scans of a store.

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
    report
        Called with the part of the work and its progress.

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
    patients = {case.name: case.patient for case in read_manifest(store).cases if case.name in cases}
    work = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    run = _Runs(base, store, work, settings, report)
    try:
        result, chosen = _adapted(run, patients)
        finished = work / "model"
        shutil.copytree(chosen, finished)
        document = {**asdict(result), "from": base.name, "settings": asdict(settings)}
        (finished / "adaptation.json").write_text(json.dumps(document, indent=2) + "\n")
        if result.kept == "adapted":
            (finished / "README.md").write_text(CARD.format(base=base.name, cases=", ".join(result.train)))
        finished.replace(output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return result


def _adapted(run: _Runs, patients: Mapping[str, str]) -> tuple[Adaptation, Path]:
    """What came of it, and the folder of the model to keep."""
    count = len(set(patients.values()))
    if count >= PATIENTS_TO_HOLD_OUT_FROM:
        return _hold_out(run, patients)
    if count > 1:
        return _leave_one_out(run, patients)
    names = tuple(patients)
    result = Adaptation("adapted", "none: one patient", names, (), run.settings.steps, {}, {})
    return result, run.train("all", names, ()) / "pipeline"


def _hold_out(run: _Runs, patients: Mapping[str, str]) -> tuple[Adaptation, Path]:
    """Train on three quarters of the patients, stop and compare on the others."""
    split = split_by_patient(patients, 0.75, 0.25, run.settings.seed)
    before = run.measure("base", split.train, split.validation)
    folder = run.train("adapted", split.train, split.validation, patience=run.settings.patience)
    step, after = max(run.measured(folder), key=lambda row: row[1]["dice"])
    kept: Literal["adapted", "base"] = "adapted" if after["dice"] > before["dice"] else "base"
    result = Adaptation(kept, "held-out patients", split.train, split.validation, step, before, after)
    return result, folder / "pipeline" if kept == "adapted" else run.base


def _leave_one_out(run: _Runs, patients: Mapping[str, str]) -> tuple[Adaptation, Path]:
    """Leave each patient out in turn for the number of steps and the comparison, then train on all."""
    befores, courses = [], []
    for patient in sorted(set(patients.values())):
        rest = tuple(name for name, who in patients.items() if who != patient)
        left_out = tuple(name for name, who in patients.items() if who == patient)
        befores.append(run.measure(f"base without {patient}", rest, left_out))
        courses.append(run.measured(run.train(f"without {patient}", rest, left_out)))
    before = _mean(befores)
    afters = [(rows[0][0], _mean([figures for _, figures in rows])) for rows in zip(*courses, strict=True)]
    step, after = max(afters, key=lambda row: row[1]["dice"])
    names = tuple(patients)
    check: Check = "each patient left out in turn"
    if after["dice"] <= before["dice"]:
        return Adaptation("base", check, names, names, step, before, after), run.base
    longer = replace(run, settings=replace(run.settings, steps=step))
    return Adaptation("adapted", check, names, names, step, before, after), longer.train("all", names, ()) / "pipeline"


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
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
    report: Callable[[str, Progress], None] | None

    def train(self, part: str, train_on: tuple[str, ...], held_out: tuple[str, ...], patience: int = 0) -> Path:
        """Train for all steps, or until patience ends; returns the run's folder."""
        config = self._config(part, train_on, held_out, self.settings.steps, patience)
        report = self.report
        return run_training(config, report=None if report is None else lambda progress: report(part, progress))

    def measure(self, part: str, train_on: tuple[str, ...], held_out: tuple[str, ...]) -> dict[str, float]:
        """Figures of the base itself on held-out cases."""
        ((_, figures),) = self.measured(run_training(self._config(part, train_on, held_out, 0, 0)))
        return figures

    def measured(self, folder: Path) -> list[tuple[int, dict[str, float]]]:
        """Step and Dice of each measurement of a run; all zero where no held-out slice holds an organ."""
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [row for row in rows if row["step"] % self.settings.every == 0 or row is rows[-1]]
        return [(row["step"], {"dice": 0.0} | {k: v for k, v in row.items() if k.startswith("dice")}) for row in steps]

    def _config(
        self, part: str, train_on: tuple[str, ...], held_out: tuple[str, ...], steps: int, patience: int
    ) -> RunConfig:
        """A run like the base's own, on other cases and with the rates of an adaptation."""
        path = self.base / "run.json"
        if not path.is_file():
            raise WeightsMissingError(f"{self.base}: no run.json; expected the folder of a trained model")
        own, s = load_config(path), self.settings
        trains_head = own.model.trainable_decoder != "none"
        changes: dict[str, Any] = {
            "stage": "control",
            "output": self.work / part.replace(" ", "-"),
            "data": own.data.model_dump()
            | {"store": self.store, "train": train_on, "validation": held_out, "test": (), "split": None}
            | {"train_share": 1.0, "resolutions": (), "workers": 0},
            "model": {
                "pipeline": self.base,
                "trainable_decoder": ("all" if s.decoder else "final_layer") if trains_head else "none",
            },
            "optimiser": {
                "learning_rate": s.learning_rate,
                "schedule": "constant",
                "warmup_steps": min(20, math.ceil(s.steps / 10)),
                "ema_decay": 0.99,
            },
            "validation": own.validation.model_dump() | {"every": s.every, "stride": STRIDE, "patience": patience},
            "steps": steps,
            "minutes": None,
            "cpu_minutes": None,
            "batch_size": s.batch_size,
            "accumulation": 1,
            "precision": "auto",  # the base may have been trained on another machine
            "seed": s.seed,
        }
        return RunConfig.model_validate(own.model_dump() | changes)
