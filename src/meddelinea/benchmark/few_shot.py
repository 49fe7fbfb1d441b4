"""How much a few labelled scans help: a model as it is, and adapted with more and more of them (Table 3)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddelinea.benchmark.held_out import ShowProgress, run_test, unwatched
from meddelinea.benchmark.markdown import table
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.data.prepare import prepare_store
from meddelinea.data.splits import drawn_order
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.evaluation.compare import Report
from meddelinea.evaluation.summary import plain, report_document, summarise
from meddelinea.segmentation.model import load_model, read_model_files
from meddelinea.training.adapt import Adaptation, AdaptSettings, adapt


@dataclass(frozen=True)
class FewShotRow:
    """One row of the table."""

    volumes: int  # k, the labelled volumes given; 0 for the model as it is
    adaptation: Adaptation | None  # what came of them; None for the model as it is
    seconds: float  # time of the adaptation
    report: Report  # the test cases at full resolution in 3D


@dataclass(frozen=True)
class FewShotTable:
    """The rows, and the cases behind them: those that were given, in their order, and those tested on."""

    organs: tuple[str, ...]
    given: tuple[str, ...]
    tested: tuple[str, ...]
    rows: tuple[FewShotRow, ...]


def few_shot_table(
    base: str | Path,
    layout: str,
    source: Path,
    work: Path,
    volumes: tuple[int, ...],
    seed: int = 0,
    settings: AdaptSettings | None = None,
    progress: ShowProgress = unwatched,
) -> FewShotTable:
    """Measure a model as it is, and adapted with the first k volumes of patients in an order that `seed` draws.

    The test is the same for all rows: the patients that no row was given.

    Parameters
    ----------
    base
        Name of a shipped model, or a folder.
    layout, source
        The dataset's format and folder.
    work
        Folder for the store and the adapted models, which must not exist.
    volumes
        The numbers k of labelled volumes to adapt with, a row for each.

    Raises
    ------
    UsageError
        If `work` exists, or `volumes` leave no patient to test on.
    InputRefusedError
        If the dataset is not there.
    """
    # The patients that labels are taken from, in the order drawn; the others are tested.
    found = find_cases(layout, source)
    cases = {case.name: case for case in found.cases}
    drawn = drawn_order(tuple({case.patient for case in found.cases}), seed)
    order = sorted(cases, key=lambda name: (drawn.index(cases[name].patient), name))
    if not volumes or min(volumes) < 1 or max(volumes) >= len(order):
        raise UsageError(f"k = {', '.join(map(str, volumes))}; expected 1 to {len(order) - 1} of {len(order)} volumes")
    if work.exists():
        raise UsageError(f"{work}: exists already; choose another folder, or remove it")
    given = tuple(order[: max(volumes)])
    patients = {cases[name].patient for name in given}
    tested = tuple(cases[name] for name in sorted(cases) if cases[name].patient not in patients)
    if not tested:
        raise UsageError(f"{source}: no patient is left to test on; give fewer volumes")

    # One store holds all that is given; each k takes the first of it.
    organs = organs_of(found.cases)
    files = read_model_files(base)
    prepared = prepare_store(
        layout, source, work / "store", only=given, organs=organs, preprocessing=files.preprocessing
    )
    for name, reason in prepared.failed.items():
        raise InputRefusedError(f"{name}: {reason}")

    before, _ = run_test(load_model(base), tested, organs, "as it is", progress)
    rows = [FewShotRow(0, None, 0.0, before)]
    for count in sorted(volumes):
        began = time.monotonic()
        adapted = work / f"k{count}"
        for part, step in adapt(files.folder, work / "store", cases=given[:count], output=adapted, settings=settings):
            progress(f"k = {count}, {part}", step.step, step.steps)
        seconds = time.monotonic() - began
        after, _ = run_test(load_model(adapted), tested, organs, f"k = {count}", progress)
        rows.append(FewShotRow(count, Adaptation.read(adapted), seconds, after))
    return FewShotTable(organs, given, tuple(case.name for case in tested), tuple(rows))


def few_shot_lines(found: FewShotTable) -> list[str]:
    """The table in Markdown: Dice of each organ and their mean, HD95, and what the adaptation kept."""
    head = ["k", *found.organs, "mean Dice", "HD95 mm", "missed or invented", "kept", "checked on", "minutes"]
    rows = []
    for row in found.rows:
        summary = summarise(row.report)
        mean, by_organ = summary.mean_over_organs, {organ.organ: organ for organ in summary.organs}
        kept = ("base", "") if row.adaptation is None else (row.adaptation.kept, row.adaptation.check)
        cells = (
            str(row.volumes),
            *(f"{by_organ[organ].dice:.3f}" if organ in by_organ else "-" for organ in found.organs),
            f"{mean.dice:.3f}",
            f"{mean.hd95_mm:.1f}",
            str(mean.infinite_distances),
            *kept,
            f"{row.seconds / 60:.1f}",
        )
        rows.append(cells)
    return table(head, rows)


def few_shot_document(found: FewShotTable) -> dict[str, Any]:
    """Everything as plain JSON types."""
    rows = [
        {"volumes": row.volumes, "seconds": row.seconds, "adaptation": row.adaptation, **report_document(row.report)}
        for row in found.rows
    ]
    return plain({**vars(found), "rows": rows})
