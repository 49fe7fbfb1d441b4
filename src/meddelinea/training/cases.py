"""Which cases of a store a run uses for what."""

from __future__ import annotations

from dataclasses import replace

from meddelinea.data.splits import Split, few_shot, split_by_patient
from meddelinea.data.store import read_manifest
from meddelinea.training.config import DataConfig


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
