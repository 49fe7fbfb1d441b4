"""The cases of a small benchmark, and its file read and changed."""

import json
from pathlib import Path
from typing import Any

from meddelinea.benchmark.bench_file import BenchFile

TRAIN, TEST = ("a", "b", "c"), ("d", "e")


def read(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def with_cases(bench: BenchFile, train: tuple[str, ...], test: tuple[str, ...] = ()) -> BenchFile:
    """The benchmark with other cases."""
    return bench.model_copy(update={"train": train, "test": test})
