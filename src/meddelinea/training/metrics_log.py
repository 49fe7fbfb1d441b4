"""`metrics.jsonl`: a line of figures for each step of a run, the same whether the run was interrupted or not."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from meddelinea.errors import InputRefusedError
from meddelinea.files import append_line, write_text

#: Figures of a step by name, among them `step` itself.
Row = dict[str, float]


class MetricsLog:
    """The log in the output folder of a run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.path = run / "metrics.jsonl"

    def read(self) -> list[Row]:
        """The rows in order of their steps; none where the run has not taken its first.

        Raises
        ------
        InputRefusedError
            If there is no log, or the file is not one.
        """
        if not self.path.is_file():
            raise InputRefusedError(f"{self.run}: no metrics.jsonl; expected the output folder of a training run")
        try:
            rows: list[Row] = [json.loads(line) for line in self.path.read_text().splitlines()]
            for value in (value for row in rows for value in row.values()):
                float(value)
            return sorted(rows, key=lambda row: row["step"])
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise InputRefusedError(
                f"{self.path}: not a training log ({reason}); expected a JSON object a step"
            ) from error

    def begin(self, step: int) -> None:
        """Begin the log, or continue it after `step`: later lines, which a resumed run repeats, are dropped."""
        kept = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            with suppress(ValueError):  # a line that was being written when the run was killed
                kept += [line + "\n"] if json.loads(line)["step"] <= step else []
        write_text("".join(kept), self.path)

    def add(self, row: Row) -> None:
        """Add the row of a step."""
        append_line(json.dumps(row), self.path)
