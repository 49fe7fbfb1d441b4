"""The command line: exit codes, one line on stderr, nothing half written.

The network is replaced by a threshold (`fake_model`), so these tests are about the command and not about the mask.
"""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from meddelinea.cli.main import main
from meddelinea.cli.options import names
from meddelinea.data.preprocess import Preprocessing
from meddelinea.errors import InputRefusedError, UsageError, WeightsMissingError
from meddelinea.segmentation.predict import Segmentation
from meddelinea.version import __version__
from meddelinea.volume import Volume
from support.tiny import write_blobs

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `meddelinea WORDS...`: exit code, stdout, stderr."""
    monkeypatch.setattr("logging.disable", lambda level: None)  # process-wide, so it would outlive the test

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return call


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """FAKE: a model that calls all that is above 20 HU liver and never finds a spleen. Returns what it was asked."""
    asked: dict[str, Any] = {}

    def segment(model: object, volume: Volume, **options: Any) -> Segmentation:
        asked.update(options)
        options["progress"](1, 1)
        mask = Volume((volume.array > 20).astype(np.uint8), volume.affine)
        return Segmentation(
            mask,
            {"liver": 1, "spleen": 2},
            "small",
            "1",
            options["steps"] or 1,
            "ddim",
            options["samples"],
            options["seed"],
            0.5,
        )

    def load_model(model: str, device: str) -> object:
        asked.update(model=model, device=device)
        return SimpleNamespace(files=SimpleNamespace(card="# Fake"))

    folder = tmp_path_factory.mktemp("model")
    files = {
        "labels.json": {"labels": {"liver": 1, "spleen": 2}},
        "preprocessing.json": {**asdict(Preprocessing()), "modalities": ["CT"], "least_component_share": 0.0},
        "training_cases.json": {
            role: [{"name": name, "dataset": "btcv", "fingerprint": "0"}]
            for role, name in (("train", "img0001"), ("validation", "img0002"))
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# small\n")

    def model_folder(model: str) -> Path:
        if model != "small":
            raise WeightsMissingError(f"{model}: no such model; expected small or a folder")
        return folder

    monkeypatch.setattr("meddelinea.segmentation.model.model_folder", model_folder)
    monkeypatch.setattr("meddelinea.segmentation.model.load_model", load_model)
    monkeypatch.setattr("meddelinea.segmentation.predict.segment", segment)
    return asked


def body() -> np.ndarray:
    """A cylinder of soft tissue with a rim of fat in air."""
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (48, 48, 6)), indexing="ij")
    radius = np.hypot(x, y)
    hounsfield = np.select([radius < 0.6, radius < 0.8], [45.0, -100.0], -1000.0)
    return (hounsfield + np.random.default_rng(0).normal(0, 5, hounsfield.shape)).astype(np.int16)


def save(array: np.ndarray, path: Path) -> Path:
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return save(body(), tmp_path / "in" / "scan.nii.gz")


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "in")


@pytest.mark.parametrize("command", [[], ["--help"], ["predict", "--help"], ["check", "-h"]])
def test_help_is_shown(run: Run, command: list[str]) -> None:
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert "Usage" in out


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, f"meddelinea {__version__}\n")


def test_predict_writes_mask_sidecar_statistics_and_preview(
    run: Run, scan: Path, tmp_path: Path, fake_model: dict[str, Any]
) -> None:
    code, out, err = run(
        *("predict", "-i", scan, "-o", tmp_path / "mask.nii.gz", "--steps", 4, "--seed", 7, "--device", "cpu"),
        *("--statistics", tmp_path / "s.json", "--preview", tmp_path / "p.png", "--organs", "Liver, spleen"),
    )
    assert (code, err) == (0, "")
    assert written(tmp_path) == ["mask.json", "mask.nii.gz", "p.png", "s.json"]
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), body() > 20)
    np.testing.assert_allclose(mask.affine, AFFINE)
    sidecar = json.loads((tmp_path / "mask.json").read_text())
    assert sidecar["labels"] == {"liver": 1, "spleen": 2}
    assert sidecar["input"] == "scan.nii.gz"
    assert (sidecar["steps"], sidecar["seed"], sidecar["scheduler"]) == (4, 7, "ddim")
    assert str(tmp_path) not in (tmp_path / "mask.json").read_text()
    statistics = json.loads((tmp_path / "s.json").read_text())
    liver_ml = np.count_nonzero(body() > 20) * 2 * 2 * 5 / 1000
    assert statistics["organs"]["liver"]["volume_ml"] == pytest.approx(liver_ml)
    assert statistics["organs"]["spleen"]["found"] is False
    assert fake_model["organs"] == ("liver", "spleen")
    assert (fake_model["device"], fake_model["model"], fake_model["batch_size"]) == ("cpu", "small", 16)
    assert f"{liver_ml:,.1f}" in out
    assert "not found: spleen" in out
    for name in written(tmp_path):
        assert name in out.replace("\n", "")


@pytest.mark.usefixtures("fake_model")
def test_predict_json_is_one_object(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, err = run("predict", "-i", scan, "-o", tmp_path / "mask.nii.gz", "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert list(answer["found_ml"]) == ["liver"]
    assert answer["not_found"] == ["spleen"]
    assert (answer["accepted"], answer["findings"]) == (True, [])
    assert answer["files"]["mask"] == str(tmp_path / "mask.nii.gz")


@pytest.mark.usefixtures("fake_model")
def test_quiet_prints_nothing(run: Run, scan: Path, tmp_path: Path) -> None:
    assert run("predict", "-i", scan, "-o", tmp_path / "m.nii", "-q") == (0, "", "")
    assert written(tmp_path) == ["m.json", "m.nii"]


@pytest.mark.usefixtures("fake_model")
def test_a_warning_goes_to_stderr_and_the_mask_is_made(run: Run, tmp_path: Path) -> None:
    clipped = save(np.clip(body(), -125, 275), tmp_path / "clipped.nii.gz")
    code, _, err = run("predict", "-i", clipped, "-o", tmp_path / "m.nii.gz", "--quiet")
    assert code == 0
    assert err.startswith("warning: ")
    assert err.count("\n") == 1
    assert "window" in err
    code, out, _ = run("predict", "-i", clipped, "-o", tmp_path / "m.nii.gz", "--json")
    assert [(finding["code"], finding["level"]) for finding in json.loads(out)["findings"]] == [("windowed", "warn")]


@pytest.fixture
def folder(scan: Path, fake_model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a scan and a damaged one, which are worked on in this process."""
    from meddelinea.pool import local

    def here(make: Any, cases: Any, progress: Any, workers: int) -> Any:
        fake_model["workers"] = workers
        return local.in_this_process(make, cases, progress)

    monkeypatch.setattr(local, "on_this_machine", here)
    monkeypatch.setattr("meddelinea.folders.batch.load_model", lambda model, device: object())
    (scan.parent / "bad.nii.gz").write_bytes(b"no scan")
    return scan.parent


