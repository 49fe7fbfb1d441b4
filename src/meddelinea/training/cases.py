"""Which cases of a store a run uses for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from meddelinea.checks.limits import ScanLimits
from meddelinea.data.mixing import mixing_warnings
from meddelinea.data.preprocess import Preprocessing
from meddelinea.data.splits import Split, few_shot, split_by_patient
from meddelinea.data.store import SliceStore, StoredCase, limits_of, read_manifest
from meddelinea.data.training_cases import FILE, SeenScan, TrainingCases
from meddelinea.training.config import DataConfig, ModelConfig, RunConfig


def choose_cases(data: DataConfig) -> Split:
    """The cases that a run trains on, is validated on and is tested on.

    Raises
    ------
    InputRefusedError
        If the store has too few patients for the shares asked for.
    """
    chosen = Split(data.train, data.validation, data.test)
    if data.split is not None:
        patients = {case.name: case.patient for case in read_manifest(data.store).cases}
        chosen = split_by_patient(patients, data.split.train, data.split.validation, data.split.seed)
    if data.train_share < 1.0:
        chosen = replace(chosen, train=few_shot(chosen.train, data.train_share, data.split.seed if data.split else 0))
    return chosen


class CaseStores(NamedTuple):
    """Slices of the cases that a run is trained on, validated on and tested on."""

    train: SliceStore
    validation: SliceStore
    test: SliceStore


def open_cases(data: DataConfig) -> CaseStores:
    """The slices of a run's cases, see `choose_cases`."""
    chosen = choose_cases(data)
    names = (chosen.train, chosen.validation, chosen.test)
    return CaseStores(*(SliceStore(data.store, part) for part in names))


def inherited_cases(model: ModelConfig) -> tuple[SeenScan, ...]:
    """The scans that the components were trained on which a run starts from, as far as their folders name them."""
    folders = [folder for folder in (model.codec, model.dit, model.boxes, model.pipeline) if folder is not None]
    named = [TrainingCases.read(folder) for folder in folders if (folder / FILE).is_file()]
    return tuple(scan for cases in named for scan in cases.train)


def model_limits(config: RunConfig, cases: Sequence[StoredCase], preprocessing: Preprocessing) -> ScanLimits:
    """Which scans the model of a run takes.

    Those like its training cases, MRs too where the appearance of CTs is drawn at random; and what the model that it
    starts from takes, where that takes all of these.
    """
    limits, base = limits_of(cases, preprocessing), config.model.pipeline
    if config.data.augmentation.appearance and "CT" in limits.modalities:
        limits = replace(limits, modalities=("CT", "MR"))
    if base is None or not (base / "preprocessing.json").is_file():
        return limits
    earlier = ScanLimits.read(base)
    return limits if any(case.refusals(earlier) for case in cases) else limits.joined(earlier)


def refused_cases(config: RunConfig) -> list[str]:
    """Warnings of the cases of a run that the model which it makes would refuse to segment; a line each."""
    manifest, chosen = read_manifest(config.data.store), choose_cases(config.data)
    limits = model_limits(
        config, [case for case in manifest.cases if case.name in chosen.train], manifest.preprocessing
    )
    named = {*chosen.train, *chosen.validation, *chosen.test}
    refused = {case.name: case.refusals(limits) for case in manifest.cases if case.name in named}
    return [f"{name}: the model would refuse it: {'; '.join(reasons)}" for name, reasons in refused.items() if reasons]


def mixed_datasets(config: RunConfig) -> list[str]:
    """Warnings where a run measures on a dataset that shares scans with one it was trained on; a line each.

    What it starts from counts as trained on: a model pre-trained on AbdomenAtlas has seen cases of BTCV and AMOS.
    """
    cases = choose_cases(config.data)
    dataset = {case.name: case.dataset for case in read_manifest(config.data.store).cases}
    trained = {dataset[name] for name in cases.train if name in dataset}
    trained |= {scan.dataset for scan in inherited_cases(config.model)}
    return mixing_warnings(trained, {dataset[name] for name in (*cases.validation, *cases.test) if name in dataset})
