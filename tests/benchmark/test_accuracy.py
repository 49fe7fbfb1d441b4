"""The accuracy benchmark: equal processor time, no leak between its parts, and a table that says what was measured."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meddelinea.benchmark.accuracy import Accuracy, divide, measure_accuracy
from meddelinea.benchmark.accuracy_table import accuracy_document, accuracy_lines, accuracy_rows
from meddelinea.benchmark.bench_file import BenchFile, GivenMasks, TrainedModel, read_bench_file
from meddelinea.benchmark.chain import StageCost
from meddelinea.benchmark.held_out import run_test
from meddelinea.cli.main import main
from meddelinea.errors import LeakFoundError, UsageError
from meddelinea.evaluation.summary import report_document
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.results.result import segment
from meddelinea.segmentation.sampling import Sampling
from meddelinea.training import clock
from meddelinea.training.run import Run
from meddelinea.volume import Volume
from support.benchmarks import TEST, TRAIN, read, with_cases
from support.tiny_models import ORGANS, run_config, write_model
from support.training_runs import train

SECONDS_A_STEP = 10.0


@pytest.fixture(scope="module", autouse=True)
def _ten_seconds_a_step() -> Iterator[None]:
    """Clocks of the processor and of the wall that training steps move, by ten seconds each."""
    hand = {"seconds": 0.0}
    step = Run.step

    def slow_step(run: Run) -> dict[str, float]:
        hand["seconds"] += SECONDS_A_STEP
        return step(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "step", slow_step)
        faked = SimpleNamespace(monotonic=lambda: hand["seconds"], process_time=lambda: hand["seconds"])
        patch.setattr(clock, "time", faked)
        yield


@pytest.fixture(scope="module")
def done(bench_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Accuracy]:
    """Both methods, trained and tested."""
    output = tmp_path_factory.mktemp("done") / "out"
    return output, measure_accuracy(read_bench_file(bench_file), output, None)


@pytest.fixture(scope="module")
def folded(bench_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Accuracy]:
    """One method, in three folds."""
    output = tmp_path_factory.mktemp("folded") / "out"
    return output, measure_accuracy(read_bench_file(bench_file), output, 3, ("Med Delinea",))


def meddelinea(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_each_method_has_the_same_processor_time_and_stages_build_on_each_other(
    bench: BenchFile, done: tuple[Path, Accuracy]
) -> None:
    output, accuracy = done
    chained, unet = accuracy.trials
    assert [(stage.stage, stage.steps, stage.cpu_seconds) for stage in chained.stages] == [
        ("codec", 2, 20.0),
        ("base", 2, 20.0),
        ("model", 5, 50.0),  # what is left of 90
    ]
    assert unet.stages == (StageCost("model", 9, 36, 90.0),)  # batches of 4
    assert chained.cpu_hours == unet.cpu_hours == 90.0 / 3600.0
    runs = output / "test" / "med-delinea"
    control = read(runs / "3-control" / "run.json")
    assert control["model"]["codec"] == str(runs / "1-codec" / "codec")
    assert control["model"]["dit"] == str(runs / "2-base" / "dit")
    assert (control["data"]["train"], control["data"]["validation"]) == (list(TRAIN), [])
    assert read(runs / "2-base" / "run.json")["steps"] == 2
    rows = (runs / "3-control" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(row)["learning_rate"] for row in rows]
    assert rates == pytest.approx([0.5e-3 * (1 + np.cos(np.pi * share)) for share in (0, 0.2, 0.4, 0.6, 0.8)])
    assert chained.parameters > chained.trained_parameters > 0
    assert unet.parameters == unet.trained_parameters
    for trial in accuracy.trials:
        assert [case.case for case in trial.report.cases] == list(TEST)
        assert trial.seconds.keys() == set(TEST)


def test_what_is_done_is_not_done_again(
    bench: BenchFile, done: tuple[Path, Accuracy], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, accuracy = done
    monkeypatch.setattr("meddelinea.benchmark.accuracy.train_chain", None)
    monkeypatch.setattr("meddelinea.benchmark.accuracy.run_test", None)
    again = measure_accuracy(bench, output, None)
    assert report_rows(again) == report_rows(accuracy)
    only = measure_accuracy(bench, output, None, ("U-Net",))
    assert [trial.method for trial in only.trials] == ["Med Delinea", "U-Net"]


def report_rows(accuracy: Accuracy) -> list[Any]:
    """All of the trials but their wall time."""
    return [(trial.stages, report_document(trial.report)) for trial in accuracy.trials]


@pytest.mark.parametrize(("stage", "share"), [(", base,", 50), (", model,", 60), ("test test, U-Net", 1)])
def test_stopped_and_gone_on_with_equals_uninterrupted(
    bench: BenchFile, done: tuple[Path, Accuracy], tmp_path: Path, stage: str, share: int
) -> None:
    def stop(part: str, count: int, total: int) -> None:
        if stage in part and count >= share:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_accuracy(bench, tmp_path / "out", None, progress=stop)
    finished = measure_accuracy(bench, tmp_path / "out", None)
    assert report_rows(finished) == report_rows(done[1])


def test_nothing_left_of_the_budget_is_told(bench: BenchFile, tmp_path: Path) -> None:
    little = bench.model_copy(update={"cpu_minutes": 0.5})
    with pytest.raises(UsageError, match=r"control.yaml: the stages before it took 0.7 of 0.5 CPU minutes"):
        measure_accuracy(little, tmp_path / "out", None, ("Med Delinea",))


def test_the_time_may_be_that_of_the_clock(bench: BenchFile, tmp_path: Path) -> None:
    by_clock = bench.model_copy(update={"cpu_minutes": None, "minutes": 0.5})
    measure_accuracy(by_clock, tmp_path / "out", None, ("U-Net",))
    (run,) = (tmp_path / "out" / "test" / "u-net").glob("1-*")
    settings, rows = read(run / "run.json"), (run / "metrics.jsonl").read_text().splitlines()
    assert (settings["minutes"], settings["cpu_minutes"]) == (0.5, None)
    assert [json.loads(row)["seconds"] for row in rows] == [10.0, 20.0, 30.0]


def test_stages_with_a_time_of_their_own_share_what_the_others_leave(
    bench: BenchFile, bench_file: Path, tmp_path: Path
) -> None:
    codec, base, control = (bench_file.parent / f"{name}.yaml" for name in ("codec", "base", "control"))
    coarse, fine = tmp_path / "coarse.yaml", tmp_path / "fine.yaml"
    coarse.write_text(json.dumps({"extends": str(control), "cpu_minutes": 14}))
    fine.write_text(json.dumps({"extends": str(control), "cpu_minutes": 42}))
    methods = {"Coarse first": (codec, base, coarse, fine)}
    chosen = bench.model_copy(update={"methods": methods, "cpu_minutes": 118 / 60})
    (trial,) = measure_accuracy(chosen, tmp_path / "out", None).trials
    assert [(stage.stage, stage.cpu_seconds) for stage in trial.stages] == [
        ("codec", 20.0),
        ("base", 20.0),
        ("model", 20.0),  # the step of ten seconds that a quarter of 78 ends in
        ("model", 60.0),
    ]
    limitless = chosen.model_copy(update={"methods": {"Coarse first": (codec, base, coarse, control)}})
    with pytest.raises(UsageError, match=r"control.yaml: no cpu_minutes; expected its share"):
        measure_accuracy(limitless, tmp_path / "other", None)
    assert not (tmp_path / "other" / "test" / "coarse-first" / "1-codec").exists()


def test_an_output_of_another_benchmark_is_left_alone(
    bench: BenchFile, done: tuple[Path, Accuracy], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="a benchmark with other cpu_minutes"):
        measure_accuracy(bench.model_copy(update={"cpu_minutes": 2.0}), done[0], None)
    with pytest.raises(UsageError, match="a benchmark with other parts"):
        measure_accuracy(bench, done[0], 2)
    unet = bench.methods["U-Net"]
    assert isinstance(unet, tuple)
    faster = tmp_path / "unet.yaml"
    faster.write_text(json.dumps({"extends": str(unet[0]), "optimiser": {"learning_rate": 1e-2}}))
    (done[0] / "test" / "u-net" / "result.json").rename(tmp_path / "result.json")
    try:
        with pytest.raises(UsageError, match="a run with other settings"):
            measure_accuracy(bench.model_copy(update={"methods": {"U-Net": (faster,)}}), done[0], None)
    finally:
        (tmp_path / "result.json").rename(done[0] / "test" / "u-net" / "result.json")


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_are_disjoint_by_patient(bench: BenchFile, folds: int) -> None:
    patients = {f"{patient}-{kind}": patient for patient in "pqrstuv" for kind in ("t1", "t2")}
    parts = divide(with_cases(bench, tuple(patients)), patients, folds)
    assert len(parts) == folds
    assert sorted(name for part in parts for name in part.test) == sorted(patients)
    for fold, part in enumerate(parts):
        assert set(part.train) | set(part.test) == set(patients)
        assert {patients[name] for name in part.test} == set("pqrstuv"[fold::folds])
        assert not {patients[name] for name in part.test} & {patients[name] for name in part.train}


def test_few_patients_are_the_first_of_more(bench: BenchFile, tmp_path: Path) -> None:
    seen: list[set[str]] = []
    for few in (1, 2):
        accuracy = measure_accuracy(bench, tmp_path / f"few-{few}", None, few=few)
        assert accuracy.parts[0].test == bench.test
        seen.append(set(accuracy.parts[0].train))
        for path in (tmp_path / f"few-{few}").rglob("training_cases.json"):
            assert {case["name"] for case in read(path)["train"]} == seen[-1]
    assert [len(names) for names in seen] == [1, 2]
    assert seen[0] < seen[1] < set(bench.train)
    with pytest.raises(UsageError, match="4 patients of test; expected 1 to 3"):
        measure_accuracy(bench, tmp_path / "few-4", None, few=4)


def test_cases_that_cannot_be_divided_are_refused(bench: BenchFile) -> None:
    patients = {"a": "p", "b": "q", "c": "q", "d": "r"}
    with pytest.raises(UsageError, match="3 folds of 2 patients"):
        divide(with_cases(bench, ("a", "b", "c")), patients, 3)
    with pytest.raises(UsageError, match="patients q are in train and in test"):
        divide(with_cases(bench, ("a", "b"), ("c", "d")), patients, None)
    with pytest.raises(UsageError, match="no test case"):
        divide(with_cases(bench, ("a", "b")), patients, None)


def test_no_stage_of_a_fold_sees_its_test_cases(folded: tuple[Path, Accuracy]) -> None:
    output, accuracy = folded
    assert [trial.part for trial in accuracy.trials] == [f"fold-{fold}-of-3" for fold in (1, 2, 3)]
    tested = [case.case for trial in accuracy.trials for case in trial.report.cases]
    assert tested == list(TRAIN)
    for part in accuracy.parts:
        seen = sorted((output / part.name).rglob("training_cases.json"))
        assert len(seen) == 3  # a component a stage
        for path in seen:
            document = read(path)
            names = {case["name"] for role in ("train", "validation", "test") for case in document[role]}
            assert names == set(TRAIN) - set(part.test)
    (row,) = accuracy_rows(accuracy)
    assert (row.parts, row.patients, row.cases) == (3, 3, 3)
    assert row.steps == 9


def test_folds_of_their_own_make_the_same_tables(
    bench_file: Path, folded: tuple[Path, Accuracy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("benchmark", "accuracy", bench_file, tmp_path / "out", "--methods", "Med Delinea", "--folds", 3, "--quiet")
    for fold, patients in ((2, 1), (3, 2)):
        assert meddelinea(*words, "--fold", fold) == 0
        assert f"| Med Delinea | {patients} |" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").glob("fold*")} == {"fold-2-of-3", "fold-3-of-3"}
    assert meddelinea(*words) == 0
    apart = read(tmp_path / "out" / "accuracy.json")
    together = json.loads(json.dumps(accuracy_document(folded[1], accuracy_rows(folded[1]))))
    for document in (apart, together):
        for measured in (*document["trials"], *document["rows"]):
            del measured["seconds"]  # wall time
    assert apart == together


@pytest.mark.parametrize("words", [("--folds", 3, "--fold", 4), ("--test", "--fold", 1)])
def test_a_fold_that_there_is_not_is_refused(
    bench_file: Path, tmp_path: Path, words: tuple[object, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert meddelinea("benchmark", "accuracy", bench_file, tmp_path / "out", *words) == 2
    assert "expected 1 to the number of folds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_saw_a_test_case_is_not_tested(
    bench: BenchFile, done: tuple[Path, Accuracy], tmp_path: Path
) -> None:
    folder = done[0] / "test" / "u-net" / "1-unet" / "pipeline"
    methods = {**bench.methods, "known": TrainedModel(model=str(folder), cpu_hours=2.0)}
    with pytest.raises(LeakFoundError, match="was trained on a"):
        measure_accuracy(bench.model_copy(update={"methods": methods}), tmp_path / "folds", 3)
    assert not list((tmp_path / "folds").glob("fold*"))  # before any training
    fair = measure_accuracy(bench.model_copy(update={"methods": methods}), tmp_path / "test", None, ("known",))
    (row,) = accuracy_rows(fair)
    assert (row.cpu_hours, row.slices, row.trained_parameters) == (2.0, None, None)
    assert report_document(fair.trials[0].report) == report_document(done[1].trials[1].report)


def test_a_trained_model_is_sampled_as_asked(bench: BenchFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    asked: list[object] = []
    monkeypatch.setattr(
        "meddelinea.benchmark.accuracy.run_test",
        lambda *words, true_boxes: (asked.append(words[-1]), run_test(*words))[1],
    )
    methods = {
        "own": TrainedModel(model=str(folder)),
        "four": TrainedModel(model=str(folder), steps=4, scheduler="ddim", samples=3),
    }
    measure_accuracy(bench.model_copy(update={"methods": methods}), tmp_path / "out", None)
    assert asked == [Sampling(), Sampling(steps=4, scheduler="ddim", samples=3)]


def test_masks_of_another_program_are_scored_as_a_models_are(
    bench: BenchFile, done: tuple[Path, Accuracy], tmp_path: Path
) -> None:
    """nnU-Net's: a mask a case, in the axes that it likes, and the ids in `dataset.json`; the second case has none."""
    unet, masks = done[1].trials[1], tmp_path / "nnunet"
    masks.mkdir()
    made = read_volume(done[0] / "test" / "u-net" / "masks" / "d.nii.gz")
    turned = Volume(np.array([0, 7, 9, 5], np.uint8)[made.array], made.affine).reorient("ASL")
    write_volume(turned, masks / "d.nii.gz")
    names = {"background": 0, "spleen": 7, "liver": 9, "gallbladder": 5}
    (masks / "dataset.json").write_text(json.dumps({"labels": names, "channel_names": {"0": "CT"}}))
    method = GivenMasks(masks=masks, cpu_hours=3.0)
    measured = measure_accuracy(bench.model_copy(update={"methods": {"nnU-Net v2": method}}), tmp_path / "out", None)
    (trial,) = measured.trials
    assert [vars(score) for score in trial.report.cases[0].scores] == [vars(s) for s in unet.report.cases[0].scores]
    assert [failure.case for failure in trial.report.failures] == ["e"]
    (row,) = rows = accuracy_rows(measured)
    assert (row.parameters, row.seconds, row.cpu_hours) == (None, None, 3.0)
    assert "| nnU-Net v2 | 1 | - (-) | - | 3.00 | - |" in "\n".join(accuracy_lines(measured, rows))
    kept = read_volume(tmp_path / "out" / "test" / "nnu-net-v2" / "masks" / "d.nii.gz")
    np.testing.assert_array_equal(kept.array, np.array([0, 7, 9, 5])[made.array])


