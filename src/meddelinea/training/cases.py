"""Which cases of a store a run uses for what."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from meddelinea.data.mixing import mixing_warnings
from meddelinea.data.splits import Split, few_shot, split_by_patient
from meddelinea.data.store import read_manifest
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


def inherited_cases(model: ModelConfig) -> list[dict[str, Any]]:
    """The training cases of the components that a run starts from, as their `training_cases.json` has them."""
    folders = (model.codec, model.dit, model.pipeline)
    paths = [folder / "training_cases.json" for folder in folders if folder is not None]
    return [case for path in paths if path.is_file() for case in json.loads(path.read_text())["train"]]


def mixed_datasets(config: RunConfig) -> list[str]:
    """Warnings where a run measures on a dataset that shares scans with one it was trained on; a line each.

    What it starts from counts as trained on: a model pre-trained on AbdomenAtlas has seen cases of BTCV and AMOS.
    """
    cases = choose_cases(config.data)
    dataset = {case.name: case.dataset for case in read_manifest(config.data.store).cases}
    trained = {dataset[name] for name in cases.train if name in dataset}
    trained |= {case["dataset"] for case in inherited_cases(config.model)}
    return mixing_warnings(trained, {dataset[name] for name in (*cases.validation, *cases.test) if name in dataset})
