"""A test that hangs is ended and named."""

import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = Path(__file__).parents[1] / "pyproject.toml"


def test_a_hanging_test_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_hangs.py").write_text("import time\n\ndef test_that_hangs():\n    time.sleep(600)\n")
    words = [sys.executable, "-m", "pytest", "-c", SETTINGS, "--rootdir", tmp_path, "-p", "no:cacheprovider"]
    done = subprocess.run([*words, "-o", "timeout=1", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Timeout" in done.stdout + done.stderr
    assert "test_that_hangs" in done.stdout + done.stderr


def test_every_test_has_a_limit(pytestconfig: pytest.Config) -> None:
    assert 0 < float(pytestconfig.getini("timeout")) <= 600
