"""A report's counts and means by hand, and its files."""

import csv
import json
import math

import pytest

from meddelinea.evaluation.compare import evaluate_paths
from meddelinea.evaluation.summary import report_document, summarise, write_report_csv, write_report_json
from support.label_volumes import by_organ, mask, save


def test_the_summary_by_hand(folders):
    # liver perfect twice; spleen perfect once, missed once.
    summary = summarise(evaluate_paths(*folders))
    assert (summary.cases_measured, summary.cases_failed) == (2, 3)
    liver, spleen = by_organ(summary.organs)["liver"], by_organ(summary.organs)["spleen"]
    assert (liver.cases, liver.dice, liver.nsd, liver.hd95_mm, liver.infinite_distances) == (2, 1, 1, 0, 0)
    assert (spleen.cases, spleen.dice, spleen.nsd, spleen.missed) == (2, 0.5, 0.5, 1)
    assert (spleen.hd95_mm, spleen.infinite_distances) == (0, 1)
    assert summary.mean_over_organs.dice == summary.mean_over_paper_organs.dice == 0.75
    assert summary.mean_over_organs.infinite_distances == 1
    assert summary.mean_over_organs.absent == ()
    assert summary.mean_over_paper_organs.organs == ("liver", "spleen")
    assert len(summary.mean_over_paper_organs.absent) == 6
    assert summary.only_in_reference == {"pancreas": 2}
    assert summary.only_in_prediction == {}


def test_means_leave_out_both_empty_and_weigh_organs_alike(tmp_path):
    ids = {"liver": 1, "spleen": 2, "left lung": 3}
    save(mask((1, 5), None, (6, 9)), tmp_path / "p" / "a.nii.gz", ids)
    save(mask((1, 5), None, None), tmp_path / "r" / "a.nii.gz", ids)
    save(mask((1, 5), None, None), tmp_path / "p" / "b.nii.gz", ids)
    save(mask((3, 7), None, None), tmp_path / "r" / "b.nii.gz", ids)
    summary = summarise(evaluate_paths(tmp_path / "p", tmp_path / "r"))
    organs = by_organ(summary.organs)
    shifted_dice = 2 * 2**3 / (2 * 4**3)
    assert organs["liver"].dice == pytest.approx((1 + shifted_dice) / 2)
    assert (organs["left lung"].both_empty, organs["left lung"].false_positive, organs["left lung"].dice) == (1, 1, 0)
    assert math.isnan(organs["left lung"].hd95_mm)
    assert organs["spleen"].both_empty == 2
    assert math.isnan(organs["spleen"].dice)
    assert summary.mean_over_organs.dice == pytest.approx(organs["liver"].dice / 2)
    assert summary.mean_over_organs.absent == ("spleen",)
    assert summary.mean_over_organs.hd95_mm == organs["liver"].hd95_mm
    assert summary.mean_over_organs.infinite_distances == 1
    assert summary.mean_over_paper_organs.dice == organs["liver"].dice


def test_json_and_csv_hold_every_case_and_say_inf(folders, tmp_path):
    report = evaluate_paths(*folders)
    write_report_json(report, tmp_path / "report.json")
    document = json.loads((tmp_path / "report.json").read_text())
    assert document == report_document(report)
    assert document["schema_version"] == 1
    assert len(document["failures"]) == document["summary"]["cases_failed"] == 3
    missed = document["cases"][1]["scores"][1]
    assert (missed["status"], missed["dice"], missed["hd95_mm"]) == ("missed", 0, "inf")
    assert document["summary"]["only_in_reference"] == {"pancreas": 2}

    write_report_csv(report, tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["organ"]) for row in rows[:4]] == [
        (case, organ) for case in ("img0001", "img0002") for organ in ("liver", "spleen")
    ]
    assert float(rows[3]["hd95_mm"]) == math.inf
    assert [row["status"] for row in rows[4:]] == ["failed"] * 3
    assert all(row["error"] for row in rows[4:])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "predictions",
        "references",
        "report.csv",
        "report.json",
    ]


def test_both_empty_is_null_and_an_empty_cell(tmp_path):
    save(mask(None), tmp_path / "p.nii.gz", {"liver": 1})
    save(mask(None), tmp_path / "r.nii.gz", {"liver": 1})
    report = evaluate_paths(tmp_path / "p.nii.gz", tmp_path / "r.nii.gz")
    score = report_document(report)["cases"][0]["scores"][0]
    assert (score["status"], score["dice"], score["hd95_mm"]) == ("both_empty", None, None)
    write_report_csv(report, tmp_path / "report.csv")
    with (tmp_path / "report.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["dice"] == ""
