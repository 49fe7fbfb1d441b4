"""A model tested on labelled cases: masks at full resolution in 3D, against the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from meddelinea.data.case import Case, LabelledScan, read_case
from meddelinea.errors import MedDelineaError
from meddelinea.evaluation.compare import CaseFailure, CaseResult, Report, evaluate_case
from meddelinea.evaluation.metrics import NSD_TOLERANCE_MM, score_organ
from meddelinea.files import write_json
from meddelinea.io.volumes import write_volume
from meddelinea.labels import organ_ids
from meddelinea.segmentation.model import Model
from meddelinea.segmentation.predict import segment
from meddelinea.segmentation.sampling import Sampling
from meddelinea.volume import Volume

#: Called with what is being done, and how much of it is: done, in all.
ShowProgress = Callable[[str, int, int], None]


def unwatched(what: str, done: int, total: int) -> None:
    """Progress that is shown to nobody."""


def run_test(
    model: Model,
    cases: tuple[Case, ...],
    organs: tuple[str, ...],
    name: str,
    progress: ShowProgress = unwatched,
    masks: Path | None = None,
    sampling: Sampling | None = None,
) -> tuple[Report, dict[str, float]]:
    """Segment cases and score the masks against their labels; an organ that the model does not know counts as missed.

    Parameters
    ----------
    organs
        Canonical names of the organs to score.
    name
        What `progress` calls the model.
    masks
        Folder for the masks, `CASE.nii.gz` on the scan's own grid, with the organs' ids in `labels.json`; kept nowhere
        where None.
    sampling
        How masks are sampled; the model's own way where None.

    Returns
    -------
    The report, whose failures are the cases that could not be read, segmented or compared; and the seconds of wall
    time from each one's volume to its mask.
    """
    results, failures, seconds = [], [], {}
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
        write_json({"labels": model.files.labels}, masks / "labels.json")
    for done, case in enumerate(cases):
        progress(f"test {name}", done, len(cases))
        try:
            labelled = read_case(case, organs)
            found = segment(model, labelled.scan, sampling)
            results.append(score_mask(found.mask, model.files.labels, labelled, organs))
            seconds[case.name] = found.seconds
            if masks is not None:
                write_volume(found.mask, masks / f"{case.name}.nii.gz")
        except MedDelineaError as error:
            failures.append(CaseFailure(case.name, str(error)))
    return Report(tuple(results), tuple(failures), NSD_TOLERANCE_MM), seconds


def score_scan(
    model: Model, labelled: LabelledScan, organs: tuple[str, ...], sampling: Sampling | None = None
) -> tuple[CaseResult, float]:
    """Segment one scan and score the mask as `score_mask` does; with the seconds from volume to mask.

    Parameters
    ----------
    sampling
        As of `run_test`.

    Raises
    ------
    MedDelineaError
        If the scan cannot be segmented, or its labels are not on its grid.
    """
    found = segment(model, labelled.scan, sampling)
    return score_mask(found.mask, model.files.labels, labelled, organs), found.seconds


def score_mask(mask: Volume, known: Mapping[str, int], labelled: LabelledScan, organs: tuple[str, ...]) -> CaseResult:
    """Score a mask of a scan against its labels.

    Parameters
    ----------
    known
        Ids of the mask by organ.
    labelled
        The scan, named as its case, and its labels.
    organs
        Those of its organs to score; an organ that the mask does not know counts as missed.

    Raises
    ------
    InputRefusedError
        If the mask is not on the scan's grid.
    """
    ids, reference = organ_ids(labelled.organs), labelled.mask
    shared = tuple(organ for organ in organs if organ in known)
    scores = evaluate_case(mask, known, reference, ids, shared) if shared else []
    nothing = np.zeros(reference.shape, np.bool_)
    missed = [organ for organ in organs if organ not in known]
    scores += [score_organ(organ, nothing, reference.array == ids[organ], reference.affine) for organ in missed]
    return CaseResult(
        case=labelled.scan.name,
        scores=tuple(sorted(scores, key=lambda score: organs.index(score.organ))),
        only_in_prediction=tuple(organ for organ in known if organ not in organs),
        only_in_reference=tuple(organ for organ in ids if organ not in organs),
    )
