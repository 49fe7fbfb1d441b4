"""A model tested on labelled cases: masks at full resolution in 3D, against the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meddelinea.data.case import Case, read_case
from meddelinea.errors import MedDelineaError
from meddelinea.evaluation.metrics import NSD_TOLERANCE_MM
from meddelinea.evaluation.report import CaseFailure, CaseResult, Report, evaluate_case
from meddelinea.inference.model import Model
from meddelinea.inference.predict import segment
from meddelinea.labels import organ_ids

#: Called with what is being done, and how much of it is: done, in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tested:
    """The scores of the cases, and the seconds of wall time from each one's volume to its mask."""

    report: Report
    seconds: Mapping[str, float]


def run_test(
    model: Model, cases: tuple[Case, ...], organs: tuple[str, ...], name: str, progress: Progress | None = None
) -> Tested:
    """The model's masks of the cases against their labels; an organ that it does not know is one that it missed.

    Parameters
    ----------
    organs
        What is compared.
    name
        What `progress` calls the model.

    Returns
    -------
    Tested
        Cases that could not be read, segmented or compared are the report's failures.
    """
    unknown = (organ for organ in organs if organ not in model.files.labels)
    # Numbers that its masks never hold.
    labels = {**model.files.labels, **{organ: 255 - index for index, organ in enumerate(unknown)}}
    only = tuple(organ for organ in model.files.labels if organ not in organs)
    results, failures, seconds = [], [], {}
    for done, case in enumerate(cases):
        if progress is not None:
            progress(f"test {name}", done, len(cases))
        try:
            labelled = read_case(case, organs)
            found = segment(model, labelled.scan)
            scores = evaluate_case(found.mask, labels, labelled.mask, organ_ids(organs), organs)
        except MedDelineaError as error:
            failures.append(CaseFailure(case.name, str(error)))
            continue
        results.append(CaseResult(case.name, "", "", "", "", tuple(scores), only, (), (), ()))
        seconds[case.name] = found.seconds
    return Tested(Report(tuple(results), tuple(failures), NSD_TOLERANCE_MM), seconds)
