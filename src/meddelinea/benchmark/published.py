"""The paper's own figures, from `published.yaml`, which says where they are from; they are never mixed with others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import yaml
from pydantic import TypeAdapter

from meddelinea.benchmark.paper_file import Kind
from meddelinea.scan import Modality
from meddelinea.training.config import Strict


class Published(Strict):
    """A part of one of the paper's tables, of one setting."""

    table: int
    kind: Kind
    dataset: str
    share: float = 1.0
    modality: Modality | None = None
    columns: tuple[str, ...]  # keys of `paper_tables` columns
    rows: Mapping[str, tuple[float, ...]]  # method, or setting of Table 5 -> figures

    @property
    def title(self) -> str:
        """Dataset and setting in words."""
        share = f", {100 * self.share:g} %" if self.share < 1.0 else ""
        modality = f", {self.modality}" if self.modality else ""
        return f"{self.dataset}, {self.kind}{share}{modality}"

    def cells(self, row: str) -> dict[str, float]:
        """The figures of a row by column."""
        return dict(zip(self.columns, self.rows[row], strict=True))


@cache
def published(table: int) -> tuple[Published, ...]:
    """What the paper has in a table."""
    text = (files("meddelinea") / "benchmark" / "published.yaml").read_text()
    return tuple(
        part for part in TypeAdapter(tuple[Published, ...]).validate_python(yaml.safe_load(text)) if part.table == table
    )
