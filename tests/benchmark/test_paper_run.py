"""The paper's comparisons on small scans: settings build on each other, are kept, and what is missing is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from meddelinea.benchmark import speed
from meddelinea.benchmark.bench_file import read_bench_file
from meddelinea.benchmark.paper_file import read_paper_bench
from meddelinea.benchmark.paper_run import last_run, model_of, trial_folder, trial_of
from meddelinea.cli.main import main
from meddelinea.errors import UsageError
from meddelinea.evaluation.compare import evaluate_paths
from meddelinea.io.volumes import write_volume
from meddelinea.volume import Volume
from support.benchmarks import read

METHODS = {"UNet": ["unet.yaml"], "MedDelinea": ["codec.yaml", "base.yaml", "control.yaml"], "nnFormer": ["none.yaml"]}
SETTINGS: dict[str, Any] = {
    "CT": {"kind": "pretrained", "dataset": "ct", "train": ["a", "b"], "test": ["d", "e"]},
    "MR zero-shot": {"kind": "zero-shot", "dataset": "mr", "after": "CT", "test": ["m2"]},
    "MR fine-tuned": {
        "kind": "fine-tuned",
        "dataset": "mr",
        "after": "CT",
        "split": {"train": 0.6},
        "steps": 3,
        "changes": {"optimiser": {"schedule": "linear"}},
        "methods": ["UNet"],
    },
    "one step": {
        "kind": "ablation",
        "dataset": "ct",
        "after": "CT",
        "test": ["d"],
        "scheduler": "ddim",
        "methods": ["MedDelinea"],
    },
}


@pytest.fixture(scope="module")
def paper_file(bench_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT and MR of another anatomy, two methods that there are and one whose run file is absent."""
    root, bench = bench_file.parent, read_bench_file(bench_file)
    source = tmp_path_factory.mktemp("mr")
    rng = np.random.default_rng(1)
    for name in ("m1", "m2", "m3"):
        mask = np.zeros((48, 48, 6), np.uint8)
        mask[10:20, 12:24, 1:5], mask[28:38, 20:34, 1:5] = 1, 2
        affine = np.diag([8.0, 8.0, 5.0, 1.0])
        for folder, array in (("labels", mask), ("images", 300.0 * mask + rng.uniform(0, 90, mask.shape))):
            (source / folder).mkdir(exist_ok=True)
            kind = np.uint8 if folder == "labels" else np.float32
            write_volume(Volume(array.astype(kind), affine), source / folder / f"{name}.nii.gz")
    (source / "labels.json").write_text(json.dumps({"modality": "MR", "labels": {"liver": 1, "spleen": 2}}))
    mr = {"format": "pairs", "source": str(source), "store": str(source / "store"), "size": 64, "spacing_mm": 6.0}
    ct = {"format": "pairs", "source": str(bench.source), "store": str(bench.store)}
    content = {"datasets": {"ct": ct, "mr": mr}, "methods": METHODS, "settings": SETTINGS}
    (root / "paper.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return root / "paper.yaml"


def meddelinea(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def done(paper_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the file has, by one command; a method's missing run file makes it end with a code of its own."""
    output = tmp_path_factory.mktemp("done") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "SECONDS", 0.0)
        assert meddelinea("benchmark", "paper", paper_file, output, "-q") == 4
    return output


def test_settings_build_on_each_other(paper_file: Path, done: Path) -> None:
    bench = read_paper_bench(paper_file)
    trained, tuned = (read(last_run(bench, done, title, "UNet") / "run.json") for title in ("CT", "MR fine-tuned"))
    assert trained["data"]["train"] == ["a", "b"]
    assert tuned["model"]["pipeline"] == str(done / "ct" / "unet" / "1-unet" / "pipeline")
    assert (tuned["steps"], tuned["optimiser"]["schedule"], trained["optimiser"]["schedule"]) == (3, "linear", "cosine")
    assert len((done / "mr-fine-tuned" / "unet" / "1-unet" / "metrics.jsonl").read_text().splitlines()) == 3
    roles = [case["role"] for case in read(done / "mr-fine-tuned" / "setting.json")["cases"].values()]
    assert sorted(roles) == ["test", "train", "train"]
    chained = last_run(bench, done, "CT", "MedDelinea")
    assert (chained.name, chained.is_dir()) == ("3-control", True)


def test_a_zero_shot_setting_tests_the_models_that_it_follows(paper_file: Path, done: Path) -> None:
    bench = read_paper_bench(paper_file)
    for title, name in (("MR zero-shot", "UNet"), ("one step", "MedDelinea")):
        assert model_of(bench, done, title, name) == model_of(bench, done, "CT", name)
        trial = trial_of(done, title, name)
        assert trial is not None
        assert (trial.stages, trial.trained_parameters) == ((), None)
        assert not list(trial_folder(done, title, name).glob("1-*"))


def test_masks_are_those_that_were_scored(done: Path, paper_file: Path) -> None:
    bench = read_paper_bench(paper_file)
    source, trial = bench.datasets["ct"].source, trial_of(done, "CT", "UNet")
    assert trial is not None
    for case in trial.report.cases:
        mask = trial_folder(done, "CT", "UNet") / "masks" / f"{case.case}.nii.gz"
        reference = source / "labels" / f"{case.case}.nii.gz"
        numbering = str(source / "labels.json")
        (again,) = evaluate_paths(mask, reference, reference_numbering=numbering).cases
        assert repr(again.scores) == repr(case.scores)


def test_the_tables_of_a_run(done: Path) -> None:
    tables = {number: read(done / "tables" / f"table-{number}.json") for number in range(1, 10)}
    for number in (1, 2, 4, 7, 8, 9):
        assert any("nnFormer: there is no run file" in line for line in tables[number]["missing"])
    assert tables[3]["missing"] == ["no few-shot setting in the file"]
    assert [row["name"] for row in tables[1]["sections"][0]["rows"] if row["cells"]] == ["UNet", "MedDelinea"]
    assert [section["title"] for section in tables[2]["sections"]] == ["MR zero-shot", "MR fine-tuned"]
    assert [section["title"] for section in tables[8]["sections"]] == ["MR: MR zero-shot", "CT: CT"]
    unet, control, absent = tables[4]["sections"][0]["rows"]
    assert control["cells"]["parameters"] > unet["cells"]["parameters"] > 0
    assert (unet["cells"]["steps"], control["cells"]["steps"], absent["cells"]) == (None, 1, {})
    for cells in (unet["cells"], control["cells"]):
        assert min(cells["seconds"], cells["batch_seconds"], cells["volume_seconds"]) > 0
    assert {row["name"] for row in tables[5]["sections"][0]["rows"]} == {"default", "one step"}


def test_what_is_done_is_kept(
    paper_file: Path, done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("accuracy.train_chain", "accuracy.run_test", "paper.measure_speeds"):
        monkeypatch.setattr(f"meddelinea.benchmark.{name}", None)
    before = {path.name: path.read_bytes() for path in (done / "tables").iterdir()}
    assert meddelinea("benchmark", "paper", paper_file, done, "--methods", "UNet,MedDelinea", "-q") == 0
    assert {path.name: path.read_bytes() for path in (done / "tables").iterdir()} == before
    monkeypatch.setattr("meddelinea.benchmark.paper.train_and_test", None)
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    words = ("benchmark", "paper", paper_file, done, "--no-train", "--beside-paper", "-q")
    for number in range(1, 10):
        assert meddelinea(*words, "--table", number) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"Table {number}: ")
        assert max(map(len, shown.splitlines())) <= 80
        assert ("DDIM, paper" if number == 5 else "MedDelinea, paper") in shown


def test_the_figures_of_a_run(paper_file: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("benchmark", "paper", paper_file, done, "--no-train", "--format", "svg", "-q")
    said = {}
    for number in (1, 4, 7, 8):
        assert meddelinea(*words, "--figure", number) == 0
        said[number] = capsys.readouterr().out.splitlines()
        assert said[number][-1] == str(done / "figures" / f"figure-{number}.svg")
    assert "CT, nnFormer: no run here that measured it" in said[1]
    assert "MR zero-shot, nnFormer: no mask of m2" in said[4]
    assert "CT, UNet: no diffusion transformer" in said[7]
    assert meddelinea(*words, "--figure", 3) == 3  # its fine-tuned and zero-shot settings are of MR
    assert "nothing to draw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("choice", "code", "words"),
    [
        (("--figure", 6, "--organ", "rectum"), 3, "rectum: expected one of"),
        (("--figure", 6, "--case", "d", "--slice", 99), 3, "slice 99; expected 0 to"),
        (("--figure", 7, "--point", "9"), 2, "expected a column and a row"),
        (("--figure", 2, "--format", "tiff"), 2, "expected some of png, svg, pdf (--format)"),
        (("--figure", 1, "--table", 1), 2, "a table or a figure, not both"),
        (("--errors",), 2, "name its number"),
    ],
)
def test_what_a_figure_cannot_show_is_refused(
    paper_file: Path, done: Path, capsys: pytest.CaptureFixture[str], choice: tuple[Any, ...], code: int, words: str
) -> None:
    assert meddelinea("benchmark", "paper", paper_file, done, "--no-train", "-q", *choice) == code
    assert words in capsys.readouterr().err


def test_a_changed_setting_is_no_result_of_the_old_one(paper_file: Path, done: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(paper_file.read_text())
    content["settings"]["CT"]["test"] = ["c"]
    changed = paper_file.with_name("changed.yaml")
    changed.write_text(yaml.safe_dump(content, sort_keys=False))
    assert meddelinea("benchmark", "paper", changed, done, "--table", 1, "-q") == 2


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"kind": "zero-shot", "after": None}, "a zero-shot setting starts from another"),
        ({"after": "later"}, "expected a setting above it"),
        ({"dataset": "unknown"}, "not described: unknown"),
        ({"methods": ["V-Net"]}, "not described: V-Net"),
        ({"train": []}, "nothing is trained"),
        ({"test": []}, "no test case"),
        ({"test": ["a"]}, "cases a are named twice"),
        ({"split": {"train": 0.5}}, "either names of cases or a split"),
        ({"cpu_minutes": 1, "steps": 2}, "two budgets"),
        ({"epochs": 3}, "epochs"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(
    paper_file: Path, tmp_path: Path, setting: dict[str, Any], words: str
) -> None:
    content = yaml.safe_load(paper_file.read_text())
    content["settings"]["CT"] |= setting
    (tmp_path / "paper.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UsageError, match=words):
        read_paper_bench(tmp_path / "paper.yaml")


def test_a_dataset_that_is_not_at_hand_stops_no_other(paper_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(paper_file.read_text())
    content["datasets"]["mr"] |= {"source": str(tmp_path / "absent"), "store": str(tmp_path / "none")}
    del content["settings"]["one step"]
    moved = paper_file.with_name("moved.yaml")
    moved.write_text(yaml.safe_dump(content, sort_keys=False))
    words = ("benchmark", "paper", moved, tmp_path / "out", "--methods", "UNet", "-q")
    assert meddelinea(*words, "--table", 2) == 4
    missing = read(tmp_path / "out" / "tables" / "table-2.json")["missing"]
    assert any("MR zero-shot, UNet" in line and "no such folder" in line for line in missing)
    assert trial_of(tmp_path / "out", "CT", "UNet") is not None
