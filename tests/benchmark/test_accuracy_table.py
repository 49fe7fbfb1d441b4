"""The table of the accuracy benchmark: rows by hand, means of the summary, differences within patients."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from meddelinea.benchmark.accuracy import Accuracy, Part, Trial
from meddelinea.benchmark.accuracy_table import accuracy_document, accuracy_lines, accuracy_rows
from meddelinea.benchmark.chain import StageCost
from meddelinea.evaluation.compare import CaseFailure, CaseResult, Report
from meddelinea.evaluation.metrics import OrganScore, score_organ
from meddelinea.evaluation.summary import read_report_document, report_document, summarise


def score(organ: str, prediction: Callable[[], np.ndarray], reference: Callable[[], np.ndarray]) -> OrganScore:
    return score_organ(organ, prediction(), reference(), (1.0, 1.0, 1.0))


def slab(length: int) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        mask = np.zeros((12, 3, 3), bool)
        mask[:length] = True
        return mask

    return make


def case(name: str, liver: tuple[int, int], gallbladder: tuple[int, int]) -> CaseResult:
    """Predicted and true length of two organs: Dice 2 min / (sum)."""
    scores = (score("liver", *map(slab, liver)), score("gallbladder", *map(slab, gallbladder)))
    return CaseResult(name, scores)


def hand_made() -> Accuracy:
    first = Report((case("p1", (6, 6), (3, 1)), case("p2", (6, 10), (0, 2))), (), 2.0)
    second = Report((case("p1", (6, 10), (1, 1)),), (CaseFailure("p2", "damaged"),), 2.0)
    third = Report((case("q1", (5, 5), (0, 0)),), (), 2.0)
    stages = (StageCost("codec", 10, 80, 3600.0), StageCost("model", 30, 240, 7200.0))
    trials = (
        Trial(
            method="A",
            part="fold-1-of-2",
            parameters=2_000_000,
            trained_parameters=500_000,
            stages=stages,
            cpu_hours=3.0,
            seconds={"p1": 1.0, "p2": 3.0},
            report=first,
        ),
        Trial(
            method="A",
            part="fold-2-of-2",
            parameters=2_000_000,
            trained_parameters=500_000,
            stages=stages,
            cpu_hours=5.0,
            seconds={"q1": 5.0},
            report=third,
        ),
        Trial(
            method="B",
            part="fold-1-of-2",
            parameters=1_000_000,
            trained_parameters=None,
            stages=(),
            cpu_hours=None,
            seconds={"p1": 1.0},
            report=second,
        ),
    )
    patients = {"p1": "p", "p2": "p", "q1": "q"}
    parts = (Part("fold-1-of-2", ("q1",), ("p1", "p2")), Part("fold-2-of-2", ("p1", "p2"), ("q1",)))
    return Accuracy(
        organs=("liver", "gallbladder"), patients=patients, parts=parts, cpu_minutes=180.0, seed=0, trials=trials
    )


def test_the_rows_by_hand() -> None:
    accuracy = hand_made()
    a, b = accuracy_rows(accuracy)
    assert (a.parts, a.patients, a.cases, a.failures, a.seconds) == (2, 2, 3, 0, 3.0)
    assert (a.steps, a.slices, a.cpu_hours) == (40.0, 320.0, 4.0)
    # Liver: 1, 0.75, 1. Gallbladder: 0.5, missed 0, and both empty, which is left out.
    assert a.organs["liver"].dice.mean == pytest.approx(2.75 / 3)
    assert a.organs["gallbladder"].dice.mean == pytest.approx(0.25)
    assert a.all_organs.dice.mean == pytest.approx((2.75 / 3 + 0.25) / 2)
    # Patient p twice in a quarter of the resamples, q twice in another: liver 0.875 to 1.
    assert (a.organs["liver"].dice.low, a.organs["liver"].dice.high) == (0.875, 1.0)
    # Without p there is no gallbladder, and the mean of that resample is the liver's.
    assert (a.organs["gallbladder"].dice.low, a.organs["gallbladder"].dice.high) == (0.25, 0.25)
    assert (a.all_organs.dice.low, a.all_organs.dice.high) == pytest.approx(((0.875 + 0.25) / 2, 1.0))
    assert (a.organs["gallbladder"].infinite_distances, a.organs["gallbladder"].hd95_mm.mean) == (1, 2.0)
    assert (b.patients, b.cases, b.failures, b.cpu_hours, b.slices) == (1, 1, 1, None, None)
    assert a.difference is None
    assert b.difference is not None
    # On p1 alone: B has (0.75 + 1) / 2, A (1 + 0.5) / 2.
    assert (b.difference.to, b.difference.patients) == ("A", 1)
    assert b.difference.all_organs.mean == pytest.approx(0.125)


def test_the_means_are_those_of_the_summary() -> None:
    accuracy = hand_made()
    row = accuracy_rows(accuracy)[0]
    pooled = Report(tuple(c for t in accuracy.trials[:2] for c in t.report.cases), (), 2.0)
    summary = summarise(pooled)
    for organ in summary.organs:
        ours = row.organs[organ.organ]
        assert (ours.dice.mean, ours.hd95_mm.mean) == pytest.approx((organ.dice, organ.hd95_mm))
        assert ours.nsd.mean == pytest.approx(organ.nsd)
        assert ours.infinite_distances == organ.infinite_distances
    paper = (row.paper_organs, summary.mean_over_paper_organs)
    for group, theirs in ((row.all_organs, summary.mean_over_organs), paper):
        assert (group.dice.mean, group.hd95_mm.mean) == pytest.approx((theirs.dice, theirs.hd95_mm))
        assert group.infinite_distances == theirs.infinite_distances


def test_a_difference_is_within_patients() -> None:
    """A method that is better by the same for every patient is better for sure, however much patients differ."""
    livers = {f"p{i}": i for i in range(1, 9)}
    reports = [
        Report(tuple(case(name, (length + more, 12), (2, 2)) for name, length in livers.items()), (), 2.0)
        for more in (0, 1)
    ]
    trials = tuple(
        Trial(
            method=name,
            part="test",
            parameters=1,
            trained_parameters=1,
            stages=(),
            cpu_hours=None,
            seconds={},
            report=report,
        )
        for name, report in zip("AB", reports, strict=True)
    )
    accuracy = Accuracy(
        organs=("liver", "gallbladder"),
        patients={n: n for n in livers},
        parts=(),
        cpu_minutes=1.0,
        seed=0,
        trials=trials,
    )
    one, other = accuracy_rows(accuracy)
    assert one.all_organs.dice.high > other.all_organs.dice.low  # the intervals overlap
    assert other.difference is not None
    assert other.difference.all_organs.low > 0
    assert other.difference.all_organs.mean == pytest.approx(other.all_organs.dice.mean - one.all_organs.dice.mean)


def test_the_table_in_markdown() -> None:
    accuracy = hand_made()
    lines = accuracy_lines(accuracy, accuracy_rows(accuracy))
    head, _, a, b = lines[:4]
    assert "| gallbladder | liver | mean Dice of 2 [95 %] | mean Dice of 2 [95 %] | HD95 mm, mean of 2 [95 %]" in head
    assert a.startswith("| A | 2 | 2.00 (0.50) | 320 | 4.00 | 3.0 | 0.250 | 0.917 | 0.583 [0.562, 1.000] |")
    assert a.endswith("| 1 | 0 |")
    assert b.startswith("| B | 1 | 1.00 (-) | - | - | 1.0 | 1.000 | 0.750 |")
    assert b.endswith("| 0 | 1 |")
    assert any(line.startswith("| gallbladder | 0.250 [0.250, 0.250] | 2.0 [2.0, 2.0], 1 infinite |") for line in lines)
    assert lines[-3].startswith("| less A | patients |")
    assert lines[-1] == "| B | 1 | +0.125 [+0.125, +0.125] | +0.125 [+0.125, +0.125] |"
    document = json.loads(json.dumps(accuracy_document(accuracy, accuracy_rows(accuracy)), allow_nan=False))
    assert document["rows"][0]["organs"]["liver"]["dice"] == {"mean": pytest.approx(2.75 / 3), "low": 0.875, "high": 1}
    assert document["trials"][0]["report"]["cases"][1]["scores"][1]["hd95_mm"] == "inf"


def test_a_report_is_read_as_it_was_written() -> None:
    report = replace(hand_made().trials[0].report, failures=(CaseFailure("x", "damaged"),))
    empty = Report((case("q", (0, 0), (0, 1)),), (), 1.0)
    for written in (report, empty):
        assert repr(read_report_document(json.loads(json.dumps(report_document(written))))) == repr(written)
