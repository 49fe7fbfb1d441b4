"""`meddelinea benchmark ...`: figures of this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from meddelinea.errors import InputRefusedError

app = typer.Typer(help="Measure on this machine.", rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `store` a sub-command even while it is the only one."""


@app.command("store")
def store(
    root: Annotated[Path, typer.Argument(metavar="STORE", help="Slice store, from `meddelinea prepare`.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0: this one.")] = 2,
    slices: Annotated[int, typer.Option(min=1, help="Slices that are read.")] = 4000,
    cold: Annotated[bool, typer.Option("--cold", help="Drop the store from the page cache first (Linux).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Random slices per second that a store gives, alone and with the two neighbours that training reads."""
    from meddelinea.data.store import SliceStore
    from meddelinea.data.throughput import forget, measure

    source = SliceStore(root)
    if not len(source):
        raise InputRefusedError(f"{root}: holds no case; prepare one first")
    rates = {}
    for name, reach in (("single slices", 0), ("with two neighbours", 1)):
        if cold:
            forget(root)
        rates[name] = measure(source, workers=workers, slices=slices, reach=reach)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    if as_json:
        figures = {name: asdict(rate) for name, rate in rates.items()}
        described = {"workers": workers, "slices": slices, "cold": cold, "bytes": size, "rates": figures}
        print(json.dumps(described, indent=2))
        return
    print(f"{root}: {len(source.cases)} cases, {len(source)} slices, {size / 1e6:.1f} MB")
    found = "cold" if cold else "page cache as found"
    for name, rate in rates.items():
        print(
            f"{name}: {rate.per_second:.0f} a second, {workers} workers, {found}; "
            f"{rate.processor_ms:.2f} ms of processor a slice"
        )
