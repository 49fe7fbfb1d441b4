"""The settings of a paper's benchmark: what is missing of them is trained and tested, and what there is is kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from meddelinea.benchmark.accuracy import (
    RESULT,
    ROLES,
    Part,
    Trial,
    bench_cases,
    claim,
    divide,
    read_trial,
    run_trial,
    trial_document,
)
from meddelinea.benchmark.bench_file import BenchFile, GivenMasks, TrainedModel, folder_name
from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.benchmark.paper_file import Kind, PaperBench
from meddelinea.benchmark.paper_methods import absent_run_files, method_in
from meddelinea.data.case import Case
from meddelinea.data.prepare import prepare_store
from meddelinea.data.preprocess import Preprocessing
from meddelinea.data.splits import Split, few_shot, split_by_patient
from meddelinea.data.store import read_manifest
from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.files import write_json
from meddelinea.json_files import read_json
from meddelinea.scan import Modality
from meddelinea.segmentation.model import model_folder

SETTING = "setting.json"

#: Setting and method.
Place = tuple[str, str]


class TestCase(NamedTuple):
    """A test case of a setting."""

    patient: str
    modality: Modality


@dataclass(frozen=True)
class Measured:
    """What there is of a benchmark, by setting and method."""

    trials: Mapping[Place, Trial]
    missing: Mapping[Place, str]  # why there is no trial
    cases: Mapping[str, Mapping[str, TestCase]]  # the test cases of each setting that was begun, by name


def places_of(bench: PaperBench, kinds: Collection[Kind]) -> tuple[Place, ...]:
    """The methods in settings of some kinds, in the order of the file."""
    return tuple(
        (title, name)
        for title, setting in bench.settings.items()
        if setting.kind in kinds
        for name in bench.methods_of(title)
    )


def default_of(bench: PaperBench, name: str) -> str | None:
    """What ablations of a method are compared with: the first setting that it is pre-trained in."""
    titles = (title for title, setting in bench.settings.items() if setting.kind == "pretrained")
    return next((title for title in titles if name in bench.methods_of(title)), None)


def train_and_test(
    bench: PaperBench, output: Path, places: Collection[Place], progress: ShowProgress = unwatched
) -> dict[Place, str]:
    """Train and test what is not yet in `output`; a method that fails does not stop the others.

    Parameters
    ----------
    output
        See `paper_file`. Processes that share it work side by side where each has methods of its own.
    places
        What is wanted; what it starts from is made as well.

    Returns
    -------
    Why a method has no result in a setting, where it has none.

    Raises
    ------
    UsageError
        If a setting's cases cannot be divided so, or `output` holds another benchmark.
    """
    wanted = list(places)
    for title, name in wanted:
        after = bench.settings[title].after
        if after is not None and (after, name) not in wanted and not isinstance(bench.methods[name], GivenMasks):
            wanted.append((after, name))
    reasons: dict[Place, str] = {}
    for title in bench.settings:
        due = [
            name
            for name in bench.methods
            if (title, name) in wanted and not (trial_folder(output, title, name) / RESULT).is_file()
        ]
        if not due:
            continue
        try:
            shared, part, tested = open_setting(bench, title, output, progress)
        except InputRefusedError as error:  # the dataset is not at hand
            reasons |= {(title, name): str(error) for name in due}
            continue
        for name in due:
            folder = trial_folder(output, title, name)
            try:
                method, after = bench.methods[name], bench.settings[title].after
                absent = absent_run_files(method)
                if absent is not None:
                    raise InputRefusedError(absent)
                start = None
                if after is not None and not isinstance(method, GivenMasks):
                    start = model_of(bench, output, after, name)
                folder.mkdir(parents=True, exist_ok=True)
                contestant = method_in(bench.settings[title], method, folder, start)
                own = shared.model_copy(update={"methods": {name: contestant}})
                write_json(trial_document(run_trial(own, part, name, tested, folder, progress)), folder / RESULT)
            except MedDelineaError as error:
                reasons[title, name] = str(error)
    return reasons


def read_measured(bench: PaperBench, output: Path, reasons: Mapping[Place, str]) -> Measured:
    """All that is on disk by now, of other processes too.

    Parameters
    ----------
    reasons
        What `train_and_test` said.

    Raises
    ------
    UsageError
        If `output` holds results of other settings under the same names.
    """
    trials, missing, cases = {}, {}, {}
    for title in bench.settings:
        about = output / folder_name(title) / SETTING
        if about.is_file():
            claim(about, setting_document(bench, title))
            known = read_json(about)["cases"].items()
            tested = {
                name: TestCase(case["patient"], case["modality"]) for name, case in known if case["role"] == "test"
            }
            cases[title] = tested
        for name in bench.methods_of(title):
            path = trial_folder(output, title, name) / RESULT
            if path.is_file():
                trials[title, name] = read_trial(path)
            else:
                why = reasons.get((title, name)) or absent_run_files(bench.methods[name])
                missing[title, name] = why or "not trained and tested yet"
    return Measured(trials, missing, cases)


def trial_folder(output: Path, title: str, name: str) -> Path:
    """Folder of a method in a setting."""
    return output / folder_name(title) / folder_name(name)


def trial_of(output: Path, title: str, name: str) -> Trial | None:
    """A method's result in a setting; None where there is none yet."""
    path = trial_folder(output, title, name) / RESULT
    return read_trial(path) if path.is_file() else None


