"""The paper's tables of results that were written by hand: each figure, what is missing, and what is the paper's."""

import csv
import json
import math
from pathlib import Path

import pytest

from meddelinea.benchmark.paper import make_tables
from meddelinea.benchmark.paper_file import PaperBench, read_paper_bench
from meddelinea.benchmark.paper_rows import Row, Section
from meddelinea.benchmark.paper_tables import TABLES, Table
from meddelinea.benchmark.paper_written import table_lines
from meddelinea.benchmark.published import published
from meddelinea.benchmark.speed import Speed, Speeds, speeds_document
from meddelinea.errors import UsageError
from meddelinea.files import write_json
from meddelinea.labels import PAPER_ORGANS
from meddelinea.methods.known import TABLE_4
from support.paper_results import BENCH, organ, write_bench, write_cases, write_trial


@pytest.fixture
def bench(tmp_path: Path) -> PaperBench:
    return read_paper_bench(write_bench(tmp_path))


def table(bench: PaperBench, output: Path, number: int, *, beside_paper: bool = False) -> Table:
    (made,), reasons = make_tables(bench, output, (number,), train=False, beside_paper=beside_paper)
    assert reasons == {}
    return made


def row(section: Section, name: str, *, paper: bool = False) -> Row:
    (found,) = [each for each in section.rows if (each.name, each.paper) == (name, paper)]
    return found


def test_means_are_over_cases_then_organs_and_infinite_distances_are_counted(bench: PaperBench, tmp_path: Path) -> None:
    cases = {
        "b": [organ("liver", 0.9, 8.0), organ("spleen", 0.0, math.inf)],
        "c": [organ("liver", 0.7, 4.0), organ("spleen", 0.4, 2.0)],
    }
    write_trial(tmp_path, "ATLAS-8k", "UNet", cases)
    write_trial(tmp_path, "ATLAS-8k", "DiT", {"b": [organ("liver", 0.0, math.inf)]}, failed=("c",))
    made = table(bench, tmp_path, 1)
    (section,) = made.sections
    # Liver 0.8, spleen 0.2; HD95 6 and 2, the infinite one counted.
    assert row(section, "UNet").cells == pytest.approx(
        {
            **{"rank": 1, "dice": 50.0, "low": 45.0, "high": 55.0},  # of two patients one alone has 45, the other 55
            **{"hd95": 4.0, "hd95_pooled": 2.0, "assd": 1.0, "infinite": 1, "cases": 2},
        }
    )
    missed = row(section, "DiT").cells
    assert (missed["dice"], missed["infinite"], missed["cases"], missed["rank"]) == (0.0, 1, 1, 2)
    assert math.isnan(missed["hd95"] or 0.0)
    assert made.failed == ("ATLAS-8k, DiT, c: damaged",)
    assert made.missing == ("ATLAS-8k, MedDelinea: not trained and tested yet",)
    assert row(section, "MedDelinea").cells == {}
    lines = table_lines(made)
    assert "| UNet | 1 | 50.00 | 45.0 | 55.0 | 4.00 | 2.00 | 1.00 | 1 | 2 |" in lines
    assert "| DiT | 2 | 0.00 | 0.0 | 0.0 | - | - | - | 1 | 1 |" in lines
    assert "| MedDelinea |  |  |  |  |  |  |  |  |  |" in lines
    assert lines[-2:] == [f"- missing: {made.missing[0]}", f"- failed: {made.failed[0]}"]


def test_fine_tuned_and_zero_shot_and_few_shot_have_sections_of_their_own(bench: PaperBench, tmp_path: Path) -> None:
    write_trial(tmp_path, "BTCV fine-tuned", "DiT", {"d": [organ("liver", 0.8)]})
    write_trial(tmp_path, "AMOS zero-shot", "DiT", {"ct": [organ("liver", 0.6)]})
    write_trial(tmp_path, "BTCV 10 %", "DiT", {"d": [organ("liver", 0.7)]})
    two, three = table(bench, tmp_path, 2), table(bench, tmp_path, 3)
    assert [section.title for section in two.sections] == ["BTCV fine-tuned", "AMOS zero-shot"]
    assert [row(section, "DiT").cells["dice"] for section in two.sections] == pytest.approx([80.0, 60.0])
    (section,) = three.sections
    assert [each.name for each in section.rows] == ["DiT"]
    assert row(section, "DiT").cells["dice"] == pytest.approx(70.0)
    assert len(two.missing) == 4
    assert three.missing == ()


