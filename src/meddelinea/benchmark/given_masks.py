"""Masks that another program made, such as nnU-Net v2's own, scored as those of the methods here are."""

from __future__ import annotations

from pathlib import Path

from meddelinea.benchmark.accuracy import Trial
from meddelinea.benchmark.held_out import score_mask
from meddelinea.data.case import Case, read_case
from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.evaluation.compare import CaseFailure, Report
from meddelinea.evaluation.metrics import NSD_TOLERANCE_MM
from meddelinea.evaluation.pairing import read_label_names
from meddelinea.files import write_json
from meddelinea.io.volumes import read_volume, write_volume


def score_given_masks(
    masks: Path, cases: tuple[Case, ...], organs: tuple[str, ...], name: str, part: str, kept: Path
) -> Trial:
    """Score `masks/CASE.nii.gz` of each case against its labels.

    Ids are named by `labels.json` or nnU-Net's `dataset.json` in the folder, or by `CASE.json` beside each mask.

    Parameters
    ----------
    organs
        Those to score; one that the masks do not name counts as missed.
    name, part
        Of the trial's method and part.
    kept
        Folder for the masks as `run_test` keeps them.

    Raises
    ------
    InputRefusedError
        If there is no such folder, or no mask in it that can be scored.
    """
    if not masks.is_dir():
        raise InputRefusedError(f"{masks}: no such folder; expected one with CASE.nii.gz of each test case")
    description = masks / "dataset.json"
    numbering = str(description) if description.is_file() else None
    kept.mkdir(parents=True, exist_ok=True)
    results, failures, labels = [], [], dict[str, int]()
    for case in cases:
        path = masks / f"{case.name}.nii.gz"
        try:
            mask, ids = read_volume(path), dict(read_label_names(path, numbering).ids)
            labels = labels or ids
            if ids != labels:
                raise InputRefusedError(f"{path}: its ids mean other organs than those of masks before it")
            results.append(score_mask(mask, ids, read_case(case, organs), organs))
            write_volume(mask, kept / path.name)
        except MedDelineaError as error:
            failures.append(CaseFailure(case.name, str(error)))
    if not results:
        raise InputRefusedError(f"{masks}: {failures[0].reason}")
    write_json({"labels": labels}, kept / "labels.json")
    return Trial(
        method=name,
        part=part,
        parameters=None,
        trained_parameters=None,
        stages=(),
        cpu_hours=None,
        seconds={},
        report=Report(tuple(results), tuple(failures), NSD_TOLERANCE_MM),
    )
