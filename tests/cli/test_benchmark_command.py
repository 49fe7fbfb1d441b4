"""`meddelinea benchmark`: measurements."""

import json
from pathlib import Path

from support.cli import Run
from support.tiny_models import write_blobs


def test_benchmark_of_a_store_prints_slices_per_second(run: Run, tmp_path: Path) -> None:
    store = write_blobs(tmp_path / "store")
    code, out, err = run("benchmark", "store", store, "--workers", 0, "--slices", 40, "--cold", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["rates"].keys() == {"single slices", "with two neighbours"}
    assert all(rate["per_second"] > 0 and rate["processor_ms"] >= 0 for rate in answer["rates"].values())
    assert "3 cases, 18 slices" in run("benchmark", "store", store, "--workers", 0, "--slices", 40)[1]
    assert run("benchmark", "store", tmp_path)[0] == 3
