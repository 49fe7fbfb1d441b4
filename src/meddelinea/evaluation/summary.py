"""Summaries of a report: means over cases and organs, each beside the count of what it leaves out; JSON and CSV."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from meddelinea.evaluation.compare import CaseFailure, CaseResult, FilesResult, Report
from meddelinea.evaluation.metrics import OrganScore
from meddelinea.files import write_json
from meddelinea.labels import PAPER_ORGANS
from meddelinea.tables import write_table

#: Version of the JSON that `write_report_json` writes; it grows when a field changes its meaning or goes.
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Means:
    """Means of the metrics, and what they leave out."""

    #: Of an organ over the cases that are not `both_empty`, where a missed or invented organ enters with 0; of a group
    #: over its organs that have a value. NaN without any.
    dice: float
    nsd: float
    #: The same over the finite distances; NaN without any.
    hd95_mm: float
    hd95_pooled_mm: float
    assd_mm: float
    #: How many distances (of cases, of organs of cases) those three means leave out: the organ was missed or invented.
    infinite_distances: int


@dataclass(frozen=True, kw_only=True)
class OrganSummary(Means):
    """One organ over all cases."""

    organ: str
    cases: int  # cases in which the organ was compared
    #: How many of them have that status.
    both_empty: int
    missed: int
    false_positive: int


@dataclass(frozen=True, kw_only=True)
class GroupSummary(Means):
    """Means over organs of their means over cases."""

    organs: tuple[str, ...]  # organs of the group that have a mean, and so enter the group's
    #: Organs of the group that no case has in prediction or reference, or that were not compared.
    absent: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Means and counts over all cases of a report."""

    #: Number of cases; the means know only the measured ones.
    cases_measured: int
    cases_failed: int
    organs: tuple[OrganSummary, ...]  # one summary an organ
    #: Over all organs compared, and over the eight that the paper reports (`labels.PAPER_ORGANS`).
    mean_over_organs: GroupSummary
    mean_over_paper_organs: GroupSummary
    #: Organs that were not compared because only one side names them, with the number of cases.
    only_in_prediction: Mapping[str, int]
    only_in_reference: Mapping[str, int]


def summarise(report: Report) -> Summary:
    """Means over the cases of each organ, then over organs, each beside the count of what it leaves out."""
    by_organ: dict[str, list[OrganScore]] = {}
    for score in itertools.chain.from_iterable(case.scores for case in report.cases):
        by_organ.setdefault(score.organ, []).append(score)
    organs = {organ: _organ_summary(organ, scores) for organ, scores in by_organ.items()}
    return Summary(
        cases_measured=len(report.cases),
        cases_failed=len(report.failures),
        organs=tuple(organs.values()),
        mean_over_organs=_group_summary(tuple(organs), organs),
        mean_over_paper_organs=_group_summary(PAPER_ORGANS, organs),
        only_in_prediction=dict(Counter(name for case in report.cases for name in case.only_in_prediction)),
        only_in_reference=dict(Counter(name for case in report.cases for name in case.only_in_reference)),
    )


def report_document(report: Report) -> dict[str, Any]:
    """The report and its summary as plain JSON types.

    JSON has neither infinity nor NaN: an infinite distance is the string `"inf"`, and what has no value (both masks
    empty, no finite distance to average) is null. `status` and the counts say why.
    """
    return plain({"schema_version": SCHEMA_VERSION, "summary": summarise(report), **vars(report)})


def read_report_document(document: Mapping[str, Any]) -> Report:
    """The report that `report_document` made this of."""
    cases = []
    for case in document["cases"]:
        content: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in case.items()}
        content["scores"] = tuple(_read_score(row) for row in case["scores"])
        cases.append(FilesResult(**content) if "prediction" in content else CaseResult(**content))
    failures = tuple(CaseFailure(**failure) for failure in document["failures"])
    return Report(tuple(cases), failures, document["nsd_tolerance_mm"])


def write_report_json(report: Report, path: Path) -> None:
    """Write `report_document` to a file, whole or not at all."""
    write_json(report_document(report), path)


def write_report_csv(report: Report, path: Path) -> None:
    """Write one row an organ of a case, whole or not at all; a failed case has one row, with its reason as `error`.

    An infinite distance is `inf`; what has no value is an empty cell.
    """
    columns = ["case", *(field.name for field in fields(OrganScore)), "error"]
    scored = ({"case": case.case, **plain(vars(score))} for case in report.cases for score in case.scores)
    failed = ({"case": f.case, "status": "failed", "error": f.reason} for f in report.failures)
    write_table(columns, (*scored, *failed), path)


def _organ_summary(organ: str, scores: list[OrganScore]) -> OrganSummary:
    statuses = Counter(score.status for score in scores)
    return OrganSummary(
        organ=organ,
        cases=len(scores),
        both_empty=statuses["both_empty"],
        missed=statuses["missed"],
        false_positive=statuses["false_positive"],
        **_means(scores),
        infinite_distances=sum(math.isinf(score.hd95_mm) for score in scores),
    )


def _group_summary(group: tuple[str, ...], organs: Mapping[str, OrganSummary]) -> GroupSummary:
    entering = [organs[name] for name in group if name in organs and not math.isnan(organs[name].dice)]
    names = tuple(organ.organ for organ in entering)
    return GroupSummary(
        organs=names,
        absent=tuple(name for name in group if name not in names),
        **_means(entering),
        infinite_distances=sum(organ.infinite_distances for organ in entering),
    )


def _means(rows: Sequence[OrganScore | OrganSummary]) -> dict[str, float]:
    """The mean of each metric over the rows."""
    metrics = ("dice", "nsd", "hd95_mm", "hd95_pooled_mm", "assd_mm")
    return {metric: finite_mean(getattr(row, metric) for row in rows) for metric in metrics}


def finite_mean(values: Iterable[float]) -> float:
    """Mean of the values that are neither NaN nor infinite; NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _read_score(row: Mapping[str, Any]) -> OrganScore:
    numbers: dict[Any, Any] = {None: math.nan, "inf": math.inf}
    content: dict[str, Any] = {key: numbers.get(value, value) for key, value in row.items()}
    return OrganScore(**content)


def plain(document: Mapping[Any, Any]) -> dict[Any, Any]:
    """Plain JSON types: infinity becomes `"inf"`, NaN None, a dataclass a mapping of its fields, and so on inside."""
    return {key: _plain(value) for key, value in document.items()}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return plain(vars(value))
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "inf" if math.isinf(value) else None
    return value
