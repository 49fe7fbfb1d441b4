"""From a dataset on disk to a slice store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from meddelinea.data.case import Case, read_case
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.data.fingerprint import fingerprint, sketch
from meddelinea.data.preprocess import Preprocessing, mask_to_model_grid, to_model_grid
from meddelinea.data.store import StoredCase
from meddelinea.data.store_writer import begin_store, compile_store, find_record, is_intact, write_record, write_slices
from meddelinea.data.workers import Engine, in_this_process
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.files import whole
from meddelinea.labels import ORGANS, organ_ids

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class PrepareReport:
    """What became of each case of a dataset, by name.

    Parameters
    ----------
    stored, present, repaired
        Stored now; there before; and there before, but damaged, and stored anew.
    failed
        Those that the store lacks, with the reason.
    remarks
        What a person should know of those that it holds.
    """

    stored: tuple[str, ...]
    present: tuple[str, ...]
    repaired: tuple[str, ...]
    failed: Mapping[str, str]
    remarks: Mapping[str, tuple[str, ...]]


def prepare_store(
    layout: str,
    source: Path,
    store: Path,
    *,
    only: tuple[str, ...] | None = None,
    organs: tuple[str, ...] | None = None,
    preprocessing: Preprocessing | None = None,
    verify: bool = False,
    engine: Engine = in_this_process,
    progress: Progress | None = None,
) -> PrepareReport:
    """Turn the cases of a dataset into a slice store; cases that the store already holds are left alone.

    A case that fails is reported and does not stop the others. The store is the same, byte for byte, whichever engine
    made it, in whatever order its cases ended, and however often it was killed and started again. One preparation at
    a time may write to a store.

    Parameters
    ----------
    layout, source
        The dataset's format and folder.
    store
        Folder of the store; made if absent, added to if present.
    only
        Names of the cases to take; all by default.
    organs
        Names behind the mask ids 1..L of the store; the dataset's own by default.
    verify
        Also check the files of the cases that are there, and store damaged ones anew.
    engine
        Where the cases are worked on: see `data.workers`.
    progress
        Called with (cases done, cases in all, name of the last one).

    Raises
    ------
    UsageError
        If the layout or an organ is unknown, or the store holds other organs or another preprocessing.
    InputRefusedError
        If no case is found.
    """
    found = find_cases(layout, source)
    labelled = organs_of(found.cases)
    organs = organs or labelled
    organ_ids(organs)  # refuses an organ that is named twice
    unknown = [organ for organ in organs if organ not in labelled and organ not in ORGANS]
    if unknown:
        raise UsageError(f"{source}: no organ called {', '.join(unknown)}; it labels: {', '.join(labelled)}")
    preprocessing = preprocessing or Preprocessing()
    begin_store(store, organs, preprocessing)
    became: dict[str, list[str]] = {"stored": [], "present": [], "repaired": []}
    cases = [case for case in found.cases if only is None or case.name in only]
    failed = {name: reason for name, reason in found.broken.items() if only is None or name in only}
    work = partial(_prepare_case, store=store, organs=organs, preprocessing=preprocessing, verify=verify)
    for done, outcome in enumerate(engine(work, cases), start=1):
        name = outcome.case.name
        if outcome.answer is None:
            failed[name] = outcome.reason
        else:
            became[outcome.answer].append(name)
        if progress is not None:
            progress(done, len(cases), name)
    ours = {name for names in became.values() for name in names}
    remarks = {case.name: case.remarks for case in compile_store(store).cases if case.name in ours and case.remarks}
    stored, present, repaired = (tuple(sorted(names)) for names in became.values())
    failed = dict(sorted(failed.items()))
    # Not in how many runs it came about: the store is the same, byte for byte, however often it was interrupted.
    held = {"dataset": layout, "held": sorted(ours), "failed": failed, "remarks": remarks}
    with whole(store / "report.json") as part:
        part.write_text(json.dumps(held, indent=2) + "\n")
    return PrepareReport(stored, present, repaired, failed, remarks)


def _prepare_case(case: Case, store: Path, organs: tuple[str, ...], preprocessing: Preprocessing, verify: bool) -> str:
    present = find_record(store, case.name)
    if present is not None:
        if present.dataset != case.dataset:
            raise InputRefusedError(
                f"{store}: holds a case {case.name} of dataset {present.dataset} already; "
                f"prepare {case.dataset} into another store, or rename its case"
            )
        if not verify or is_intact(store, present):
            return "present"
    labelled = read_case(case, organs)
    model = to_model_grid(labelled.scan, preprocessing)
    mask = mask_to_model_grid(labelled.mask, model)
    by_slice = [np.ascontiguousarray(volume.slices()) for volume in (model, mask)]  # (S, rows, columns)
    record = StoredCase(
        name=case.name,
        dataset=case.dataset,
        patient=case.patient,
        modality=case.modality,
        fingerprint=fingerprint(labelled.scan),
        sketch=sketch(labelled.scan),
        slices=len(by_slice[0]),
        sha256=write_slices(store, case.name, by_slice[0], by_slice[1], len(organs)),
        remarks=labelled.remarks,
    )
    write_record(store, record)
    return "stored" if present is None else "repaired"
