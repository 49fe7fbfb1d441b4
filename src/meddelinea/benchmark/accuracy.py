"""Methods trained for the same processor time on the same cases, and tested by the same code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meddelinea.benchmark.bench_file import BenchFile, GivenMasks, TrainedModel, folder_name
from meddelinea.benchmark.chain import StageCost, read_chain, train_chain
from meddelinea.benchmark.given_masks import score_given_masks
from meddelinea.benchmark.held_out import ShowProgress, run_test, unwatched
from meddelinea.data.case import Case
from meddelinea.data.datasets import find_cases
from meddelinea.data.splits import drawn_order
from meddelinea.data.store import read_manifest
from meddelinea.data.training_cases import TrainingCases
from meddelinea.errors import InputRefusedError, LeakFoundError, UsageError
from meddelinea.evaluation.compare import Report
from meddelinea.evaluation.summary import plain, read_report_document, report_document
from meddelinea.files import write_json
from meddelinea.json_files import read_json
from meddelinea.segmentation.model import load_model, model_folder
from meddelinea.segmentation.sampling import Sampling

RESULT = "result.json"
#: What cases are for.
ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class Part:
    """A division of the cases: a fold, or the test. Its name is that of its folder."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A method on one part."""

    #: Names of the method and of the part.
    method: str
    part: str
    #: Of the whole model, None where it is not here; and those that its last stage trained, None where it was trained
    #: elsewhere.
    parameters: int | None
    trained_parameters: int | None
    stages: tuple[StageCost, ...]  # what its training took; empty where it was trained elsewhere
    cpu_hours: float | None  # of all stages; None where nobody states it
    seconds: Mapping[str, float]  # wall time from volume to mask, by case
    report: Report  # the part's test cases at full resolution in 3D


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """All trials that are on disk, by method in the order of the benchmark."""

    organs: tuple[str, ...]  # those of the store, which are compared
    patients: Mapping[str, str]  # whom each case shows
    parts: tuple[Part, ...]  # how the cases were divided
    #: Processor time of each training, and the seed of trainings and of the bootstrap, as in the benchmark's file.
    cpu_minutes: float | None
    seed: int
    trials: tuple[Trial, ...]  # one for each method and part that is finished


def measure_accuracy(
    bench: BenchFile,
    output: Path,
    folds: int | None,
    methods: tuple[str, ...] | None = None,
    fold: int | None = None,
    progress: ShowProgress = unwatched,
    few: int | None = None,
) -> Accuracy:
    """Train and test what is not yet in `output`.

    Parameters
    ----------
    output
        Folder of `bench.json` and of a folder a part, of a folder a method, with its runs and `result.json`.
    folds
        Cross-validation over the patients of `bench.train`, by so many folds; None: train on all of them, and test on
        `bench.test`.
    methods
        Those that are trained and tested; all where None. Processes that share `output` work side by side where each
        has methods or a fold of its own.
    fold
        The one that is trained and tested, 1 to `folds`; all where None.
    few
        How many patients of each part are trained on, the first of an order that the seed draws; all where None.

    Raises
    ------
    UsageError
        If a method or the fold is unknown, the cases cannot be divided so, or `output` holds another benchmark.
    InputRefusedError
        If the dataset, a case or the store is not there.
    LeakFoundError
        If a model was trained on cases that it would be tested on.
    """
    cases = bench_cases(bench)
    patients = {name: case.patient for name, case in cases.items()}

    # Which methods, on which parts.
    parts = tuple(_thinned(part, patients, few, bench.seed) for part in divide(bench, patients, folds))
    if fold is not None and not 1 <= fold <= (folds or 0):
        raise UsageError(f"fold {fold} of {folds or 'no'} folds; expected 1 to the number of folds")
    unknown = [name for name in methods or () if name not in bench.methods]
    if unknown:
        raise UsageError(f"no method called {', '.join(unknown)}; expected some of: {', '.join(bench.methods)}")
    due = parts if fold is None else parts[fold - 1 : fold]
    chosen = tuple(name for name in bench.methods if methods is None or name in methods)

    # What can be refused is refused before hours of training.
    claim(output / "bench.json", {**bench.model_dump(mode="json", exclude={"methods", *ROLES}), "parts": parts})
    for method in (bench.methods[name] for name in chosen):
        if isinstance(method, TrainedModel):
            for part in due:
                refuse_leak(model_folder(method.model), tuple(cases[name] for name in part.test), bench.store)

    for part in due:
        for name in chosen:
            folder = output / part.name / folder_name(name)
            if not (folder / RESULT).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                tested = tuple(cases[case] for case in part.test)
                write_json(trial_document(run_trial(bench, part, name, tested, folder, progress)), folder / RESULT)

    # All that is on disk by now, of other processes too.
    paths = [output / part.name / folder_name(name) / RESULT for name in bench.methods for part in parts]
    return Accuracy(
        organs=read_manifest(bench.store).organs,
        patients=patients,
        parts=parts,
        cpu_minutes=bench.cpu_minutes,
        seed=bench.seed,
        trials=tuple(read_trial(path) for path in paths if path.is_file()),
    )


