"""The table of a model under perturbations: means and changes by hand, a segmenter that is exact, and the command."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from meddelinea.benchmark import held_out, robustness
from meddelinea.benchmark.perturbations import PERTURBATIONS
from meddelinea.benchmark.robustness import RobustnessTable, robustness_lines, robustness_table, row_figures
from meddelinea.cli.main import main
from meddelinea.errors import UsageError
from meddelinea.evaluation.compare import CaseFailure, CaseResult, Report
from meddelinea.evaluation.metrics import OrganScore
from meddelinea.io.volumes import write_volume
from meddelinea.scan import Scan
from meddelinea.segmentation.model import Model
from meddelinea.volume import Volume
from support.tiny_models import write_model

NAMES = [name for name, _ in PERTURBATIONS]


def score(organ: str, dice: float, hd95_mm: float = 4.0, status: str = "scored") -> OrganScore:
    return OrganScore(
        organ=organ,
        status=status,
        dice=dice,
        nsd=dice,
        hd95_mm=hd95_mm,
        hd95_pooled_mm=hd95_mm,
        assd_mm=hd95_mm,
        prediction_ml=1.0,
        reference_ml=1.0,
        nsd_tolerance_mm=2.0,
    )  # type: ignore[arg-type]


def report(**cases: list[OrganScore]) -> Report:
    found = (CaseResult(name, tuple(scores)) for name, scores in cases.items())
    return Report(tuple(found), (), 2.0)


def test_the_figures_of_a_row_by_hand() -> None:
    before = report(
        a=[score("liver", 0.9), score("left kidney", 0.8), score("right kidney", 0.7), score("esophagus", 0.5)],
        b=[score("liver", 0.7), score("left kidney", 0.6), score("right kidney", 0.5), score("esophagus", 0.3)],
    )
    infinite, nan = math.inf, math.nan
    after = report(
        a=[
            score("liver", 0.8, 6.0),
            score("left kidney", nan, nan, "both_empty"),  # left the field of view
            score("right kidney", 0.0, infinite, "missed"),
            score("esophagus", 0.4, 8.0),
        ],
        b=[
            score("liver", 0.5, 8.0),
            score("left kidney", 0.0, infinite, "false_positive"),
            score("right kidney", 0.4, 2.0),
            score("esophagus", 0.2, 6.0),
        ],
    )
    figures = row_figures(after, before)
    assert figures.liver == pytest.approx(0.65)
    assert figures.kidneys == pytest.approx((0.0 + 0.2) / 2)
    assert figures.dice == pytest.approx((0.65 + 0.0 + 0.2) / 3)  # the esophagus is not among the paper's organs
    assert figures.dice_all == pytest.approx((0.65 + 0.0 + 0.2 + 0.3) / 4)
    assert figures.hd95_mm == pytest.approx((7.0 + 2.0 + 7.0) / 3)
    assert (figures.missed, figures.invented) == (1, 1)
    # The liver lost 0.1 and 0.2, the right kidney 0.7 and 0.1, the left kidney 0.6 where both rows have it.
    assert figures.change == pytest.approx(-(0.15 + 0.4 + 0.6) / 3)
    assert (figures.worst_case, figures.worst_dice) == ("b", pytest.approx(0.3))
    assert math.isnan(figures.spleen)
    assert row_figures(before, before).change == 0.0


def test_a_row_that_nothing_was_measured_in() -> None:
    failed = Report((), (CaseFailure("a", "damaged"),), 2.0)
    table = RobustnessTable(model="m", organs=("liver",), tested=("a",), seen=(), rows={"as it is": failed})
    assert robustness_lines(table)[2] == "| as it is | - | - | - | - | - | - | - | 0 | 0 | 1 | - |"
    document = robustness.robustness_document(table)
    assert json.loads(json.dumps(document, allow_nan=False))["rows"][0]["figures"]["change"] is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CTs in the layout `pairs`: a spleen, a liver and a uterus, which the model does not know, of flat grey."""
    source = tmp_path_factory.mktemp("pairs")
    affine = np.diag([6.0, 6.0, 5.0, 1.0])
    i, j, k = np.indices((60, 50, 12))
    body = ((i - 30) / 26) ** 2 + ((j - 25) / 21) ** 2 < 1
    for name, x in (("p1", 20), ("p2", 23)):
        ids = np.zeros(i.shape, np.uint8)
        ids[(i - x) ** 2 + (j - 25) ** 2 + (k - 5.5) ** 2 < 25] = 1
        ids[(i - 40) ** 2 + (j - 25) ** 2 + (k - 5.5) ** 2 < 25] = 2
        ids[(i - 30) ** 2 + (j - 34) ** 2 < 9] = 3
        hu = np.where(body, np.array([20, 80, 140, 20])[ids], -1000).astype(np.int16)
        for kind, array in (("images", hu), ("labels", ids)):
            (source / kind).mkdir(exist_ok=True)
            write_volume(Volume(array, affine), source / kind / f"{name}.nii.gz")
    labels = {"spleen": 1, "liver": 2, "uterus": 3}
    (source / "labels.json").write_text(json.dumps({"modality": "CT", "labels": labels}))
    return source


