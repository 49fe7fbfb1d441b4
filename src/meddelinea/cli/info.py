"""`meddelinea info`: a description of a model and of the presets."""

from __future__ import annotations

import json
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from meddelinea.cli.options import JsonOption, read_model
from meddelinea.cli.progress import status
from meddelinea.cli.table import plain_table
from meddelinea.errors import UsageError, WeightsMissingError
from meddelinea.version import __version__

#: What `--methods` counts: the sizes that the methods share, and the organs of BTCV.
METHOD_SIZES = ("small", "paper")
COUNTED_ORGANS = 13


def info(
    model: Annotated[
        str | None,
        Argument(metavar="MODEL", show_default="small", help="small, a model's folder, or owner/name on the hub."),
    ] = None,
    methods: Annotated[
        bool, Option("--methods", help="List the methods instead, with parameters beside the paper's Table 4.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Describe a model, and the presets.

    A model has organs, a licence and training cases; a preset has parameter counts.
    """
    if methods:
        if model is not None:
            raise UsageError("--methods lists what can be trained, and describes no model; leave out MODEL")
        _list_methods(as_json)
        return
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


def _list_methods(as_json: bool) -> None:
    """What can be trained: true parameter counts at both sizes, and the paper's figure."""
    with status("counting", hidden=as_json):
        from meddelinea.methods.known import METHODS, TABLE_4

        counts = {name: {size: _count(name, size) for size in METHOD_SIZES} for name in METHODS}
    if as_json:
        listed = {name: {**sizes, "table_4_millions": TABLE_4.get(name)} for name, sizes in counts.items()}
        print(json.dumps({"version": __version__, "organs": COUNTED_ORGANS, "methods": listed}, indent=2))
        return
    table = plain_table("parameters of the methods", *METHOD_SIZES, "Table 4")
    for name, sizes in counts.items():
        cells = ["" if count is None else f"{count:,}" for count in sizes.values()]
        table.add_row(name, *cells, f"{TABLE_4[name]} M" if name in TABLE_4 else "")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"for {COUNTED_ORGANS} organs, without autoencoders; Table 4: the paper's figures")


def _count(method: str, size: str) -> int | None:
    """A method's parameters; None where it has no such size, or a package that it needs is not installed."""
    from meddelinea.methods.known import pipeline_of

    try:
        return pipeline_of(method).parameter_count(size, COUNTED_ORGANS)
    except UsageError:
        return None


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
