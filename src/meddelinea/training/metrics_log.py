"""`metrics.jsonl`: a line of figures for each step of a run, the same whether the run was interrupted or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from meddelinea.files import write_text


@contextmanager
def metrics_log(output: Path, start: int, writes: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that adds a line to `metrics.jsonl`; lines after step `start`, which a resume repeats, are dropped."""
    if not writes:
        yield lambda row: None
        return
    path = output / "metrics.jsonl"
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(ValueError):  # a line that was being written when the run was killed
            kept += [line + "\n"] if json.loads(line)["step"] <= start else []
    write_text("".join(kept), path)
    with path.open("a") as file:

        def log(row: dict[str, float]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        yield log
