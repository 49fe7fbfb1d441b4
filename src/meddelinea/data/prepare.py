"""From a dataset on disk to a slice store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from meddelinea.checks.scan import traits
from meddelinea.data.case import Case, LabelledScan, read_case
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.data.fingerprint import fingerprint, sketch
from meddelinea.data.preprocess import Preprocessing, mask_to_model_grid, to_model_grid
from meddelinea.data.store import StoredCase, limits_of
from meddelinea.data.store_writer import begin_store, compile_store, find_record, is_intact, write_record, write_slices
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.files import write_json
from meddelinea.labels import ORGANS, organ_ids
from meddelinea.pool.local import in_this_process
from meddelinea.pool.pool import Engine, Progress
from meddelinea.scan import Modality


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What became of each case of a dataset, by name."""

    #: Stored now; there before; and there before, but damaged, and stored anew.
    stored: tuple[str, ...]
    present: tuple[str, ...]
    repaired: tuple[str, ...]
    failed: Mapping[str, str]  # those that the store lacks, with the reason
    remarks: Mapping[str, tuple[str, ...]]  # what a person should know of those that it holds
    #: Of those, the ones that a model which is trained on all of them would refuse to segment, with the reasons.
    refused: Mapping[str, tuple[str, ...]]


def prepare_store(
    layout: str,
    source: Path,
    store: Path,
    *,
    only: tuple[str, ...] | None = None,
    modality: Modality | None = None,
    organs: tuple[str, ...] | None = None,
    preprocessing: Preprocessing | None = None,
    verify: bool = False,
    engine: Engine[Case, str] = in_this_process,
    progress: Callable[[int, int, str], None] | None = None,
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
    modality
        Take the cases of this modality alone.
    organs
        Names behind the mask ids 1..L of the store; the dataset's own by default.
    verify
        Also check the files of the cases that are there, and store damaged ones anew.
    engine
        Where: `in_this_process`, `on_this_machine` or `on_cluster` of `pool`.
    progress
        Called with (cases done, cases in all, name of the last one).

    Raises
    ------
    UsageError
        If the layout or an organ is unknown, or the store holds other organs or another preprocessing.
    InputRefusedError
        If no case is found, or none of that modality.
    """
    found = find_cases(layout, source)
    wanted = tuple(case for case in found.cases if modality in (None, case.modality))
    if modality is not None and not wanted:
        raise InputRefusedError(f"{source}: no scan is {modality}; expected the other one", parameter="modality")
    labelled = organs_of(wanted)
    organs = organs or labelled
    organ_ids(organs)  # refuses an organ that is named twice
    unknown = [organ for organ in organs if organ not in labelled and organ not in ORGANS]
    if unknown:
        raise UsageError(f"{source}: no organ called {', '.join(unknown)}; it labels: {', '.join(labelled)}")
    preprocessing = preprocessing or Preprocessing()
    begin_store(store, organs, preprocessing)
    became: dict[str, list[str]] = {"stored": [], "present": [], "repaired": []}
    cases = [case for case in wanted if only is None or case.name in only]
    failed = {name: reason for name, reason in found.broken.items() if only is None or name in only}
    make = partial(_Preparer, store=store, organs=organs, preprocessing=preprocessing, verify=verify)
    with closing(engine(make, cases, lambda *step: None)) as outcomes:
        for done, outcome in enumerate(outcomes, start=1):
            name = outcome.item.name
            if outcome.answer is None:
                failed[name] = outcome.reason
            else:
                became[outcome.answer].append(name)
            if progress is not None:
                progress(done, len(cases), name)
    ours = {name for names in became.values() for name in names}
    held = compile_store(store).cases
    limits = limits_of(held, preprocessing)
    remarks = {case.name: case.remarks for case in held if case.name in ours and case.remarks}
    refused = {case.name: reasons for case in held if case.name in ours and (reasons := tuple(case.refusals(limits)))}
    stored, present, repaired = (tuple(sorted(names)) for names in became.values())
    failed = dict(sorted(failed.items()))
    # Not in how many runs it came about: the store is the same, byte for byte, however often it was interrupted.
    report = {"dataset": layout, "held": sorted(ours), "failed": failed, "remarks": remarks, "refused": refused}
    write_json(report, store / "report.json")
    return PrepareReport(
        stored=stored, present=present, repaired=repaired, failed=failed, remarks=remarks, refused=refused
    )


class _Preparer:
    """What a worker does with a case: the one that is pending waits, or a worker would need the memory of two."""

    def __init__(
        self, threads: int | None, *, store: Path, organs: tuple[str, ...], preprocessing: Preprocessing, verify: bool
    ) -> None:
        self.writing = threading.Lock()
        self._turn = threading.Lock()
        self._store, self._organs, self._preprocessing, self._verify = store, organs, preprocessing, verify

    def __call__(self, case: Case, progress: Progress) -> str:
        with self._turn:
            present = find_record(self._store, case.name)
            if present is not None:
                if present.dataset != case.dataset:
                    raise InputRefusedError(
                        f"{self._store}: holds a case {case.name} of dataset {present.dataset} already; "
                        f"prepare {case.dataset} into another store, or rename its case"
                    )
                if not self._verify or is_intact(self._store, present):
                    return "present"
            self._write(case)
            return "stored" if present is None else "repaired"

    def _write(self, case: Case) -> None:
        labelled = read_case(case, self._organs)
        model = to_model_grid(labelled.scan, self._preprocessing)
        mask = mask_to_model_grid(labelled.mask, model)
        images, masks = (np.ascontiguousarray(each.slices()) for each in (model, mask))  # (S, rows, columns)
        with self.writing:
            record = StoredCase(
                name=case.name,
                dataset=case.dataset,
                patient=case.patient,
                modality=case.modality,
                fingerprint=fingerprint(labelled.volume),
                sketch=sketch(labelled.volume),
                slices=len(images),
                sha256=write_slices(self._store, case.name, images, masks, len(self._organs)),
                remarks=labelled.remarks,
                traits=traits(labelled.scan, _organ_ml(labelled)),
            )
            write_record(self._store, record)


def _organ_ml(labelled: LabelledScan) -> dict[str, float]:
    """Millilitres of each organ that is labelled in a scan."""
    voxels = np.bincount(labelled.mask.array.ravel(), minlength=len(labelled.organs) + 1)[1:]
    return {
        name: float(count * labelled.mask.voxel_ml)
        for name, count in zip(labelled.organs, voxels, strict=True)
        if count
    }