def test_predict_of_a_folder_tells_of_each_case(
    run: Run, folder: Path, tmp_path: Path, fake_model: dict[str, Any]
) -> None:
    code, out, err = run("predict", "-i", folder, "-o", tmp_path / "masks", "--workers", 3)
    assert code == 4
    assert "1 masks made, 0 there before, 1 scans refused, 0 failed" in out
    refusal, error = err.splitlines()
    assert refusal.startswith("refused: bad: ")
    assert error == "error: 1 of 2 scans have no mask; the others are done"
    assert fake_model["workers"] == 3
    assert written(tmp_path / "masks") == ["scan.json", "scan.nii.gz", "statistics.csv", "status.jsonl"]
    code, out, _ = run("predict", "-i", folder, "-o", tmp_path / "masks", "--json")
    answer = json.loads(out)
    assert (code, answer["done"], answer["present"], answer["refused"]) == (4, 0, 1, 1)
    code, out, _ = run("predict", "-i", folder, "-o", tmp_path / "masks", "--progress-json", "--overwrite")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["begin", "case", "slices", "case", "end"]
    assert {event["case"]: event["state"] for event in events if event["event"] == "case"} == {
        "bad": "refused",
        "scan": "done",
    }
    (folder / "bad.nii.gz").unlink()
    assert run("predict", "-i", folder, "-o", tmp_path / "masks", "-q") == (0, "", "")


