"""The file of a benchmark: what is invalid is refused, with what it expects."""

import json
from pathlib import Path
from typing import Any

import pytest

from meddelinea.benchmark.accuracy import measure_accuracy
from meddelinea.benchmark.bench_file import BenchFile, TrainedModel, folder_name, read_bench_file
from meddelinea.errors import InputRefusedError, UsageError
from support.benchmarks import TEST, TRAIN, read, with_cases


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": {"U-Net": [], "x": ["a.yaml"]}}, "methods"),
        ({"methods": {"U-Net": ["a.yaml"], "u net": ["b.yaml"]}}, "do not differ enough"),
        ({"test": ["a"]}, "cases a are named twice"),
        ({"cpu_minutes": 0}, "cpu_minutes"),
        ({"minutes": 3}, "minutes"),
        ({"methods": {"MedSAM": {"model": "runs/sam", "boxes": "truth"}}}, r"say so in its name: MedSAM \(truth\)"),
    ],
)
def test_a_benchmark_that_cannot_be_meant_is_refused(
    bench_file: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    (tmp_path / "bench.yaml").write_text(json.dumps(read(bench_file) | change))
    with pytest.raises(UsageError, match=words):
        read_bench_file(tmp_path / "bench.yaml")


def test_methods_of_a_benchmark_file(bench_file: Path, tmp_path: Path) -> None:
    methods = {"U-Net (best)": ["unet.yaml"], "small": "small", "big": {"model": "runs/big", "cpu_hours": 2}}
    (tmp_path / "bench.yaml").write_text(json.dumps(read(bench_file) | {"methods": methods}))
    assert read_bench_file(tmp_path / "bench.yaml").methods == {
        "U-Net (best)": (tmp_path / "unet.yaml",),
        "small": TrainedModel(model="small"),
        "big": TrainedModel(model="runs/big", cpu_hours=2.0),
    }
    assert folder_name("U-Net (best)") == "u-net-best"
    with pytest.raises(InputRefusedError, match="not a readable YAML file"):
        read_bench_file(tmp_path / "absent.yaml")


def test_unknown_methods_and_cases_are_named(bench: BenchFile, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no method called V-Net; expected some of: Med Delinea, U-Net"):
        measure_accuracy(bench, tmp_path / "out", None, ("V-Net",))
    with pytest.raises(InputRefusedError, match="z: no such case"):
        measure_accuracy(with_cases(bench, (*TRAIN, "z"), TEST), tmp_path / "out", None)
    assert not (tmp_path / "out").exists()