@pytest.mark.parametrize(("number", "setting"), [(6, "BTCV fine-tuned"), (7, "AMOS zero-shot"), (9, "ATLAS-8k")])
def test_dice_by_organ(bench: PaperBench, tmp_path: Path, number: int, setting: str) -> None:
    write_trial(
        tmp_path, setting, "UNet", {"x": [organ("liver", 0.5), organ("duodenum", 0.1)], "y": [organ("liver", 1)]}
    )
    made = table(bench, tmp_path, number)
    assert tuple(column.key for column in made.columns) == PAPER_ORGANS
    assert [section.title for section in made.sections] == [setting]
    assert row(made.sections[0], "UNet").cells == {"liver": 75.0}
    assert "| UNet |  |  |  |  | 75.00 |  |  |  |" in table_lines(made)


def test_parameters_and_seconds(bench: PaperBench, tmp_path: Path) -> None:
    empty = table(bench, tmp_path, 4)
    assert all(each.cells == {} for each in empty.sections[0].rows)
    speed = Speed(
        parameters=2_500_000, trained=None, steps=20, side=64, image_seconds=0.5, batch_seconds=0.25, volume_seconds=9.0
    )
    speeds = Speeds("one core of a test", "pairs b", {"DiT": speed}, {"UNet": "no such package"})
    write_json(speeds_document(speeds), tmp_path / "speed.json")
    made = table(bench, tmp_path, 4, beside_paper=True)
    (section,) = made.sections
    assert row(section, "DiT").cells == {
        **{"parameters": 2.5, "trained": None, "steps": 20},
        **{"seconds": 0.5, "batch_seconds": 0.25, "volume_seconds": 9.0},
    }
    assert row(section, "DiT", paper=True).cells == {"parameters": 187.0, "seconds": 2.72}
    assert "one core of a test" in made.notes[0]
    assert "UNet: no such package" in made.missing
    assert "| DiT | 2.50 |  | 20 | 0.5000 | 0.2500 | 9.00 |" in table_lines(made)


def test_ablations_stand_below_their_default(bench: PaperBench, tmp_path: Path) -> None:
    for setting, dice in (("ATLAS-8k", 0.9), ("K = 1", 0.8), ("DDIM", 0.85)):
        write_trial(tmp_path, setting, "MedDelinea", {"b": [organ("liver", dice, 8.0)]})
    (section,) = table(bench, tmp_path, 5, beside_paper=True).sections
    ours = [(each.name, each.cells["dice"], each.cells["assd"]) for each in section.rows if not each.paper]
    assert ours == [("default", 90.0, 2.0), ("K = 1", 80.0, 2.0), ("DDIM", 85.0, 2.0)]
    theirs = {each.name: each.cells["dice"] for each in section.rows if each.paper}
    assert (theirs["default"], theirs["K = 1"], theirs["DDIM"], len(theirs)) == (87.98, 86.57, 87.51, 10)


def test_mri_stands_beside_ct_by_the_modality_of_each_case(bench: PaperBench, tmp_path: Path) -> None:
    write_cases(bench, tmp_path, "AMOS zero-shot", {"ct": "CT", "mr": "MR"})
    write_trial(tmp_path, "AMOS zero-shot", "UNet", {"ct": [organ("liver", 0.9)], "mr": [organ("liver", 0.3)]})
    made = table(bench, tmp_path, 8, beside_paper=True)
    assert [section.title for section in made.sections] == ["MR: AMOS zero-shot", "CT: AMOS zero-shot"]
    assert [row(section, "UNet").cells["dice"] for section in made.sections] == pytest.approx([30.0, 90.0])
    assert [row(section, "UNet", paper=True).cells["dice"] for section in made.sections] == [73.37, 74.17]


def test_where_no_ct_is_zero_shot_the_pretrained_models_own_test_stands_in(bench: PaperBench, tmp_path: Path) -> None:
    write_cases(bench, tmp_path, "AMOS zero-shot", {"mr": "MR"})
    write_cases(bench, tmp_path, "ATLAS-8k", {"b": "CT"})
    write_trial(tmp_path, "ATLAS-8k", "UNet", {"b": [organ("liver", 0.9)]})
    sections = table(bench, tmp_path, 8).sections
    assert [section.title for section in sections] == ["MR: AMOS zero-shot", "CT: ATLAS-8k"]


