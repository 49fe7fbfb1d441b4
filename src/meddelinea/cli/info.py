"""`meddelinea info`: a description of a model and of the presets."""

from __future__ import annotations

import json
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Argument

from meddelinea.cli.options import JsonOption, read_model
from meddelinea.cli.progress import status
from meddelinea.cli.table import plain_table
from meddelinea.errors import WeightsMissingError
from meddelinea.version import __version__


def info(
    model: Annotated[
        str | None,
        Argument(metavar="MODEL", show_default="small", help="small, a model's folder, or owner/name on the hub."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a model, and the presets.

    A model has organs, a licence and training cases; a preset has parameter counts.
    """
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
    console = Console(highlight=False)
    facts = Table.grid("", "", padding=(0, 2))
    for key, value in described.items():
        facts.add_row(key.replace("_", " "), Text(", ".join(value) or "none" if isinstance(value, list) else value))
    console.print(facts)
    print()
    parts = list(dict.fromkeys(part for counts in presets.values() for part in counts))
    table = plain_table("parameters of the presets", *presets)
    for part in parts:
        table.add_row(part.replace("_", " "), *(f"{counts.get(part, 0):,}" for counts in presets.values()))
    console.print(table)


def _describe(model: str) -> dict[str, Any]:
    """What a model's folder states about it, as plain JSON types."""
    files = read_model(model, quiet=True)  # the answer says it all
    return {
        "name": files.name,
        "source": "Hugging Face hub" if files.on_hub else "folder",
        "folder": str(files.folder),
        "organs": list(files.labels),
        "modalities": list(files.modalities),
        "licence": files.licence or "not stated",
        "training_cases": files.training_cases["train"],
        "validation_cases": files.training_cases["validation"],
    }