def run_trial(
    bench: BenchFile, part: Part, name: str, tested: tuple[Case, ...], folder: Path, progress: ShowProgress
) -> Trial:
    """Train the method of that name on a part, unless it is trained already, and test it; `folder` is for its runs."""
    method, title, organs = bench.methods[name], f"{part.name}, {name}", read_manifest(bench.store).organs
    if isinstance(method, GivenMasks):
        report = score_given_masks(method.masks, tested, organs, folder / "masks")
        return Trial(
            method=name,
            part=part.name,
            parameters=None,
            trained_parameters=None,
            stages=(),
            cpu_hours=method.cpu_hours,
            seconds={},
            report=report,
        )
    stages: tuple[StageCost, ...] = ()
    parameters: int | None = None
    sampling, true_boxes = None, False
    if isinstance(method, TrainedModel):
        true_boxes = method.boxes == "truth"
        trained, hours = model_folder(method.model), method.cpu_hours
        sampling = Sampling(steps=method.steps, samples=method.samples, scheduler=method.scheduler)
    else:
        for stage, step in train_chain(method, folder, bench, part.train):
            progress(f"{title}, {stage}, per cent", round(100 * step.share), 100)
        trained, stages, parameters = read_chain(method, folder)
        hours = sum(stage.cpu_seconds for stage in stages) / 3600.0
    refuse_leak(trained, tested, bench.store)

    model = load_model(trained)
    masks = folder / "masks"
    report, seconds = run_test(model, tested, organs, title, progress, masks, sampling, true_boxes=true_boxes)
    return Trial(
        method=name,
        part=part.name,
        parameters=sum(p.numel() for network in model.pipeline.networks for p in network.parameters()),
        trained_parameters=parameters,
        stages=stages,
        cpu_hours=hours,
        seconds=seconds,
        report=report,
    )


def divide(bench: BenchFile, patients: Mapping[str, str], folds: int | None) -> tuple[Part, ...]:
    """The parts of a benchmark; `patients` says whom each of its cases shows.

    Fold f tests every `folds`-th patient of `train` from the f-th on, in the order in which the file names them.

    Raises
    ------
    UsageError
        If there are fewer patients than folds, no test case, or a patient in both `train` and `test`.
    """
    if folds is None:
        trained = (*bench.train, *bench.validation)
        both = sorted({patients[name] for name in trained} & {patients[name] for name in bench.test})
        if both or not bench.test:
            fault = f"patients {', '.join(both)} are in train and in test" if both else "no test case"
            raise UsageError(f"{fault}; name other cases in the benchmark's test")
        return (Part("test", bench.train, bench.test),)
    order = list(dict.fromkeys(patients[name] for name in bench.train))
    if not 2 <= folds <= len(order):
        raise UsageError(f"{folds} folds of {len(order)} patients; expected 2 to {len(order)}")
    parts = []
    for fold in range(folds):
        tested = set(order[fold::folds])
        test = tuple(name for name in bench.train if patients[name] in tested)
        train = tuple(name for name in bench.train if patients[name] not in tested)
        parts.append(Part(f"fold-{fold + 1}-of-{folds}", train, test))
    return tuple(parts)


def _thinned(part: Part, patients: Mapping[str, str], few: int | None, seed: int) -> Part:
    """The part with the cases of few of its training patients; more patients include those that fewer are."""
    if few is None:
        return part
    drawn = drawn_order(tuple({patients[name] for name in part.train}), seed)
    if not 1 <= few <= len(drawn):
        raise UsageError(f"{few} patients of {part.name}; expected 1 to {len(drawn)}", parameter="patients")
    return replace(part, train=tuple(name for name in part.train if patients[name] in drawn[:few]))


def trial_document(trial: Trial) -> dict[str, Any]:
    """A trial as plain JSON types."""
    return plain({**vars(trial), "report": report_document(trial.report)})


def read_trial(path: Path) -> Trial:
    """The trial that `trial_document` made this file of."""
    content = read_json(path)
    content["stages"] = tuple(StageCost(**stage) for stage in content["stages"])
    content["report"] = read_report_document(content["report"])
    return Trial(**content)


def bench_cases(bench: BenchFile) -> dict[str, Case]:
    """The benchmark's cases by name."""
    found = find_cases(bench.format, bench.source)
    cases = {case.name: case for case in found.cases}
    names = (*bench.train, *bench.validation, *bench.test)
    for name in names:
        if name not in cases:
            reason = found.broken.get(name, "no such case")
            raise InputRefusedError(f"{bench.source}: {name}: {reason}; name others in the benchmark's train and test")
    return {name: cases[name] for name in names}


def claim(path: Path, shared: Mapping[str, Any]) -> None:
    """Write what all trials of a folder share to a file, or see that they share it."""
    document = plain(shared)
    if path.is_file():
        there = read_json(path)
        odd = [key for key in document if there.get(key) != document[key]]
        if odd:
            raise UsageError(f"{path.parent}: a benchmark with other {', '.join(odd)}; choose another output")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(document, path)


def refuse_leak(model: Path, tested: tuple[Case, ...], store: Path) -> None:
    """Refuse to test a model on cases that it was trained on or chosen by, whatever it was started from."""
    cases = TrainingCases.read(model)
    seen = (*cases.train, *cases.validation)
    scans, names = {scan.fingerprint for scan in seen}, {(scan.dataset, scan.name) for scan in seen}
    prints = {case.name: case.fingerprint for case in read_manifest(store).cases}
    leaked = [case.name for case in tested if prints.get(case.name) in scans or (case.dataset, case.name) in names]
    if leaked:
        raise LeakFoundError(f"{model}: was trained on {', '.join(leaked)}; leave its method out", parameter="methods")