def test_the_papers_figures_enter_no_rank_and_no_mean(bench: PaperBench, tmp_path: Path) -> None:
    """With and without them the measured rows are the same, though they are far below the paper's."""
    for name, dice in (("UNet", 0.2), ("DiT", 0.1)):
        write_trial(tmp_path, "ATLAS-8k", name, {"b": [organ("liver", dice)]})
    (alone,), (beside,) = (table(bench, tmp_path, 1, beside_paper=both).sections for both in (False, True))
    assert [each for each in beside.rows if not each.paper] == list(alone.rows)
    assert [each.cells["rank"] for each in alone.rows if each.cells] == [1, 2]
    assert all("rank" not in each.cells for each in beside.rows if each.paper)
    names = [(each.name, each.paper) for each in beside.rows]
    assert names[:2] == [("UNet", False), ("UNet", True)]
    assert len(names) == 3 + 8
    assert "| *UNet, paper* |  | 75.32 |  |  | 33.42 |  | 14.32 |  |  |" in table_lines(
        table(bench, tmp_path, 1, beside_paper=True)
    )


def test_the_papers_settings_that_were_not_measured_are_sections_of_their_own(
    bench: PaperBench, tmp_path: Path
) -> None:
    sections = table(bench, tmp_path, 2, beside_paper=True).sections
    assert len(sections) == 8  # four datasets, fine-tuned and zero-shot, of which two are ours as well
    assert [section.title for section in sections[:3]] == ["BTCV fine-tuned", "AMOS zero-shot", "AMOS, fine-tuned"]
    assert all(each.paper for section in sections[2:] for each in section.rows)


def test_what_the_paper_published() -> None:
    """Counts of the paper's tables, and the figures that stand in two of its places."""
    figures = {n: sum(len(row) for part in published(n) for row in part.rows.values()) for n in TABLES}
    assert figures == {1: 24, 2: 128, 3: 36, 4: 16, 5: 30, 6: 128, 7: 128, 8: 48, 9: 64}
    assert {name.lower(): row[0] for name, row in published(4)[0].rows.items()} == TABLE_4
    assert published(5)[0].rows["default"] == published(1)[0].rows["MedDelinea"]
    for number, about in TABLES.items():
        known = {column.key for column in about.columns}
        assert all(set(part.columns) <= known and part.kind in about.kinds for part in published(number))


def test_the_files_of_a_table(bench: PaperBench, tmp_path: Path) -> None:
    write_trial(tmp_path, "ATLAS-8k", "UNet", {"b": [organ("liver", 0.5, math.inf)]})
    made = table(bench, tmp_path, 1, beside_paper=True)
    folder = tmp_path / "tables"
    assert (folder / "table-1.md").read_text() == "\n".join(table_lines(made)) + "\n"
    with (folder / "table-1.csv").open() as stream:
        records = list(csv.DictReader(stream))
    first, second, third = records[:3]
    assert (first["name"], first["source"], first["dice"], first["hd95"], first["infinite"]) == (
        *("UNet", "measured"),
        *("50.0", "", "1"),
    )
    assert (second["name"], second["source"], second["dice"], second["cases"]) == ("UNet", "paper", "75.32", "")
    assert (third["name"], third["source"], third["dice"]) == ("DiT", "measured", "")
    document = json.loads((folder / "table-1.json").read_text())
    assert document["sections"][0]["rows"][0]["cells"]["hd95"] is None
    assert document["missing"] == list(made.missing)


def test_results_of_another_file_are_not_shown(bench: PaperBench, tmp_path: Path) -> None:
    write_cases(bench, tmp_path, "ATLAS-8k", {"b": "CT"})
    settings = BENCH["settings"] | {"ATLAS-8k": BENCH["settings"]["ATLAS-8k"] | {"test": ["z"]}}
    other = read_paper_bench(write_bench(tmp_path, settings=settings))
    with pytest.raises(UsageError, match="a benchmark with other setting"):
        make_tables(other, tmp_path, (1,), train=False)
