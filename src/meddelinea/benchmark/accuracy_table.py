"""What an accuracy benchmark comes to: means with their intervals over the patients of all parts, and differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.benchmark.accuracy import Accuracy, Trial, trial_document
from meddelinea.benchmark.bootstrap import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    column_means,
    draw_patients,
    estimate,
    row_means,
)
from meddelinea.benchmark.markdown import table
from meddelinea.evaluation.metrics import OrganScore
from meddelinea.evaluation.summary import plain
from meddelinea.labels import PAPER_ORGANS


@dataclass(frozen=True)
class OrganMeans:
    """An organ over all tested cases, defined as `summary.OrganSummary` is."""

    dice: Estimate
    hd95_mm: Estimate
    infinite_distances: int
    nsd: Estimate


@dataclass(frozen=True)
class GroupMeans(OrganMeans):
    """Means over organs of their means over cases, as `summary.GroupSummary`."""

    organs: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A method's mean Dice of a patient less that of `to`, over the patients that both were tested on."""

    to: str
    patients: int
    paper_organs: Estimate
    all_organs: Estimate


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """A method over the parts that it was tested on."""

    method: str
    #: How many; `cases` without the failures.
    parts: int
    patients: int
    cases: int
    failures: int
    #: As of a trial.
    parameters: int | None
    trained_parameters: int | None
    #: Of a training, all stages together: the mean over the parts; None where it is not known.
    steps: float | None
    slices: float | None
    cpu_hours: float | None
    seconds: float | None  # mean wall time of a volume; None of masks alone
    #: The scores, by organ and for the two groups.
    organs: Mapping[str, OrganMeans]
    paper_organs: GroupMeans
    all_organs: GroupMeans
    difference: Difference | None  # to the first method; None for that one


def accuracy_rows(accuracy: Accuracy) -> tuple[MethodRow, ...]:
    """A row a method, in the order of the trials."""
    by_method: dict[str, list[Trial]] = {}
    for trial in accuracy.trials:
        by_method.setdefault(trial.method, []).append(trial)
    first = next(iter(by_method), "")
    return tuple(_row(accuracy, trials, by_method[first]) for trials in by_method.values())


def _row(accuracy: Accuracy, trials: list[Trial], first: list[Trial]) -> MethodRow:
    organs = accuracy.organs
    scores = _scores(trials)
    cases = list(scores)
    known = list(dict.fromkeys(accuracy.patients[case] for case in cases))
    weights = draw_patients(len(known), accuracy.seed) if known else np.zeros((0, 0))
    by_case = weights[:, [known.index(accuracy.patients[case]) for case in cases]]
    once = np.ones((1, len(cases)))
    tables = {name: _table(scores, organs, name) for name in ("dice", "hd95_mm", "nsd")}
    means = {name: column_means(once, table) for name, table in tables.items()}
    resampled = {name: column_means(by_case, table) for name, table in tables.items()}
    infinite = np.isinf(tables["hd95_mm"]).sum(axis=0)

    def over(group: tuple[str, ...]) -> tuple[Estimate, Estimate, int, Estimate]:
        columns = [organs.index(name) for name in group]
        dice, hd95, nsd = (
            estimate(float(row_means(means[name][:, columns])[0]), row_means(resampled[name][:, columns]))
            for name in tables
        )
        return dice, hd95, int(infinite[columns].sum()), nsd

    seconds = [second for trial in trials for second in trial.seconds.values()]
    trained = [trial for trial in trials if trial.stages]
    hours = [trial.cpu_hours for trial in trials if trial.cpu_hours is not None]
    return MethodRow(
        method=trials[0].method,
        parts=len(trials),
        patients=len(known),
        cases=len(cases),
        failures=sum(len(trial.report.failures) for trial in trials),
        parameters=trials[0].parameters,
        trained_parameters=trials[0].trained_parameters,
        steps=_mean([sum(stage.steps for stage in trial.stages) for trial in trained]),
        slices=_mean([sum(stage.slices for stage in trial.stages) for trial in trained]),
        cpu_hours=_mean(hours),
        seconds=_mean(seconds),
        organs={name: OrganMeans(*over((name,))) for name in organs},
        paper_organs=GroupMeans(*over(_paper(organs)), _paper(organs)),
        all_organs=GroupMeans(*over(organs), organs),
        difference=None if trials is first else _difference(accuracy, trials, first),
    )


