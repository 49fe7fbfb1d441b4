"""The command line as a whole: exit codes, and errors as one line on stderr."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.version import __version__
from support.cli import Run, written


@pytest.mark.parametrize("command", [[], ["--help"], ["predict", "--help"], ["check", "-h"]])
def test_help_is_shown(run: Run, command: list[str]) -> None:
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert "Usage" in out


def test_version(run: Run) -> None:
    assert run("--version")[:2] == (0, f"meddelinea {__version__}\n")


@pytest.mark.usefixtures("fake_model")
def test_a_model_that_is_not_there_is_exit_code_5(run: Run, scan: Path, tmp_path: Path) -> None:
    for words in (("predict", "-i", scan, "-o", tmp_path / "m.nii"), ("check", scan)):
        code, out, err = run(*words, "--model", "large")
        assert (code, out) == (5, "")
        assert err.count("\n") == 1
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "where", "parameter", "ending"),
    [
        (("check", "scan.nii.gz"), "segmentation.model.read_model_files", "modality", " (--modality)"),
        (("train", "run.yaml"), "training.run_file.load_config", "overrides", " (--set)"),
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


def test_the_module_runs_as_the_command() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "meddelinea", "evaluate", "absent.nii.gz", "absent.nii.gz"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == InputRefusedError.exit_code
    assert answer.stderr.count("\n") == 1
