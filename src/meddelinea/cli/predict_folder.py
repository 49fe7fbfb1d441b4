"""`meddelinea predict` of a folder or a list of scans."""

from __future__ import annotations

import json
import sys
from collections import Counter
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from meddelinea.cli.options import EngineName, read_model
from meddelinea.cli.outputs import ExtraFolders
from meddelinea.cli.progress import OutputMode, print_event, progress_bar, status
from meddelinea.errors import PartialFailureError, UsageError

if TYPE_CHECKING:
    from meddelinea.folders.batch import ScanOutcome
    from meddelinea.folders.found import ScanCase
    from meddelinea.pool.pool import Engine
    from meddelinea.scan import Modality
    from meddelinea.segmentation.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Many scans to segment: their source, their outputs, how to segment them, and the processes that do it."""

    source: Path
    output: Path
    model: str
    device: str
    modality: Modality | None
    sampling: Sampling
    extras: ExtraFolders
    overwrite: bool
    engine: EngineName
    address: str | None
    workers: int | None


def is_batch(source: Path, output: Path) -> bool:
    """Whether there are many scans: in a list, or in a folder with a folder for the masks."""
    from meddelinea.endings import MASK_SUFFIXES, ending

    if source.suffix.lower() == ".csv":
        return True
    return source.is_dir() and ending(output, MASK_SUFFIXES) is None


def run_batch(batch: Batch, mode: OutputMode) -> None:
    """Segment the scans, and report each that has no mask.

    Raises
    ------
    PartialFailureError
        If there is one.
    """
    with status("starting", hidden=mode is not OutputMode.text):
        from meddelinea.folders.batch import STATISTICS_FILE, STATUS_FILE, segment_scans, status_line
        from meddelinea.folders.found import find_scans

        model = read_model(batch.model, quiet=mode is OutputMode.nothing)
    found = find_scans(batch.source, batch.output)
    for path in found.others:
        print(f"warning: {path}: not a scan, skipped", file=sys.stderr)
    total = len(found.cases)
    outcomes: list[ScanOutcome] = []
    screen = sys.stdout
    if mode is OutputMode.events:
        print_event({"event": "begin", "cases": total})

    def count_slices(name: str, done: int, total: int) -> None:
        if mode is OutputMode.events:
            print_event({"event": "slices", "case": name, "done": done, "total": total}, screen)

    work = segment_scans(
        found,
        batch.output,
        batch.sampling,
        model=model,
        device=batch.device,
        modality=batch.modality,
        extras=batch.extras,
        overwrite=batch.overwrite,
        engine=_engine(batch),
        progress=count_slices,
    )
    # ray reports a worker that died on stdout, which is for programs.
    with redirect_stdout(sys.stderr), progress_bar(hidden=mode is not OutputMode.text) as bar, closing(work):
        task = bar.add_task("scans", total=total)
        for outcome in work:
            outcomes.append(outcome)
            bar.update(task, completed=len(outcomes), description=outcome.case.name)
            for warning in outcome.warnings:
                print(f"warning: {outcome.case.source}: {warning}", file=sys.stderr)
            if mode is OutputMode.events:
                print_event({"event": "case", **status_line(outcome)}, screen)

    states = Counter(outcome.state for outcome in outcomes)
    counts = {state: states[state] for state in ("done", "present", "refused", "failed")}
    files = {name: str(batch.output / name) for name in (STATUS_FILE, STATISTICS_FILE)}
    if mode is OutputMode.events:
        print_event({"event": "end", **counts})
    elif mode is OutputMode.object:
        document = {"files": files, **counts, "cases": [status_line(outcome) for outcome in outcomes]}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif mode is OutputMode.text:
        print(
            f"{batch.output}: {counts['done']} done, {counts['present']} already there, {counts['refused']} refused, "
            f"{counts['failed']} failed; see {', '.join(files.values())}"
        )
    lacking = [outcome for outcome in outcomes if outcome.state in ("refused", "failed")]
    for outcome in sorted(lacking, key=lambda outcome: outcome.case.name):
        print(f"{outcome.state}: {outcome.case.name}: {' '.join(outcome.reason.split())}", file=sys.stderr)
    if lacking:
        raise PartialFailureError(f"{len(lacking)} of {total} scans have no mask; the others are done")


def _engine(batch: Batch) -> Engine[ScanCase, ScanOutcome]:
    from meddelinea.pool.cluster import on_cluster
    from meddelinea.pool.local import on_this_machine

    if batch.engine == "ray":
        return partial(on_cluster, address=batch.address or "local", workers=batch.workers)
    if batch.address is not None:
        raise UsageError("--address needs --engine ray")
    return partial(on_this_machine, workers=batch.workers or 1)
