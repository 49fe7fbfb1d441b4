"""The trainings of a plan, side by side in a pool: the trial of where to start, the folds, and the model of all cases.

Each keeps what it has done, so that the same work goes on after any interruption.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from meddelinea.benchmark.accuracy import Part, bench_cases, divide, measure_accuracy
from meddelinea.benchmark.bench_file import BenchFile, folder_name, read_bench_file
from meddelinea.benchmark.chain import train_chain
from meddelinea.errors import PartialFailureError, UsageError
from meddelinea.files import write_json
from meddelinea.fitting.plan_folder import BENCH, PlanFile
from meddelinea.json_files import read_json
from meddelinea.pool.pool import Engine, Progress
from meddelinea.training.metrics_log import MetricsLog
from meddelinea.training.run_file import load_config

#: Held-out cases that a trial is measured on at most.
TRIAL_CASES = 12
#: What came of the trial, in the folder of the work.
TRIAL = "trial.json"


@dataclass(frozen=True)
class Training:
    """A training: on all cases, or, by number from 1, on those outside of a fold."""

    start: str  # where it starts from, as the plan names it
    fold: int | None = None
    trial: bool = False  # whether it is but the trial of that start, on the first fold

    @property
    def name(self) -> str:
        """What people call it."""
        if self.trial:
            return f"trial from {self.start}"
        return "all cases" if self.fold is None else f"fold {self.fold}"


#: Called with the name of a training, and how many of 100 per cent are done; and the same of one that is known.
ShowShare = Callable[[str, int, int], None]
Report = Callable[[int, int], None]


def choose_start(
    plan: PlanFile, work: Path, *, engine: Engine[Training, float], progress: ShowShare
) -> tuple[str, dict[str, float]]:
    """Where to start from, and the Dice on held-out patients that each start came to where there was a choice.

    Raises
    ------
    PartialFailureError
        If a trial fails.
    """
    starts = list(plan.starts)
    if len(starts) == 1 or not plan.trial_minutes:
        return starts[0], {}
    path = work / TRIAL
    if not path.is_file():
        found = _carried_out(
            [Training(start, 1, trial=True) for start in starts], work, engine=engine, progress=progress
        )
        write_json({"dice": found}, path)
    dice: dict[str, float] = read_json(path)["dice"]
    return max(starts, key=lambda start: dice.get(start, 0.0)), dice


def train_all(plan: PlanFile, work: Path, start: str, *, engine: Engine[Training, float], progress: ShowShare) -> Path:
    """Train and test the folds, and train the model of all cases; returns that model's folder.

    Raises
    ------
    PartialFailureError
        If a training fails; the others are done, and the same call goes on.
    """
    folds = [Training(start, fold) for fold in range(1, plan.folds + 1)] if plan.folds > 1 else []
    _carried_out([Training(start), *folds], work, engine=engine, progress=progress)
    return model_of_all(work, read_bench_file(work / "plan" / BENCH), start)


def model_of_all(work: Path, bench: BenchFile, start: str) -> Path:
    """Where the model of all cases is."""
    files = run_files(bench, start)
    return _folder_of_all(work, start) / f"{len(files)}-{files[-1].stem}" / "pipeline"


def run_files(bench: BenchFile, start: str) -> tuple[Path, ...]:
    """The stages from a start.

    Raises
    ------
    UsageError
        If the benchmark's file has no stages of that name.
    """
    files = bench.methods.get(start)
    if not isinstance(files, tuple):
        raise UsageError(f"{BENCH}: no stages from '{start}'; name them in its methods, as plan.json does in starts")
    return files


def _folder_of_all(work: Path, start: str) -> Path:
    return work / "runs" / "all" / folder_name(start)


def _carried_out(
    trainings: Iterable[Training], work: Path, *, engine: Engine[Training, float], progress: ShowShare
) -> dict[str, float]:
    """The answers of trainings, by where they start from."""
    items, failed, answers = list(trainings), [], {}
    for item in items:
        progress(item.name, 0, 100)
    with closing(engine(partial(_Trainer, work=work), items, progress)) as outcomes:
        for outcome in outcomes:
            if outcome.answer is None:
                failed.append(f"{outcome.item.name}: {outcome.reason}")
            else:
                answers[outcome.item.start] = outcome.answer
                progress(outcome.item.name, 100, 100)
    if failed:
        raise PartialFailureError(f"{'; '.join(failed)}; what the others did is kept: start it again")
    return answers


class _Trainer:
    """What a worker does with a training; the one that is pending waits for its turn."""

    def __init__(self, threads: int | None, *, work: Path) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.writing = threading.Lock()  # every file is written whole or not at all
        self._turn = threading.Lock()
        self._work = work

    def __call__(self, training: Training, progress: Progress) -> float:
        """The Dice of a trial; 0 of what is tested by other means."""
        with self._turn:
            plan, bench = PlanFile.read(self._work / "plan"), read_bench_file(self._work / "plan" / BENCH)
            files, report = run_files(bench, training.start), partial(progress, training.name)
            runs = self._work / "runs"
            if training.fold is None:
                _train(bench, files, _folder_of_all(self._work, training.start), cases=bench.train, report=report)
                return 0.0
            patients = {name: case.patient for name, case in bench_cases(bench).items()}
            part = divide(bench, patients, plan.folds)[training.fold - 1]
            if training.trial:
                short = _shortened(bench, part, plan.trial_minutes)
                return _trial(short, files, self._work / "trial" / training.start, cases=part.train, report=report)
            folder = runs / part.name / folder_name(training.start)
            _train(bench, files, folder, cases=part.train, report=report)
            measure_accuracy(bench, runs, plan.folds, (training.start,), training.fold)
            return 0.0


def _shortened(bench: BenchFile, part: Part, minutes: float) -> BenchFile:
    """A benchmark for a trial: a short time, and some of the held-out cases to measure it on."""
    held_out = part.test[:: -(-len(part.test) // TRIAL_CASES)]
    clock = "minutes" if bench.cpu_minutes is None else "cpu_minutes"
    return bench.model_copy(update={clock: minutes, "validation": held_out})


def _trial(bench: BenchFile, files: tuple[Path, ...], folder: Path, *, cases: tuple[str, ...], report: Report) -> float:
    """Train the stages up to the first that makes masks; the Dice on the held-out cases."""
    first = next(number for number, path in enumerate(files, start=1) if load_config(path).stage == "model")
    last = _train(bench, files[:first], folder, cases=cases, report=report)
    return float(MetricsLog(last).read()[-1].get("dice", 0.0))


def _train(bench: BenchFile, files: tuple[Path, ...], folder: Path, *, cases: tuple[str, ...], report: Report) -> Path:
    """Train stages in their order, reporting per cent of all their time; returns the last one's folder."""
    folders = [folder / f"{number}-{path.stem}" for number, path in enumerate(files, start=1)]
    minutes = [load_config(path).cpu_minutes or 1.0 for path in files]
    for _, step in train_chain(files, folder, bench, cases):
        begun = sum(stage.is_dir() for stage in folders)
        done = sum(minutes[: begun - 1]) + step.share * minutes[begun - 1]
        report(round(99 * done / sum(minutes)), 100)
    return folders[-1]
