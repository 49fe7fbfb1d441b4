"""From a folder of scans to a model, by tiny networks in seconds: what is written, and that nothing is done twice."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from meddelinea.benchmark.bench_file import read_bench_file
from meddelinea.checks.scan import examine, require_accepted
from meddelinea.data.datasets import find_cases
from meddelinea.data.prepare import prepare_store
from meddelinea.errors import InputRefusedError
from meddelinea.fitting.base import find_base
from meddelinea.fitting.outcome import Fitted, write_outcome
from meddelinea.fitting.plan import Base, Means, make_plan
from meddelinea.fitting.plan_folder import PlanFile, write_plan
from meddelinea.fitting.survey import Survey, survey
from meddelinea.fitting.trainings import choose_start, train_all
from meddelinea.io.volumes import read_scan
from meddelinea.pool.local import in_this_process
from meddelinea.segmentation.model import load_model, read_model_files
from meddelinea.segmentation.predict import segment
from meddelinea.training.run_file import load_config
from support.surveys import write_crops
from support.tiny_models import SIZES

MEANS = Means(hours=0.1, clock="processor", cores=1, memory_gb=8.0)
#: CPU minutes of a training.
MINUTES = 0.03


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    """Six small MRs of two parts, and what they are like."""
    return survey("pairs", write_crops(tmp_path_factory.mktemp("crops") / "scans"))


def planned(seen: Survey, work: Path, base: Base | None = None) -> PlanFile:
    """The plan of a dataset, made tiny as a person would: by editing its files."""
    plan = make_plan(seen, MEANS, folds=2, base=base)
    folder = write_plan(plan, seen, work, means=MEANS, asked={"folds": 2}, left_out={})
    for name in ("codec", "base", "fine"):
        edit(folder / f"{name}.yaml", model={"sizes": SIZES})
    edit(folder / "folds.yaml", cpu_minutes=MINUTES)
    return PlanFile.read(folder)


def edit(path: Path, **changes: Any) -> None:
    content = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def fitted(crops: Survey, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Path]:
    """A model of the crops, and the folder of its work."""
    root = tmp_path_factory.mktemp("fitted")
    work, plan = root / "model-fit", planned(crops, root / "model-fit")
    prepare_store(
        plan.layout, plan.source, work / "store", only=plan.cases, organs=plan.organs, preprocessing=plan.grid
    )
    start, trial = choose_start(plan, work, engine=in_this_process, progress=lambda *step: None)
    assert (start, trial) == ("scratch", {})
    train_all(plan, work, start, engine=in_this_process, progress=lambda *step: None)
    made = write_outcome(plan, work, root / "model", start=start, trial=trial, progress=lambda what, done, total: None)
    return made, work


def test_every_run_file_of_a_plan_is_one_and_names_its_data(crops: Survey, tmp_path: Path) -> None:
    base = Base(name="small", folder=tmp_path / "small", neighbours=1, neighbour_pairs=2, organs=("liver",), unfit="")
    plan = make_plan(crops, Means(hours=2.0, clock="wall", cores=2, memory_gb=24.0), folds=3, base=base)
    folder = write_plan(
        plan, crops, tmp_path, means=Means(hours=2.0, clock="wall", cores=2, memory_gb=24.0), asked={}, left_out={}
    )
    names = {path.stem for path in folder.glob("*.yaml")} - {"data", "folds"}
    assert names == {*plan.stages}
    for name in names:
        config = load_config(folder / f"{name}.yaml")
        assert config.data.train == plan.cases
        assert config.data.store == tmp_path.absolute() / "store"
    assert load_config(folder / "fine-from-small.yaml").model.pipeline == tmp_path / "small"
    bench = read_bench_file(folder / "folds.yaml")
    assert (bench.minutes, bench.cpu_minutes) == (pytest.approx(plan.minutes, abs=1e-3), None)
    assert set(bench.methods) == {"scratch", "base"}
    kept = PlanFile.read(folder)
    assert (kept.cases, kept.organs, kept.grid) == (plan.cases, plan.organs, plan.preprocessing)
    assert "front" in (folder / "README.md").read_text()


def test_the_same_data_give_the_same_files(crops: Survey, tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        folder = write_plan(make_plan(crops, MEANS, folds=2), crops, tmp_path, means=MEANS, asked={}, left_out={})
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    assert files() == files()


def test_a_setting_that_a_plan_does_not_have_is_refused(crops: Survey, tmp_path: Path) -> None:
    planned(crops, tmp_path)
    path = tmp_path / "plan" / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fold": 3}))
    with pytest.raises(InputRefusedError, match="fold"):
        PlanFile.read(tmp_path / "plan")


def test_a_fitted_model_is_whole_and_says_what_was_measured(fitted: tuple[Fitted, Path], crops: Survey) -> None:
    made, _ = fitted
    files = read_model_files(made.model)
    assert files.labels == {"front": 1, "behind": 2}
    assert files.calibration is not None
    assert sorted(files.training_cases["train"]) == sorted(case.name for case in crops.cases)
    assert made.row is not None
    assert (made.row.cases, made.row.parts, made.failures) == (6, 2, {})
    assert len(list((made.model / "worst").glob("*.png"))) == 5
    card = (made.model / "README.md").read_text()
    assert "front" in card
    assert "Cross-validation in 2 folds" in card
    assert json.loads((made.model / "fit.json").read_text())["start"] == "scratch"


def test_a_fitted_model_segments_a_scan_like_its_own(fitted: tuple[Fitted, Path], crops: Survey) -> None:
    (case, *_) = find_cases("pairs", crops.source).cases
    scan = read_scan(case.image)
    model = load_model(fitted[0].model)
    examined = examine(scan, model.files.limits)
    require_accepted(examined)
    assert segment(model, examined).mask.shape == scan.volume.shape


def test_what_is_done_is_not_done_again(fitted: tuple[Fitted, Path]) -> None:
    _, work = fitted
    logs = {path: path.stat().st_mtime_ns for path in work.rglob("metrics.jsonl")}
    assert len(logs) == 3 * 3  # two folds and all cases, of three stages each
    train_all(PlanFile.read(work / "plan"), work, "scratch", engine=in_this_process, progress=lambda *step: None)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("metrics.jsonl")} == logs


def test_a_model_that_has_seen_a_case_is_no_start(crops: Survey, fitted: tuple[Fitted, Path]) -> None:
    assert find_base("small", crops.cases).unfit == ""
    assert "6 of the 6" in find_base(fitted[0].model, crops.cases).unfit
