"""How much a model loses on scans that differ from those it was trained on: its figures under each perturbation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddelinea.benchmark.held_out import ShowProgress, score_scan, unwatched
from meddelinea.benchmark.markdown import cell, table
from meddelinea.benchmark.perturbations import PERTURBATIONS, Perturb
from meddelinea.benchmark.perturbations.geometry import canonical
from meddelinea.data.case import Case, LabelledScan, read_case
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.errors import MedDelineaError, UsageError
from meddelinea.evaluation.compare import CaseFailure, CaseResult, Report
from meddelinea.evaluation.metrics import NSD_TOLERANCE_MM
from meddelinea.evaluation.summary import finite_mean, plain, report_document, summarise
from meddelinea.labels import PAPER_ORGANS
from meddelinea.segmentation.model import Model, load_model


@dataclass(frozen=True, kw_only=True)
class RobustnessTable:
    """A row for each perturbation, the first of them none."""

    model: str  # name of the model that was tested
    organs: tuple[str, ...]  # canonical names of the organs measured: those that the model and the dataset both know
    tested: tuple[str, ...]  # names of the cases, also of those that failed
    seen: tuple[str, ...]  # those of them whose names are among the model's training or validation cases
    rows: Mapping[str, Report]  # the cases under each perturbation, in the order of `PERTURBATIONS`

    def figures(self) -> dict[str, RowFigures]:
        """What each row shows beside the first."""
        unperturbed = next(iter(self.rows.values()))
        return {perturbation: row_figures(report, unperturbed) for perturbation, report in self.rows.items()}


@dataclass(frozen=True, kw_only=True)
class RowFigures:
    """What a row of the table shows; NaN where there is nothing to average."""

    dice: float  # mean over the paper's organs (`labels.PAPER_ORGANS`) of their means over cases
    #: The same mean of the Dice minus that of the unperturbed scan, over the organs of cases that have both: an organ
    #: that left the field of view is in neither. NaN where the scans could not be measured unperturbed.
    change: float
    #: Mean Dice over cases; for the kidneys, of both means.
    liver: float
    spleen: float
    kidneys: float
    #: Means over all organs measured; HD95 without the infinite distances.
    dice_all: float
    hd95_mm: float
    #: Organs of cases: in the reference only, in the prediction only.
    missed: int
    invented: int
    #: The case with the lowest mean Dice over the paper's organs; None where no case has one.
    worst_case: str | None
    worst_dice: float


def robustness_table(
    model: str | Path,
    layout: str,
    source: Path,
    only: tuple[str, ...] | None = None,
    progress: ShowProgress = unwatched,
) -> RobustnessTable:
    """Segment labelled CTs under each perturbation and measure the masks; one case is in memory at a time.

    A case that cannot be read, perturbed or segmented is a failure of each row that it is missing from.

    Parameters
    ----------
    model
        Name of a shipped model, or a folder.
    layout, source
        The dataset's format and folder.
    only
        Names of the cases; all where None.

    Raises
    ------
    UsageError
        If a case is not in the dataset, the dataset has none, or model and dataset know no organ in common.
    InputRefusedError
        If the dataset is not there.
    WeightsMissingError
        If there is no such model.
    """
    # Which cases are tested, and on which organs.
    found = find_cases(layout, source)
    cases = {case.name: case for case in found.cases}
    known = sorted({*cases, *found.broken})
    tested = tuple(known if only is None else dict.fromkeys(only))
    unknown = [name for name in tested if name not in known]
    if unknown or not tested:
        raise UsageError(f"{source}: no case {', '.join(unknown)}; expected some of: {', '.join(known)}")
    loaded = load_model(model)
    labelled_organs = organs_of(found.cases)
    organs = tuple(organ for organ in labelled_organs if organ in loaded.files.labels)
    if not organs:
        raise UsageError(
            f"the model knows {', '.join(loaded.files.labels)}, and the dataset {', '.join(labelled_organs)}: none in "
            "common; choose another model"
        )

    # Each case under all perturbations, so that one is in memory at a time.
    outcomes: dict[str, list[CaseResult | CaseFailure]] = {name: [] for name, _ in PERTURBATIONS}
    for number, name in enumerate(tested):
        broken = found.broken.get(name)
        base = _read(cases[name], labelled_organs) if broken is None else CaseFailure(name, broken)
        for done, (perturbation, perturb) in enumerate(PERTURBATIONS):
            each = len(PERTURBATIONS)
            progress(f"{name}, {perturbation}", number * each + done, len(tested) * each)
            outcome = base if isinstance(base, CaseFailure) else _measured(loaded, base, perturb, organs)
            outcomes[perturbation].append(outcome)

    trained = {name for names in loaded.files.training_cases.values() for name in names}
    rows = {perturbation: _report(outcome) for perturbation, outcome in outcomes.items()}
    return RobustnessTable(
        model=loaded.files.name,
        organs=organs,
        tested=tested,
        seen=tuple(name for name in tested if name in trained),
        rows=rows,
    )


def _read(case: Case, organs: tuple[str, ...]) -> LabelledScan | CaseFailure:
    try:
        return canonical(read_case(case, organs))
    except MedDelineaError as error:
        return CaseFailure(case.name, str(error))


def _measured(model: Model, base: LabelledScan, perturb: Perturb, organs: tuple[str, ...]) -> CaseResult | CaseFailure:
    try:
        return score_scan(model, perturb(base), organs)[0]
    except MedDelineaError as error:
        return CaseFailure(base.scan.name, str(error))


def _report(outcomes: list[CaseResult | CaseFailure]) -> Report:
    results = tuple(outcome for outcome in outcomes if isinstance(outcome, CaseResult))
    failures = tuple(outcome for outcome in outcomes if isinstance(outcome, CaseFailure))
    return Report(results, failures, NSD_TOLERANCE_MM)


def row_figures(report: Report, unperturbed: Report) -> RowFigures:
    """What a report comes to, beside that of the same cases unperturbed."""
    summary = summarise(report)
    by_organ = {organ.organ: organ.dice for organ in summary.organs}
    kidneys = [by_organ[organ] for organ in ("left kidney", "right kidney") if organ in by_organ]
    by_case = {case.case: finite_mean(s.dice for s in case.scores if s.organ in PAPER_ORGANS) for case in report.cases}
    worst = min((name for name, dice in by_case.items() if math.isfinite(dice)), key=by_case.__getitem__, default=None)
    return RowFigures(
        dice=summary.mean_over_paper_organs.dice,
        change=_change(report, unperturbed),
        liver=by_organ.get("liver", math.nan),
        spleen=by_organ.get("spleen", math.nan),
        kidneys=finite_mean(kidneys),
        dice_all=summary.mean_over_organs.dice,
        hd95_mm=summary.mean_over_organs.hd95_mm,
        missed=sum(organ.missed for organ in summary.organs),
        invented=sum(organ.false_positive for organ in summary.organs),
        worst_case=worst,
        worst_dice=math.nan if worst is None else by_case[worst],
    )


def robustness_lines(found: RobustnessTable) -> list[str]:
    """The table in Markdown, a row a perturbation; `-` where there is nothing to average."""
    head = (
        "perturbation", "Dice, 8 organs", "change", "liver", "spleen", "kidneys", "Dice, all organs", "HD95 mm",
        "missed", "invented", "failed", "worst case",
    )  # fmt: skip
    rows = []
    for perturbation, figures in found.figures().items():
        cells = (
            perturbation,
            cell(figures.dice, ".3f"),
            cell(figures.change, "+.3f"),
            *(cell(dice, ".3f") for dice in (figures.liver, figures.spleen, figures.kidneys, figures.dice_all)),
            cell(figures.hd95_mm, ".1f"),
            str(figures.missed),
            str(figures.invented),
            str(len(found.rows[perturbation].failures)),
            "-" if figures.worst_case is None else f"{figures.worst_case} {figures.worst_dice:.3f}",
        )
        rows.append(cells)
    return table(head, rows)


def robustness_document(found: RobustnessTable) -> dict[str, Any]:
    """Everything as plain JSON types; null where there is nothing to average."""
    rows = [
        {"perturbation": perturbation, "figures": figures, **report_document(found.rows[perturbation])}
        for perturbation, figures in found.figures().items()
    ]
    content = {name: value for name, value in vars(found).items() if name != "seen"}
    return plain({**content, "seen_in_training": found.seen, "rows": rows})


def _change(report: Report, unperturbed: Report) -> float:
    before = {(case.case, score.organ): score.dice for case in unperturbed.cases for score in case.scores}
    changes: dict[str, list[float]] = {}
    for case in report.cases:
        for score in case.scores:
            change = score.dice - before.get((case.case, score.organ), math.nan)
            if score.organ in PAPER_ORGANS and math.isfinite(change):
                changes.setdefault(score.organ, []).append(change)
    return finite_mean(finite_mean(values) for values in changes.values())
