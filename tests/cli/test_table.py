"""The text that a person reads of a segmented scan: all of it in 20 lines of 80 columns, each mark explained once."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meddelinea.cli.table import print_result
from meddelinea.labels import ORGANS
from meddelinea.results.review import OrganReview
from meddelinea.results.statistics import NOT_FOUND, OrganStatistics

NAMES = tuple(ORGANS)[:13]
FILES = {
    kind: Path("meddelinea_demo") / name
    for kind, name in (
        ("mask", "mask.nii.gz"),
        ("labels", "mask.json"),
        ("statistics", "statistics.json"),
        ("preview", "preview.png"),
        ("report", "report.html"),
    )
}


def organ(ml: float = 50.0, mean: float = 40.0, edges: tuple[str, ...] = ()) -> OrganStatistics:
    return OrganStatistics(
        found=True,
        voxels=100,
        volume_ml=ml,
        mean_intensity=mean,
        sd_intensity=5.0,
        extent_mm=(1.0, 1.0, 1.0),
        centroid_mm=(0.0, 0.0, 0.0),
        touches_edge=edges,
    )


def review(interval: tuple[float, float] | None = (40.0, 60.0), doubtful: bool = False) -> OrganReview:
    return OrganReview(interval, ("low_expected_dice",) if doubtful else ())


def result(statistics: dict[str, OrganStatistics], reviews: dict[str, OrganReview], modality: str = "CT") -> Any:
    made = SimpleNamespace(calibration=SimpleNamespace(level=0.9), seconds=13.42, model="small", steps=1)
    scan = SimpleNamespace(modality=modality)
    return SimpleNamespace(segmentation=made, statistics=statistics, reviews=reviews, scan=scan)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The lines that are printed of a result on a screen of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(made: Any, files: dict[str, Path] = FILES) -> list[str]:
        print_result(made, files)
        return capsys.readouterr().out.splitlines()

    return call


def test_thirteen_organs_with_all_marks_take_20_lines_of_80_columns(printed: Any) -> None:
    organs = {name: organ(2634.2, -123.4, ("feet", "head")) for name in NAMES}
    lines = printed(result(organs, {name: review((2043.7, 13395.2), doubtful=True) for name in NAMES}))
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    assert sum("reviewed" in line for line in lines) == 1
    assert sum("edge" in line for line in lines) == 1


def test_a_row_is_the_organ_its_measurements_and_its_marks(printed: Any) -> None:
    organs = {"liver": organ(2634.25, 45.4, ("feet",)), "spleen": organ(355.5, -7.0)}
    lines = printed(result(organs, {"liver": review((2043.7, 3395.2)), "spleen": review((98.0, 475.1), doubtful=True)}))
    heading, *rows = [re.split(r"\s{2,}", line.strip()) for line in lines[:3]]
    assert heading == ["organ", "ml", "90% interval", "HU", "?", "cut"]
    assert rows[0] == ["liver", "2,634.2", "2,043.7 - 3,395.2", "45", "F"]
    assert rows[1] == ["spleen", "355.5", ["98.0 -", "475.1"][0], "475.1", "-7", "!"]
    assert lines[3:] == [
        "! to be reviewed: the model is unsure of this mask (1 of 2)",
        "F cut by the scan's edge (feet): the volume is a lower bound",
        "not found: none",
        "meddelinea_demo: mask.nii.gz mask.json statistics.json preview.png report.html",
        "13.4 s, model small, 1 step",
    ]


def test_numbers_end_in_one_column(printed: Any) -> None:
    organs = {"liver": organ(12634.2), "gallbladder": organ(5.6)}
    lines = printed(result(organs, {"liver": review((9043.7, 13395.2)), "gallbladder": review((2.2, 13.9))}))
    for number, other in (("12,634.2", "5.6"), ("9,043.7", "2.2"), ("13,395.2", "13.9")):
        assert lines[1].index(number) + len(number) == lines[2].index(other) + len(other)


def test_marks_that_no_organ_has_are_neither_shown_nor_explained(printed: Any) -> None:
    made = result({"liver": organ(), "spleen": NOT_FOUND}, {"liver": review(None)}, modality="MR")
    made.segmentation.calibration = None
    made.segmentation.steps = None
    lines = printed(made, {"mask": Path("m.nii"), "labels": Path("m.json"), "preview": Path("/pictures/a.png")})
    assert lines[0].split() == ["organ", "ml", "mean"]
    assert lines[2:] == [
        "not found: spleen",
        "written: m.nii m.json",
        f"{Path('/pictures')}: a.png",
        "13.4 s, model small",
    ]


def test_an_empty_mask_has_no_table(printed: Any) -> None:
    lines = printed(result({"liver": NOT_FOUND}, {"liver": replace(review(None), reasons=("not_found",))}))
    assert lines[0] == "not found: liver"


def test_an_organ_is_named_as_its_labels_name_it(printed: Any) -> None:
    lines = printed(result({"[red]tumour": organ()}, {"[red]tumour": review()}))
    assert lines[1].startswith("[red]tumour ")
