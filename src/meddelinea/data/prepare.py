"""From a dataset on disk to a slice store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meddelinea.data.case import Case, read_case
from meddelinea.data.datasets import find_cases
from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.preprocess import Preprocessing, mask_to_model_grid, to_model_grid
from meddelinea.data.store import Manifest, StoredCase, read_manifest, write_case, write_manifest
from meddelinea.errors import MedDelineaError, UsageError
from meddelinea.labels import BTCV

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PrepareReport:
    """What became of each case: those stored now, those that were there, and those that failed with the reason."""

    stored: tuple[str, ...]
    present: tuple[str, ...]
    failed: dict[str, str]


def prepare_store(
    layout: str,
    source: Path,
    store: Path,
    *,
    organs: tuple[str, ...] = tuple(BTCV.values()),
    preprocessing: Preprocessing | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Turn the cases of a dataset into a slice store; cases that the store already holds are left alone.

    A case that cannot be read or whose image and mask disagree is reported and does not stop the others.

    Parameters
    ----------
    layout, source
        The dataset's format and folder.
    store
        Folder of the store; made if absent, added to if present.
    organs
        Names behind the mask ids 1..L of the store.
    progress
        Called with (cases done, cases in all, name of the next).

    Raises
    ------
    UsageError
        If the layout is unknown, or the store holds other organs or another preprocessing.
    InputRefusedError
        If no case is found.
    """
    found = find_cases(layout, source)
    store.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(organs, preprocessing or Preprocessing())
    if (store / "manifest.json").is_file():
        existing = read_manifest(store)
        if (existing.organs, existing.preprocessing) != (manifest.organs, manifest.preprocessing):
            raise UsageError(f"{store}: holds other organs or preprocessing than asked for; choose another folder")
        manifest = existing
    present = {case.name for case in manifest.cases}
    stored, failed = [], dict(found.broken)
    cases = found.cases
    for done, case in enumerate(cases):
        if progress is not None:
            progress(done, len(cases), case.name)
        if case.name in present:
            continue
        try:
            entry = _prepare_case(case, store, manifest)
        except MedDelineaError as error:
            failed[case.name] = str(error)
            continue
        manifest = manifest.with_case(entry)
        write_manifest(manifest, store)
        stored.append(case.name)
    if progress is not None:
        progress(len(cases), len(cases), "")
    return PrepareReport(tuple(stored), tuple(c.name for c in cases if c.name in present), failed)


def _prepare_case(case: Case, store: Path, manifest: Manifest) -> StoredCase:
    labelled = read_case(case, manifest.organs)
    model = to_model_grid(labelled.scan, manifest.preprocessing)
    labels = mask_to_model_grid(labelled.mask, model).array.transpose(2, 1, 0)  # (S, rows, columns)
    write_case(store, case.name, np.ascontiguousarray(model.array.transpose(2, 1, 0)), np.ascontiguousarray(labels))
    counts = [np.bincount(slice_.ravel(), minlength=len(manifest.organs) + 1)[1:].tolist() for slice_ in labels]
    return StoredCase(
        case.name, case.dataset, case.modality, fingerprint(labelled.scan), len(labels), counts, case.patient
    )
