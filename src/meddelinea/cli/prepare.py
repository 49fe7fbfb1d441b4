"""`meddelinea prepare`: a dataset as it was published -> the slice store that training reads."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from meddelinea.cli.options import AddressOption, EngineOption, QuietOption, organ_names
from meddelinea.cli.progress import progress_bar, status
from meddelinea.errors import PartialFailureError, UsageError


def prepare(
    source: Annotated[Path, Argument(metavar="SRC", help="Folder of the dataset.")],
    store: Annotated[Path, Argument(metavar="STORE", help="Folder of the slice store, new or to be extended.")],
    layout: Annotated[str, Option("--format", metavar="NAME", help="Format of the dataset, such as btcv.")],
    size: Annotated[int, Option(metavar="N", min=64, help="Rows and columns of a slice, a multiple of 64.")] = 256,
    spacing_mm: Annotated[float, Option(metavar="MM", min=0.1, help="Width of a pixel in millimetres.")] = 1.5,
    organs: Annotated[
        str | None, Option(metavar="NAME,NAME", show_default="all of the dataset", help="Organs, such as liver,spleen.")
    ] = None,
    modality: Annotated[
        Literal["CT", "MR"] | None, Option("--modality", help="Take these scans only, of a dataset that has both.")
    ] = None,
    workers: Annotated[
        int | None, Option(metavar="N", min=1, show_default="one per core", help="Worker processes.")
    ] = None,
    verify: Annotated[
        bool, Option("--verify", help="Check the stored cases as well, and replace damaged ones.")
    ] = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    quiet: QuietOption = False,
) -> None:
    """Convert a dataset to a slice store. Cases that the store already holds are kept."""
    with status("starting", hidden=quiet):
        from meddelinea.data.prepare import prepare_store
        from meddelinea.data.preprocess import Preprocessing
        from meddelinea.pool.cluster import on_cluster
        from meddelinea.pool.local import on_this_machine

    if size % 64:
        raise UsageError(f"--size {size}: expected a multiple of 64")
    wanted = organ_names(organs)
    if (engine == "ray") != bool(address) or (workers and address):
        raise UsageError(
            "--engine ray needs --address HOST:PORT and excludes --workers; --engine local excludes --address"
        )
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task("cases", total=None)
        report = prepare_store(
            layout,
            source,
            store,
            modality=modality,
            organs=wanted,
            preprocessing=Preprocessing(size=size, spacing_mm=spacing_mm),
            verify=verify,
            engine=partial(on_cluster, address=address, use_gpus=False)
            if address
            else partial(on_this_machine, workers=workers or os.cpu_count() or 1),
            progress=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
    for name, reason in report.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    for name, reasons in report.refused.items():
        print(f"warning: {name}: a model that is trained on it would refuse it: {'; '.join(reasons)}", file=sys.stderr)
    stored = len(report.stored) + len(report.repaired)
    if not quiet:
        for name, remarks in report.remarks.items():
            print(f"{name}: {'; '.join(remarks)}")
        damaged = f" ({len(report.repaired)} of them were damaged)" if report.repaired else ""
        print(
            f"{store}: {stored} cases stored{damaged}, {len(report.present)} already there, "
            f"{len(report.failed)} failed; see {store / 'report.json'}"
        )
    if report.failed:
        cases = stored + len(report.present) + len(report.failed)
        raise PartialFailureError(f"{len(report.failed)} of {cases} cases failed; the others are stored")
