"""Commands that start a ray cluster of this machine, in processes of their own, so that what ray leaves ends there."""

import os
import subprocess
from collections.abc import Sequence

import pytest


def run_on_cluster(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The command, ended; the test is skipped where ray's own processes do not start in the 30 s that ray waits."""
    pytest.importorskip("ray")
    quiet = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
    if "timed out during startup" in done.stderr:
        pytest.skip("this machine is too busy for ray, which waits 30 s for its own processes to start")
    return done
