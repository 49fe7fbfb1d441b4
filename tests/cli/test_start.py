"""How fast the command line answers: help without the heavy libraries, and a sign of life before they are loaded."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from meddelinea.cli.main import app

HEAVY = ("torch", "diffusers", "monai", "scipy", "matplotlib", "nibabel", "pydicom", "numpy")
#: Runs the command of its arguments and ends when it writes to the terminal: 0 where no heavy library is loaded yet.
FIRST_WRITE = f"""
import io, os, sys
from meddelinea.cli.main import main

class Terminal(io.StringIO):
    def isatty(self):
        return True

    def write(self, text):
        loaded = [name for name in {HEAVY} if name in sys.modules]
        sys.__stdout__.write(" ".join(loaded) + "|" + text)
        sys.__stdout__.flush()
        os._exit(bool(loaded))

sys.stderr = Terminal()
main(sys.argv[1:])
"""
COMMANDS = {
    "predict": ("predict", "-i", "absent.nii.gz", "-o", "mask.nii.gz"),
    "predict a folder": ("predict", "-i", ".", "-o", "masks"),
    "demo": ("demo",),
    "check": ("check", "absent.nii.gz"),
    "info": ("info",),
    "prepare": ("prepare", ".", "store", "--format", "btcv"),
    "fit": ("fit", ".", "model"),
    "train": ("train", "absent.yaml"),
    "adapt": ("adapt", ".", "model"),
    "curves": ("curves", ".", "-o", "curves.png"),
    "evaluate": ("evaluate", "absent.nii.gz", "absent.nii.gz"),
    "leak-check": ("leak-check", ".", "--against", "small"),
    "serve": ("serve", "--port", "0", "--folder", "jobs"),
    "import-weights": ("import-weights", "components", "--dit", "absent.pt"),
    "push": ("push", ".", "owner/name"),
    "few-shot": ("benchmark", "few-shot", ".", "out", "--format", "btcv"),
    "robustness": ("benchmark", "robustness", ".", "out", "--format", "btcv"),
    "accuracy": ("benchmark", "accuracy", "absent.yaml", "out", "--test"),
    "calibration": ("benchmark", "calibration", "absent.yaml", "out"),
    "paper": ("benchmark", "paper", "absent.yaml", "out"),
    "learning-rate": ("benchmark", "learning-rate", "absent.yaml", "out"),
    "prior": ("benchmark", "prior", ".", "-o", "out", "--cases", "a"),
    "spread": ("benchmark", "spread", ".", "-o", "out", "--source", ".", "--format", "btcv", "--cases", "a"),
    "speed": ("benchmark", "speed", "absent.nii.gz", "out"),
    "store": ("benchmark", "store", "."),
    "loading": ("benchmark", "loading", "absent.yaml"),
}


def modules_after(statement: str) -> set[str]:
    """Heavy modules that `statement` loads in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(answer.stdout.splitlines()[-1].split())


def test_help_and_import_load_nothing_heavy() -> None:
    assert modules_after("import torch") >= {"torch"}  # the probe itself works
    assert modules_after("import meddelinea") == set()
    statement = "from meddelinea.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: print()"
    assert modules_after(statement) == set()


def test_no_command_is_left_out_here() -> None:
    top = typer.main.get_command(app).commands
    known = {(name,) for name in top} - {("benchmark",)} | {("benchmark", name) for name in top["benchmark"].commands}
    assert {words[: 1 + (words[0] == "benchmark")] for words in COMMANDS.values()} == known


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_terminal_shows_something_before_anything_heavy_is_loaded(command: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", FIRST_WRITE, *COMMANDS[command]]
    answer = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (answer.returncode, answer.stderr) == (0, "")
    loaded, shown = answer.stdout.split("|", 1)
    assert loaded == ""
    assert shown
    assert "error" not in shown


def test_the_first_byte_is_on_the_terminal_within_two_seconds(tmp_path: Path) -> None:
    def seconds(*words: str) -> float:
        """Time until a command writes to a terminal, or ends."""
        ours, theirs = pty.openpty()
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=tmp_path, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs
        )
        os.close(theirs)
        try:
            shown = os.read(ours, 1)
            assert shown
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        return time.monotonic() - begin

    # A busy machine is slow at everything: an interpreter with the two libraries of the command line is the yardstick.
    bare = ("-c", "import sys, typer, rich.console; sys.stderr.write('x')")
    ours = ("-m", "meddelinea", *COMMANDS["predict"])
    best, yardstick = (min(seconds(*words) for _ in range(3)) for words in (ours, bare))
    assert best < max(2.0, 6 * yardstick)