def test_boxes_come_from_the_method_before_in_the_chain_or_from_the_truth(bench: BenchFile, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    sizes = {
        "image_size": 64, "patch_size": 8, "width": 16, "depth": 1, "heads": 2, "window": 3, "global_blocks": [],
        "decoder_width": 16, "decoder_hidden": 16,
    }  # fmt: skip
    network = {"method": "medsam", "sizes": sizes}
    config = run_config("model", bench.store, tmp_path, model=network, steps=1, batch_size=2)
    (tmp_path / "medsam.yaml").write_text(config.model_dump_json())
    chain = (Path(str(bench.methods["U-Net"][0])), tmp_path / "medsam.yaml")  # type: ignore[index]
    folder = tmp_path / "out" / "test" / "medsam" / "2-medsam" / "pipeline"
    measure_accuracy(bench.model_copy(update={"methods": {"MedSAM": chain}}), tmp_path / "out", None)
    methods = {"MedSAM": chain, "MedSAM (truth)": TrainedModel(model=str(folder), boxes="truth")}
    ours, best = measure_accuracy(bench.model_copy(update={"methods": methods}), tmp_path / "out", None).trials
    assert [stage.stage for stage in ours.stages] == ["model", "model"]
    assert ours.parameters > ours.trained_parameters > 0
    assert (folder / "prompter" / "network" / "config.json").is_file()
    assert not best.report.failures
    unet = TrainedModel(model=str(folder.parents[1] / "1-unet" / "pipeline"), boxes="truth")
    (refused,) = measure_accuracy(bench.model_copy(update={"methods": {"truth": unet}}), tmp_path / "out", None).trials
    assert ["takes no boxes" in failure.reason for failure in refused.report.failures] == [True, True]


def test_a_codec_that_saw_a_test_case_is_found_out(bench: BenchFile, tmp_path: Path) -> None:
    leaky = train(run_config("codec", bench.store, tmp_path / "codec", data={"crop": 32, "train": ("d",)})) / "codec"
    base, control = (Path(str(bench.methods["Med Delinea"][i])) for i in (1, 2))  # type: ignore[index]
    started = tmp_path / "base.yaml"
    started.write_text(json.dumps({"extends": str(base), "model": {"codec": str(leaky)}}))
    ended = tmp_path / "control.yaml"
    ended.write_text(json.dumps({"extends": str(control), "model": {"codec": str(leaky)}}))
    with pytest.raises(LeakFoundError, match="was trained on d"):
        measure_accuracy(bench.model_copy(update={"methods": {"m": (started, ended)}}), tmp_path / "out", None)


def test_the_command(
    bench_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], done: tuple[Path, Accuracy]
) -> None:
    output = done[0]
    assert meddelinea("benchmark", "accuracy", bench_file, output, "--test", "-q") == 0
    printed = capsys.readouterr().out
    assert (output / "accuracy.md").read_text() == printed
    document = read(output / "accuracy.json")
    assert [row["method"] for row in document["rows"]] == ["Med Delinea", "U-Net"]
    for row in document["rows"]:
        assert f"{row['paper_organs']['dice']['mean']:.3f} [{row['paper_organs']['dice']['low']:.3f}, " in printed
    assert meddelinea("benchmark", "accuracy", bench_file, output) == 2
    assert meddelinea("benchmark", "accuracy", bench_file, output, "--test", "--folds", 2) == 2
    assert "either --folds N" in capsys.readouterr().err