def test_predict_of_a_list(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("input,output\nscan.nii.gz,deep/a.nrrd\n")
    assert run("predict", "-i", folder / "list.csv", "-o", tmp_path / "masks", "-q") == (0, "", "")
    assert written(tmp_path / "masks" / "deep") == ["a.json", "a.nrrd"]


@pytest.mark.usefixtures("fake_model")
def test_progress_of_one_scan_is_an_object_a_line(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, err = run("predict", "-i", scan, "-o", tmp_path / "m.nii.gz", "--progress-json")
    assert (code, err) == (0, "")
    slices, case = map(json.loads, out.splitlines())
    assert slices == {"event": "slices", "case": "scan.nii.gz", "done": 1, "total": 1}
    assert (case["event"], case["state"], case["not_found"]) == ("case", "done", ["spleen"])


@pytest.mark.parametrize(
    "words",
    [
        ("one.nii.gz", "m.nii.gz", "--overwrite"),
        ("one.nii.gz", "m.nii.gz", "--engine", "ray"),
        ("one.nii.gz", "m.nii.gz", "--json", "--progress-json"),
        (".", "masks", "--address", "head:6379"),
        (".", "masks", "--preview", "p.png"),
    ],
)
def test_options_of_one_scan_do_not_go_with_those_of_many(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(folder)
    code, out, err = run("predict", "-i", words[0], "-o", *words[1:])
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["bad.nii.gz", "scan.nii.gz"]


def bad_inputs() -> dict[str, Callable[[Path], Path]]:
    """Name of a kind of bad input -> what writes one."""
    values = body().astype(np.float32)
    poisoned = values.copy()
    poisoned[3, 3, 3] = np.nan
    unit = (values - values.min()) / np.ptp(values)

    def plain(content: bytes) -> Callable[[Path], Path]:
        return lambda folder: (folder / "bad.nii.gz", (folder / "bad.nii.gz").write_bytes(content))[0]

    def truncated(folder: Path) -> Path:
        path = save(body(), folder / "bad.nii.gz")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    def volume(array: np.ndarray) -> Callable[[Path], Path]:
        return lambda folder: save(array, folder / "bad.nii.gz")

    return {
        "absent": lambda folder: folder / "absent.nii.gz",
        "empty file": plain(b""),
        "not a volume": plain(b"no scan here\n" * 100),
        "truncated gzip": truncated,
        "2D": volume(values[:, :, 0]),
        "4D": volume(np.stack([values, values], axis=-1)),
        "NaN": volume(poisoned),
        "all zeros": volume(np.zeros_like(values)),
        "rescaled": volume(unit),
        "one slice": volume(values[:, :, :1]),
        "masks in a folder": lambda folder: save(body(), folder / "one.nii.gz").parent,
    }


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize("kind", list(bad_inputs()))
def test_bad_input_is_one_line_and_nothing_written(run: Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    bad = bad_inputs()[kind](tmp_path / "in")
    code, out, err = run(
        *("predict", "-i", bad, "-o", tmp_path / "m.nii.gz"),
        *("--statistics", tmp_path / "s.json", "--preview", tmp_path / "p.png"),
    )
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert bad.name in err
    assert written(tmp_path) == []


@pytest.mark.usefixtures("fake_model")
def test_predict_json_names_the_reasons_of_a_refusal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    bad = save(body()[:, :, :2] * 0, tmp_path / "in" / "bad.nii.gz")
    for source, output, organs, codes in (
        (bad, "m.nii.gz", "liver", ["too_few_slices", "constant"]),
        (tmp_path / "in" / "absent.nii.gz", "m.nii.gz", "liver", ["not_found"]),
        (bad, "none/m.nii.gz", "liver", ["output"]),
        (bad, "m.nii.gz", "tail", ["unknown_organ"]),
    ):
        code, out, err = run("predict", "-i", source, "-o", tmp_path / output, "--organs", organs, "--json")
        answer = json.loads(out)
        assert code == 3
        assert (answer["input"], answer["accepted"]) == (str(source), False)
        refusals = [finding for finding in answer["findings"] if finding["level"] == "refuse"]
        assert [finding["code"] for finding in refusals] == codes
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert all(finding["message"] in err for finding in refusals)
        assert written(tmp_path) == []


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize("how", ["--quiet", "--json"])
def test_an_empty_mask_is_never_silent(run: Run, scan: Path, tmp_path: Path, how: str) -> None:
    def segment(_: object, volume: Volume, **options: Any) -> Segmentation:
        empty = Volume(np.zeros(volume.array.shape, np.uint8), volume.affine)
        return Segmentation(empty, {"liver": 1, "spleen": 2}, "small", "1", 1, "ddim", 1, 0, 0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meddelinea.segmentation.predict.segment", segment)
        code, out, err = run("predict", "-i", scan, "-o", tmp_path / "m.nii.gz", how)
    assert code == 0
    assert err.startswith("warning: ")
    assert err.count("\n") == 1
    assert "no organ was found" in err
    if how == "--json":
        assert [finding["code"] for finding in json.loads(out)["findings"]] == ["empty_mask"]


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--organs", "liver,spleeen"], 3, "spleeen"),
        (["--organs", " , "], 2, "no name; expected one or more, separated by commas (--organs)"),
        (["--organs", "liver,liver"], 2, "twice"),
        (["--scheduler", "magic"], 2, "euler_ancestral"),
        (["--device", "abacus"], 2, "cuda"),
        (["--steps", "0"], 2, "steps"),
        (["--batch-size", "0"], 2, "batch"),
        (["--preview", "p.pdf"], 3, ".png"),
        (["--statistics", "s.csv"], 3, ".json"),
        (["--statistics", "OUT/m.json"], 2, "share"),
        (["--magic"], 2, "--help"),
        (["-o", "OUT/m.tiff"], 2, ".nii.gz"),
        (["-o", "OUT/none/m.nii.gz"], 3, "none"),
        (["--preview", "OUT/none/p.png"], 3, "none"),
        (["-o", "SCAN"], 2, "overwrite"),
    ],
)
def test_a_bad_request_is_one_line_and_nothing_written(
    run: Run, scan: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    before = scan.read_bytes()
    words = [word.replace("OUT", str(tmp_path)).replace("SCAN", str(scan)) for word in words]
    met, out, err = run("predict", "-i", scan, "-o", tmp_path / "m.nii.gz", *words)
    assert (met, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert written(tmp_path) == []
    assert scan.read_bytes() == before


@pytest.mark.usefixtures("fake_model")
def test_a_model_that_is_not_there_is_exit_code_5(run: Run, scan: Path, tmp_path: Path) -> None:
    for words in (("predict", "-i", scan, "-o", tmp_path / "m.nii"), ("check", scan)):
        code, out, err = run(*words, "--model", "large")
        assert (code, out) == (5, "")
        assert err.count("\n") == 1
    assert written(tmp_path) == []


@pytest.mark.usefixtures("fake_model")
def test_info_states_counts_organs_licence_and_cases(run: Run) -> None:
    code, out, err = run("info", "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert list(answer["presets"]) == ["small", "paper", "xl"]
    for counts in answer["presets"].values():
        assert counts["total"] > counts["control"] > 0
    assert answer["model"]["organs"] == ["liver", "spleen"]
    assert answer["model"]["licence"] == "apache-2.0"
    assert answer["model"]["training_cases"] == ["img0001"]
    code, out, _ = run("info")
    assert code == 0
    assert f"{answer['presets']['paper']['control']:,}" in out
    assert run("info", "large")[0] == 5


def test_info_fits_a_narrow_terminal_without_cutting_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run("info")
    organs = json.loads(run("info", "--json")[1])["model"]["organs"]
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert ", ".join(organs) in " ".join(out.split())
    assert "validation cases none" in " ".join(out.split())


@pytest.mark.usefixtures("fake_model")
def test_info_without_weights_still_shows_the_presets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def model_folder(model: str) -> Path:
        raise WeightsMissingError("no weights here")

    monkeypatch.setattr("meddelinea.segmentation.model.model_folder", model_folder)
    code, out, _ = run("info", "--json")
    assert code == 0
    assert json.loads(out)["model"] == {"missing": "no weights here"}


@pytest.mark.parametrize(
    ("words", "where", "parameter", "ending"),
    [
        (("check", "scan.nii.gz"), "segmentation.model.read_model_files", "modality", " (--modality)"),
        (("train", "run.yaml"), "training.config.load_config", "overrides", " (--set)"),
        (
            ("benchmark", "accuracy", "a.yaml", "o", "--test"),
            "benchmark.bench_file.read_bench_file",
            "cpu_minutes",
            " (--cpu-minutes)",
        ),
        (("check", "scan.nii.gz"), "segmentation.model.read_model_files", "source", ""),  # an argument, no option
        (("check", "scan.nii.gz"), "segmentation.model.read_model_files", "seed", ""),  # an option of others
        (("check", "benchmark"), "segmentation.model.read_model_files", None, ""),
    ],
)
def test_the_flag_of_the_parameter_that_an_error_names_is_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], where: str, parameter: str | None, ending: str
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("not so", parameter=parameter)

    monkeypatch.setattr(f"meddelinea.{where}", refuse)
    assert run(*words) == (2, "", f"error: not so{ending}\n")


def test_an_error_keeps_what_it_carries_between_processes() -> None:
    for error in (UsageError("a", parameter="organs"), InputRefusedError("b", "no_scan", parameter="modality")):
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_train_refuses_a_run_that_is_not_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("stage: magic\n")
    assert run("train", tmp_path / "absent.yaml")[0] == 3
    code, _, err = run("train", tmp_path / "run.yaml", "--set", "steps=3")
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.usefixtures("fake_model")
def test_debug_shows_the_traceback_wherever_it_stands(run: Run, tmp_path: Path) -> None:
    for words in (["--debug", "check", tmp_path / "absent.nii"], ["check", tmp_path / "absent.nii", "--debug"]):
        code, _, err = run(*words)
        assert code == 3
        assert "Traceback" in err
        assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [(KeyboardInterrupt(), 130, "interrupted"), (EOFError("cut"), 1, "cut"), (ZeroDivisionError("no"), 1, "--debug")],
)
@pytest.mark.usefixtures("fake_model")
def test_what_nobody_foresaw_is_one_line_too(
    run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("meddelinea.segmentation.predict.segment", fail)
    met, _, err = run("predict", "-i", scan, "-o", tmp_path / "m.nii.gz")
    assert met == code
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert written(tmp_path) == []


@pytest.mark.usefixtures("fake_model")
def test_check_accepts_and_refuses(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, err = run("check", scan)
    assert (code, err) == (0, "")
    assert "may be segmented" in out
    code, _, err = run("check", save(np.zeros((9, 9, 9), np.int16), tmp_path / "zero.nii.gz"))
    assert code == 3
    assert err.count("\n") == 1


@pytest.mark.usefixtures("fake_model")
def test_check_heeds_what_the_user_says_of_the_modality(run: Run, scan: Path) -> None:
    assert run("check", scan, "--modality", "CT")[0] == 0
    code, out, _ = run("check", scan, "--modality", "MR", "--json")
    assert (code, [finding["code"] for finding in json.loads(out)["findings"]]) == (3, ["modality"])
    assert run("check", scan, "--modality", "PET")[0] == 2


@pytest.mark.usefixtures("fake_model")
def test_check_json_names_the_reasons(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, _ = run("check", scan, "--json")
    answer = json.loads(out)
    assert (code, answer["accepted"], answer["findings"]) == (0, True, [])
    assert (answer["shape"], answer["spacing_mm"], answer["orientation"]) == ([48, 48, 6], [2, 2, 5], "LPS")
    code, out, err = run("check", save(body() * 0, tmp_path / "zero.nii.gz"), "--json")
    assert (code, err) == (3, "")
    assert [finding["code"] for finding in json.loads(out)["findings"]] == ["constant"]
    code, out, err = run("check", tmp_path / "absent.nii.gz", "--json")
    assert (code, err) == (3, "")
    assert json.loads(out)["findings"][0]["code"] == "not_found"


@pytest.mark.usefixtures("fake_model")
def test_demo_segments_the_shipped_scan(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("slicerio", reason="the demo's scan comes with slicerio")
    code, out, _ = run("demo", "-o", tmp_path / "new" / "demo")
    assert code == 0
    files = ["mask.json", "mask.nii.gz", "preview.png", "report.html", "statistics.json"]
    assert written(tmp_path / "new" / "demo") == files
    assert "liver" in out


def test_demo_without_its_scan_says_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meddelinea.cli.demo.find_spec", lambda name: None)
    code, _, err = run("demo", "-o", tmp_path / "demo")
    assert code == 5
    assert "pip install 'meddelinea[demo]'" in err
    assert written(tmp_path) == []


def save_mask(path: Path, mask: np.ndarray, labels: dict[str, int]) -> Path:
    path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps({"labels": labels}))
    return save(mask.astype(np.uint8), path)


def test_evaluate_matches_by_name_and_reports(run: Run, tmp_path: Path) -> None:
    reference = np.zeros((12, 12, 6), np.uint8)
    reference[2:8, 2:8, 1:5] = 1
    shifted = np.roll(reference, 3, axis=0) * 9  # half of the box overlaps: Dice 0.5
    save_mask(tmp_path / "p.nii.gz", shifted, {"liver": 9})
    save_mask(tmp_path / "r.nii.gz", reference, {"Liver": 1, "spleen": 2})
    code, out, err = run(
        *("evaluate", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz"),
        *("--json", tmp_path / "e.json", "--csv", tmp_path / "e.csv"),
    )
    assert (code, err) == (0, "")
    assert "0.500" in out
    assert "cases" not in out  # there is but one
    assert "only in the reference: spleen" in out
    assert json.loads((tmp_path / "e.json").read_text())["cases"][0]["scores"][0]["dice"] == pytest.approx(0.5)
    assert (tmp_path / "e.csv").read_text().count("\n") == 2


def test_evaluate_says_of_a_single_case_what_was_missed_invented_or_absent(run: Run, tmp_path: Path) -> None:
    names = {"liver": 1, "spleen": 2, "aorta": 3, "pancreas": 4}
    box = np.zeros((8, 8, 8), np.uint8)
    box[2:5, 2:5, 2:5] = 1
    save_mask(tmp_path / "p.nii.gz", box + 2 * np.roll(box, 3, axis=0), names)
    save_mask(tmp_path / "r.nii.gz", box + 3 * np.roll(box, 3, axis=0), names)
    code, out, _ = run("evaluate", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz")
    ends = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.split() and line.split()[0] in names}
    assert code == 0
    assert ends == {"liver": "0.0", "spleen": "invented", "aorta": "missed", "pancreas": "absent"}
    assert "2 infinite" in out


def test_evaluate_a_folder_with_a_case_missing_is_exit_code_4(run: Run, tmp_path: Path) -> None:
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    for side in ("p", "r"):
        (tmp_path / side).mkdir()
        save_mask(tmp_path / side / "a.nii.gz", mask, {"liver": 1})
    save_mask(tmp_path / "r" / "b.nii.gz", mask, {"liver": 1})
    code, out, err = run("evaluate", tmp_path / "p", tmp_path / "r")
    assert code == 4
    assert "1.000" in out
    assert "failed: b" in err
    assert err.splitlines()[-1] == "error: 1 of 2 cases could not be measured"


def test_evaluate_refuses_other_geometry_with_nothing_written(run: Run, tmp_path: Path) -> None:
    save_mask(tmp_path / "p.nii.gz", np.ones((8, 8, 8)), {"liver": 1})
    save_mask(tmp_path / "r.nii.gz", np.ones((8, 8, 9)), {"liver": 1})
    code, out, err = run("evaluate", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", "--json", tmp_path / "e.json")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert not (tmp_path / "e.json").exists()


def test_prepare_makes_a_store_and_leaves_it_alone_afterwards(run: Run, data: Path, tmp_path: Path) -> None:
    for kind, name in (("img", "img0027.nii.gz"), ("label", "label0027.nii.gz")):
        (tmp_path / "in" / kind).mkdir(parents=True)
        nib.save(nib.load(data / "btcv" / kind / name).slicer[:, :, 40:46], tmp_path / "in" / kind / name)
    words = ("prepare", "--format", "btcv", tmp_path / "in", tmp_path / "store")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "1 cases stored, 0 there before, 0 failed" in out
    assert "0 cases stored, 1 there before, 0 failed" in run(*words)[1]


def test_prepare_of_an_unknown_format_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    code, _, err = run("prepare", "--format", "magic", tmp_path, tmp_path / "store")
    assert code == 2
    assert "btcv" in err


def test_the_module_runs_as_the_command() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "meddelinea", "evaluate", "absent.nii.gz", "absent.nii.gz"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == InputRefusedError.exit_code
    assert answer.stderr.count("\n") == 1


def test_benchmark_of_a_store_prints_slices_per_second(run: Run, tmp_path: Path) -> None:
    store = write_blobs(tmp_path / "store")
    code, out, err = run("benchmark", "store", store, "--workers", 0, "--slices", 40, "--cold", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["rates"].keys() == {"single slices", "with two neighbours"}
    assert all(rate["per_second"] > 0 and rate["processor_ms"] >= 0 for rate in answer["rates"].values())
    assert "3 cases, 18 slices" in run("benchmark", "store", store, "--workers", 0, "--slices", 40)[1]
    assert run("benchmark", "store", tmp_path)[0] == 3


@pytest.mark.parametrize(
    ("typed", "read"),
    [(None, None), ("a", ("a",)), ("a, b c ,d", ("a", "b c", "d")), (",a,,b,", ("a", "b")), ("", None), (" ,", None)],
)
def test_a_list_with_commas_drops_empty_entries_and_holds_a_name(
    typed: str | None, read: tuple[str, ...] | None
) -> None:
    if typed is not None and read is None:
        with pytest.raises(UsageError, match="contains no name"):
            names(typed, "cases")
    else:
        assert names(typed, "cases") == read


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("predict", "-i", "a.nii", "-o", "b.nii", "--organs"), "--organs"),
        (("prepare", "src", "store", "--format", "btcv", "--organs"), "--organs"),
        (("evaluate", "a.nii", "b.nii", "--organs"), "--organs"),
        (("adapt", "src", "out", "--organs"), "--organs"),
        (("adapt", "src", "out", "--cases"), "--cases"),
        (("benchmark", "robustness", "src", "out", "--format", "btcv", "--cases"), "--cases"),
        (("benchmark", "few-shot", "src", "out", "--format", "btcv", "--k"), "--k"),
    ],
)
def test_a_list_of_nothing_is_a_usage_error_that_names_its_option(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], flag: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words, ",")
    assert (code, out) == (2, "")
    assert err == f"error: ',' contains no name; expected one or more, separated by commas ({flag})\n"
    assert list(tmp_path.iterdir()) == []