def by_brightness(model: Model, scan: Scan, sampling: object) -> SimpleNamespace:
    """An exact segmenter for the scans as they are."""
    bright = {model.files.labels["spleen"]: 80, model.files.labels["liver"]: 140}
    ids = sum(index * (abs(scan.volume.array - hu) < 8) for index, hu in bright.items())
    return SimpleNamespace(mask=Volume(np.asarray(ids, np.uint8), scan.volume.affine), seconds=0.0)


def test_an_exact_segmenter_loses_where_brightness_changes_and_nowhere_else(
    folder: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "segment", by_brightness)
    table = robustness_table(folder, "pairs", pairs)
    assert table.organs == ("spleen", "liver")
    assert (table.tested, table.seen) == (("p1", "p2"), ())
    assert list(table.rows) == NAMES
    figures = table.figures()
    for name in ("as it is", "window -25 to 150 HU", "off centre 40 mm", "no table", "upper half of the slices"):
        assert (figures[name].dice, figures[name].change) == (1.0, 0.0), name
    assert figures["unenhanced, simulated"].dice < 0.2
    assert figures["unenhanced, simulated"].change == pytest.approx(figures["unenhanced, simulated"].dice - 1.0)
    assert figures["noise 60 HU"].dice < figures["noise 15 HU"].dice < 1.0
    for report in table.rows.values():
        assert [case.only_in_reference for case in report.cases] == [("uterus",)] * 2
    assert [case.case for case in robustness_table(folder, "pairs", pairs, ("p2",)).rows[NAMES[3]].cases] == ["p2"]


def test_what_cannot_be_meant_is_refused(folder: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"p9; expected some of: p1, p2"):
        robustness_table(folder, "pairs", pairs, ("p1", "p9"))
    source = tmp_path / "other"
    for kind in ("images", "labels"):
        (source / kind).mkdir(parents=True)
        (source / kind / "p1.nii.gz").symlink_to(pairs / kind / "p1.nii.gz")
    (source / "labels.json").write_text(json.dumps({"modality": "CT", "labels": {"uterus": 1, "a": 2, "b": 3}}))
    with pytest.raises(UsageError, match="none in common"):
        robustness_table(folder, "pairs", source)


def meddelinea(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_the_command(
    folder: Path,
    pairs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = tuple(pair for pair in PERTURBATIONS if pair[0] in ("as it is", "slices 8 mm", "lower half of the slices"))
    monkeypatch.setattr(robustness, "PERTURBATIONS", few)
    source = tmp_path / "mine"
    for kind in ("images", "labels"):
        (source / kind).mkdir(parents=True)
        for name in ("p1", "p2"):
            (source / kind / f"{name}.nii.gz").symlink_to(pairs / kind / f"{name}.nii.gz")
    (source / "labels.json").write_text((pairs / "labels.json").read_text())
    words = ("benchmark", "robustness", "--format", "pairs", "--model", folder, "-q", source)
    assert meddelinea(*words, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    table = (tmp_path / "out" / "robustness.md").read_text()
    assert table in printed
    document = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert [row["perturbation"] for row in document["rows"]] == [name for name, _ in few]
    for line, row in zip(table.splitlines()[2:], document["rows"], strict=True):
        assert [case["case"] for case in row["cases"]] == ["p1", "p2"]
        dice = row["summary"]["mean_over_paper_organs"]["dice"]
        assert dice == row["figures"]["dice"]
        assert line.startswith(f"| {row['perturbation']} | {dice:.3f} |")
    assert meddelinea(*words, tmp_path / "out") == 2
    assert "exists already" in capsys.readouterr().err

    mask = source / "labels" / "p2.nii.gz"  # one that lies on another grid
    mask.unlink()
    write_volume(Volume(np.zeros((5, 5, 5), np.uint8), np.eye(4)), mask)
    assert meddelinea(*words, tmp_path / "partly") == 4
    told = capsys.readouterr()
    assert "failed: p2, 3 of 3 rows: " in told.err
    assert "1 of 2 cases" in told.err
    rows = json.loads((tmp_path / "partly" / "robustness.json").read_text())["rows"]
    assert all(row["failures"][0]["case"] == "p2" and len(row["cases"]) == 1 for row in rows)


def test_cases_of_the_models_training_are_named(
    folder: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole = robustness.load_model(folder)
    seen = Model(replace(whole.files, training_cases={"train": ["p2"], "validation": []}), whole.pipeline)
    monkeypatch.setattr(robustness, "PERTURBATIONS", PERTURBATIONS[:1])
    monkeypatch.setattr(robustness, "load_model", lambda model: seen)
    words = ("--format", "pairs", "-q", pairs, tmp_path / "out")
    assert meddelinea("benchmark", "robustness", *words) == 0
    assert "by their names: p2" in capsys.readouterr().out