def test_a_case_that_fails_is_counted(
    bench_file: Path, bench: BenchFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "scans"
    for path in sorted(bench.source.rglob("*.*")):
        copy = source / path.relative_to(bench.source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes()[: 500 if path.name == "e.nii.gz" else None])
    methods = {"U-Net": [str(bench_file.parent / "unet.yaml")]}
    (tmp_path / "bench.yaml").write_text(json.dumps(read(bench_file) | {"source": str(source), "methods": methods}))
    words = ("benchmark", "accuracy", tmp_path / "bench.yaml", tmp_path / "out", "--test", "-q", "--cpu-minutes", 0.3)
    for _ in range(2):
        assert meddelinea(*words) == 4
        shown = capsys.readouterr()
        assert shown.out.splitlines()[2].endswith("| 1 |")
        assert "failed: test, U-Net, e: " in shown.err
    (trial,) = read(tmp_path / "out" / "accuracy.json")["trials"]
    assert [case["case"] for case in trial["report"]["cases"]] == ["d"]
    assert trial["stages"][0]["steps"] == 2  # 0.3 minutes are 18 seconds


def test_a_calibration_is_fitted_on_the_folds_and_measured_on_the_test(
    bench_file: Path,
    done: tuple[Path, Accuracy],
    folded: tuple[Path, Accuracy],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(done[0] / "test" / "med-delinea" / "3-control" / "pipeline", model)
    words = ("benchmark", "calibration", bench_file, tmp_path / "out", "--model", model, "-q")
    assert meddelinea(*words) == 2
    assert "no calibration.json" in capsys.readouterr().err
    assert meddelinea(*words, "--fit-on", folded[0], "--method", "Med Delinea") == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "calibration.md").read_text() == printed
    document = read(tmp_path / "out" / "figures.json")
    for side, cases in (("fitted", TRAIN), ("tested", TEST)):
        for measured in document[side]:
            assert [(row["case"], row["organ"]) for row in measured["rows"]] == [
                (case, organ) for case in cases for organ in ORGANS
            ]
    # What is said of a test case is what `predict` says with the file in the model's folder.
    scan = read_volume(read_bench_file(bench_file).source / "images" / "d.nii.gz")
    without = segment(scan, model, modality="CT")
    shutil.copy(tmp_path / "out" / "calibration.json", model)
    result = segment(scan, model, modality="CT")
    assert np.array_equal(result.mask.array, without.mask.array)
    assert without.segmentation.calibration is None
    for row in document["tested"][1]["rows"][: len(ORGANS)]:
        organ = row["organ"]
        assert row["volume_ml"] == pytest.approx(result.statistics[organ].volume_ml)
        assert row["needs_review"] == result.reviews[organ].needs_review
        assert row["interval_ml"] == (
            result.reviews[organ].interval_ml and pytest.approx(result.reviews[organ].interval_ml)
        )
        assert row["confidence"]["expected_dice"] == result.segmentation.confidence[organ].expected_dice
    # Measured again as the model's own, it does the same on the test.
    own = tmp_path / "own"
    assert meddelinea("benchmark", "calibration", bench_file, own, "--model", model, "-q") == 0
    assert read(own / "figures.json") == {**document, "model": str(model), "fitted": None}
    assert "|  | test, before | test, after |" in capsys.readouterr().out
    assert {path.name for path in own.iterdir()} == {"calibration.md", "figures.json"}


def test_a_calibration_wants_all_folds_and_an_unseen_test(
    bench_file: Path,
    done: tuple[Path, Accuracy],
    folded: tuple[Path, Accuracy],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("benchmark", "calibration", bench_file, tmp_path / "out", "--fit-on")
    for folds, reason in ((done[0], f"tested on {', '.join(TEST)}, which"), (tmp_path, "no benchmark")):
        assert meddelinea(*words, folds, "--method", "Med Delinea") == 2
        message = capsys.readouterr().err
        assert reason in message
        assert "in folds first (--fit-on)" in message
    assert meddelinea(*words, folded[0], "--method", "U-Net") == 2
    assert "not done" in capsys.readouterr().err
    content = read(bench_file)
    other = bench_file.with_name("other.yaml")  # its test is what the model was trained on
    other.write_text(json.dumps(content | {"train": TEST, "test": TRAIN}))
    model = done[0] / "test" / "med-delinea" / "3-control" / "pipeline"
    given = ("--method", "Med Delinea", "--model", model)
    assert meddelinea("benchmark", "calibration", other, tmp_path / "out", "--fit-on", done[0], *given) == 6
    assert not (tmp_path / "out").exists()