def last_run(bench: PaperBench, output: Path, title: str, name: str) -> Path:
    """Output folder of the run that a method's model in a setting is from.

    Raises
    ------
    InputRefusedError
        If the model was trained elsewhere.
    """
    setting, method = bench.settings[title], bench.methods[name]
    if not setting.trains and setting.after is not None:
        return last_run(bench, output, setting.after, name)
    if not isinstance(method, tuple):
        raise InputRefusedError(f"{name}: trained elsewhere; no run of it is here")
    stages = method if setting.after is None else method[-1:]
    return trial_folder(output, title, name) / f"{len(stages)}-{stages[-1].stem}"


def model_of(bench: PaperBench, output: Path, title: str, name: str) -> Path:
    """Folder of the model that a method has in a setting.

    Raises
    ------
    MedDelineaError
        If there is none.
    """
    method = bench.methods[name]
    if isinstance(method, GivenMasks):
        raise InputRefusedError(f"{method.masks}: masks of {name}, whose model is elsewhere")
    if isinstance(method, TrainedModel):
        return model_folder(method.model)
    folder = last_run(bench, output, title, name) / "pipeline"
    if not folder.is_dir():
        raise InputRefusedError(f"there is no model of {name} in '{title}'")
    return folder


def open_setting(
    bench: PaperBench, title: str, output: Path, progress: ShowProgress
) -> tuple[BenchFile, Part, tuple[Case, ...]]:
    """A setting as a benchmark of its own, its one part, and the test cases; its store is made where it is absent.

    Raises
    ------
    UsageError
        If its cases cannot be divided so, or `output` holds another setting of that name.
    InputRefusedError
        If the dataset, a case or the store is not there.
    """
    setting = bench.settings[title]
    dataset = bench.datasets[setting.dataset]
    if not (dataset.store / "cases.jsonl").is_file():
        prepare_store(
            dataset.format,
            dataset.source,
            dataset.store,
            preprocessing=Preprocessing(size=dataset.size, spacing_mm=dataset.spacing_mm),
            progress=lambda done, total, name: progress(f"prepare {setting.dataset}, {name}", done, total),
        )
    held = {case.name: case for case in read_manifest(dataset.store).cases}

    # Which cases are for what.
    chosen = Split(setting.train, setting.validation, setting.test)
    if setting.split is not None:
        patients = {case.name: case.patient for case in held.values()}
        chosen = split_by_patient(patients, setting.split.train, setting.split.validation, setting.split.seed)
    parts = {}
    for role in ROLES:
        names = getattr(chosen, role)
        wanted = (name for name in names if name not in held or setting.modality in (None, held[name].modality))
        parts[role] = tuple(wanted)
    if parts["train"]:
        seed = bench.seed if setting.split is None else setting.split.seed
        parts["train"] = few_shot(parts["train"], setting.share, seed)
    if not setting.trains:
        parts["train"] = parts["validation"] = ()

    shared = BenchFile(
        format=dataset.format,
        source=dataset.source,
        store=dataset.store,
        train=parts["train"],
        validation=parts["validation"],
        test=parts["test"],
        cpu_minutes=setting.cpu_minutes,
        seed=bench.seed,
        methods={"none yet": TrainedModel(model="")},
    )
    cases = bench_cases(shared)
    part = divide(shared, {name: case.patient for name, case in cases.items()}, None)[0]
    about = {
        name: {"patient": cases[name].patient, "modality": cases[name].modality, "role": role}
        for role in ROLES
        for name in parts[role]
    }
    claim(output / folder_name(title) / SETTING, {**setting_document(bench, title), "cases": about})
    return shared, replace(part, name=folder_name(title)), tuple(cases[name] for name in part.test)


def setting_document(bench: PaperBench, title: str) -> dict[str, Any]:
    """What all methods of a setting share, as the file says it."""
    setting = bench.settings[title]
    return {
        "setting": setting.model_dump(mode="json", exclude={"methods"}),
        "dataset": bench.datasets[setting.dataset].model_dump(mode="json", exclude={"source"}),
        "seed": bench.seed,
    }
