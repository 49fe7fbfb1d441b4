"""`meddelinea prepare`: a dataset as it was published -> the slice store that training reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from meddelinea.cli.progress import progress_bar
from meddelinea.errors import PartialFailureError, UsageError


def prepare(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the dataset.")],
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the slice store; made or added to.")],
    layout: Annotated[str, typer.Option("--format", help="How the dataset is laid out, such as btcv.")],
    size: Annotated[int, typer.Option(min=64, help="Rows and columns of a slice, a multiple of 64.")] = 256,
    spacing_mm: Annotated[float, typer.Option(min=0.1, help="Size of a slice's pixels.")] = 1.5,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Turn a dataset into a slice store; cases that the store already holds are left alone."""
    from meddelinea.data.prepare import prepare_store
    from meddelinea.data.preprocess import Preprocessing

    if size % 64:
        raise UsageError(f"--size {size}: expected a multiple of 64, so that tokens fill the slice")
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task("cases", total=None)
        report = prepare_store(
            layout,
            source,
            store,
            preprocessing=Preprocessing(size=size, spacing_mm=spacing_mm),
            progress=lambda done, total, name: bar.update(
                task, completed=done, total=total, description=name or "done"
            ),
        )
    for name, reason in report.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if not quiet:
        counts = f"{len(report.stored)} cases stored, {len(report.present)} there before, {len(report.failed)} failed"
        print(f"{store}: {counts}")
    if report.failed:
        cases = len(report.stored) + len(report.present) + len(report.failed)
        raise PartialFailureError(f"{len(report.failed)} of {cases} cases failed; the others are stored")
