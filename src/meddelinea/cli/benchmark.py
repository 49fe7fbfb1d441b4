"""`meddelinea benchmark ...`: figures of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Measure on this machine.", rich_markup_mode=None, no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `loading` a sub-command even while it is the only one."""


@app.command("loading")
def loading(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run whose batches are timed.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeat for more.")
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches, and training steps, that are timed.")] = 20,
) -> None:
    """Whether training waits for its data: time to make a run's batches, beside that of its training steps."""
    from meddelinea.cli.progress import silence_diffusers
    from meddelinea.training.config import load_config
    from meddelinea.training.loading import measure_loading

    silence_diffusers()
    measured = measure_loading(load_config(run_file, tuple(overrides or ())), batches)
    table = Table("batches", "workers", "slices / s", "s / batch", "batch / step")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, seconds in (("read", measured.read), ("read and augmented", measured.augmented)):
        for workers, each in seconds.items():
            figures = (f"{measured.batch_size / each:.0f}", f"{each:.4f}", f"{each / measured.step:.3f}")
            table.add_row(name, str(workers), *figures)
    Console().print(table)
    print(f"a training step on {measured.batch_size} slices takes {measured.step:.4f} s on {measured.device}")
