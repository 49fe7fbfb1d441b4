"""Tables of benchmarks as lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A line each for the head, for the rule under it, and for every row."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def cell(value: float, form: str) -> str:
    """A value in a format such as `".3f"`; `-` where it is NaN or infinite, as where there is nothing to average."""
    return format(value, form) if math.isfinite(value) else "-"
