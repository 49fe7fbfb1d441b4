"""Tables of benchmarks as lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table_head(names: Sequence[str]) -> list[str]:
    """The two lines that begin a table."""
    return [table_row(names), f"|{' --- |' * len(names)}"]


def table_row(cells: Iterable[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def cell(value: float, form: str) -> str:
    """A value in a format such as `".3f"`; `-` where it is NaN or infinite, as where there is nothing to average."""
    return format(value, form) if math.isfinite(value) else "-"