def _difference(accuracy: Accuracy, trials: list[Trial], first: list[Trial]) -> Difference:
    ours, theirs = _scores(trials), _scores(first)
    cases = [case for case in ours if case in theirs]
    patients = list(dict.fromkeys(accuracy.patients[case] for case in cases))
    owners = np.array([[accuracy.patients[case] == patient for case in cases] for patient in patients], float)

    def over(group: tuple[str, ...]) -> Estimate:
        if not cases:
            return Estimate(float("nan"), float("nan"), float("nan"))
        one, other = (
            row_means(_table({case: scores[case] for case in cases}, group, "dice")) for scores in (ours, theirs)
        )
        by_patient = column_means(owners, (one - other)[:, None])
        weights = draw_patients(len(patients), accuracy.seed)
        mean = column_means(np.ones((1, len(patients))), by_patient)
        return estimate(float(mean[0, 0]), column_means(weights, by_patient)[:, 0])

    return Difference(first[0].method, len(patients), over(_paper(accuracy.organs)), over(accuracy.organs))


def _scores(trials: list[Trial]) -> dict[str, dict[str, OrganScore]]:
    """Case -> organ -> score, of all parts."""
    return {case.case: {score.organ: score for score in case.scores} for trial in trials for case in trial.report.cases}


def _table(scores: Mapping[str, Mapping[str, OrganScore]], organs: tuple[str, ...], name: str) -> NDArray[np.float64]:
    """One metric, (cases, organs)."""
    rows = [[getattr(case[organ], name) for organ in organs] for case in scores.values()]
    return np.array(rows, np.float64).reshape(len(scores), len(organs))


def _paper(organs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(organ for organ in PAPER_ORGANS if organ in organs)


def _mean(values: list[int] | list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def accuracy_lines(accuracy: Accuracy, rows: tuple[MethodRow, ...]) -> list[str]:
    """The tables in Markdown: the methods, each organ with its intervals, and the differences to the first method."""
    eight, everything = _paper(accuracy.organs), accuracy.organs
    head = [
        *("method", "patients", "parameters, M (trained last)", "slices seen", "CPU hours", "s / volume"),
        *eight,
        *(f"mean Dice of {len(group)} [95 %]" for group in (eight, everything)),
        *(f"HD95 mm, mean of {len(eight)} [95 %]", "infinite", "failed cases"),
    ]
    by_method = []
    for row in rows:
        counts = (row.parameters, row.trained_parameters)
        whole, trained = ("-" if count is None else f"{count / 1e6:.2f}" for count in counts)
        cells = [
            *(row.method, str(row.patients), f"{whole} ({trained})"),
            "-" if row.slices is None else f"{row.slices:,.0f}",
            "-" if row.cpu_hours is None else f"{row.cpu_hours:.2f}",
            "-" if row.seconds is None else f"{row.seconds:.1f}",
            *(f"{row.organs[organ].dice.mean:.3f}" for organ in eight),
            *(_cell(group.dice, 3) for group in (row.paper_organs, row.all_organs)),
            *(_cell(row.paper_organs.hd95_mm, 1), str(row.paper_organs.infinite_distances), str(row.failures)),
        ]
        by_method.append(cells)
    by_organ = []
    for organ in everything:
        cells = [organ]
        for row in rows:
            of = row.organs[organ]
            infinite = f", {of.infinite_distances} infinite" if of.infinite_distances else ""
            cells += [_cell(of.dice, 3), _cell(of.hd95_mm, 1) + infinite]
        by_organ.append(cells)
    columns = [f"{row.method}: {name}" for row in rows for name in ("Dice", "HD95 mm")]
    lines = [*table(head, by_method), "", *table(["organ", *columns], by_organ)]
    compared = [(row.method, row.difference) for row in rows if row.difference is not None]
    if compared:
        means = [f"mean Dice of {len(group)} [95 %]" for group in (eight, everything)]
        cells_of = (
            (method, str(d.patients), *(_cell(group, 3, "+") for group in (d.paper_organs, d.all_organs)))
            for method, d in compared
        )
        lines += ["", *table([f"less {compared[0][1].to}", "patients", *means], cells_of)]
    return lines


def accuracy_document(accuracy: Accuracy, rows: tuple[MethodRow, ...]) -> dict[str, Any]:
    """Everything as plain JSON types: infinite distances as `"inf"`, what has no value as null."""
    return plain(
        {
            **vars(accuracy),
            "bootstrap": {"over": "patients", "kind": "percentile", "resamples": RESAMPLES, "confidence": CONFIDENCE},
            "rows": rows,
            "trials": [trial_document(trial) for trial in accuracy.trials],
        }
    )


def _cell(value: Estimate, digits: int, sign: str = "") -> str:
    return f"{value.mean:{sign}.{digits}f} [{value.low:{sign}.{digits}f}, {value.high:{sign}.{digits}f}]"
