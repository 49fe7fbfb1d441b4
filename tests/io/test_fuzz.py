"""Files with headers that were spoiled at random: a mask, a warning or one clear line, in bounded time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import support

TESTS = Path(support.__file__).parents[1]


def fuzzed(seed: int, count: int, seconds: float) -> dict[str, Any]:
    """What `support.fuzzing` prints, in a process of its own."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "support.fuzzing", str(seed), str(count), str(seconds)]
    done = subprocess.run(
        words,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_spoiled_headers_come_to_a_mask_a_warning_or_one_clear_line() -> None:
    found = fuzzed(seed=0, count=700, seconds=30)
    assert found["unexpected"] == []
    assert sum(found["counts"].values()) >= 70
    assert found["peak_mib"] < 2048
    assert {outcome.split(": ")[1] for outcome in found["counts"]} >= {"mask", "refused"}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_spoiled_files(capsys: pytest.CaptureFixture[str]) -> None:
    found = fuzzed(seed=1, count=10_000, seconds=7000)
    with capsys.disabled():
        print(json.dumps(found, indent=1))
    assert found["unexpected"] == []
    assert sum(found["counts"].values()) == 10_000
    assert found["peak_mib"] < 2048
