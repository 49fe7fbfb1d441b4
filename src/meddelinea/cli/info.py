"""`meddelinea info`: what the presets and a model are."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from meddelinea.cli.options import JsonOption
from meddelinea.cli.progress import status
from meddelinea.errors import WeightsMissingError
from meddelinea.version import __version__


def info(
    model: Annotated[str | None, typer.Argument(help="small, or a checkpoint folder (default: small).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the presets' true parameter counts, and a model's organs, licence and training cases."""
    with status("starting", hidden=as_json):
        from meddelinea.models.presets import PRESETS, parameter_counts

        try:
            described = _describe(model or "small")
        except WeightsMissingError as error:
            if model is not None:
                raise
            described = {"missing": str(error)}
        presets = {name: parameter_counts(name) for name in PRESETS}
    if as_json:
        print(json.dumps({"version": __version__, "presets": presets, "model": described}, indent=2))
        return
    parts = list(dict.fromkeys(part for counts in presets.values() for part in counts))
    table = Table("parameters", *presets)
    for column in table.columns[1:]:
        column.justify = "right"
    for part in parts:
        table.add_row(part.replace("_", " "), *(f"{counts.get(part, 0):,}" for counts in presets.values()))
    Console().print(table)
    for key, value in described.items():
        print(f"{key.replace('_', ' ')}: {', '.join(value) if isinstance(value, list) else value}")


def _describe(model: str) -> dict[str, Any]:
    """What a model's folder states about it, as plain JSON types."""
    from meddelinea.segmentation.model import read_model_files

    files = read_model_files(model)
    return {
        "name": files.name,
        "folder": str(files.folder),
        "organs": list(files.labels),
        "modalities": list(files.modalities),
        "licence": files.licence or "not stated",
        "training_cases": files.training_cases["train"],
        "validation_cases": files.training_cases["validation"],
    }
