"""`meddelinea fit`: a folder of labelled scans -> a plan for them -> a model, tested and calibrated."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from meddelinea.cli.options import AddressOption, EngineOption, QuietOption
from meddelinea.cli.progress import progress_bar, silence_diffusers, status
from meddelinea.errors import InputRefusedError, PartialFailureError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from meddelinea.fitting.faults import Fault
    from meddelinea.fitting.outcome import Fitted
    from meddelinea.fitting.plan import Base
    from meddelinea.fitting.plan_folder import PlanFile
    from meddelinea.fitting.survey import Survey
    from meddelinea.fitting.trainings import Training
    from meddelinea.pool.pool import Engine


def fit(
    source: Annotated[Path, Argument(metavar="DATASET", help="Folder of labelled scans.")],
    output: Annotated[Path, Argument(metavar="MODEL", help="New folder for the model; the work goes to MODEL-fit.")],
    layout: Annotated[
        str | None, Option("--format", metavar="NAME", show_default="found out", help="Format of DATASET.")
    ] = None,
    hours: Annotated[float, Option(metavar="H", min=0.01, help="Time for all of it.")] = 2.0,
    processor_time: Annotated[
        bool, Option("--processor-time", help="Count the hours of each core, not those of the clock.")
    ] = False,
    start: Annotated[
        str, Option("--from", metavar="MODEL", help="Start from scratch, from a model, or auto: the better by a trial.")
    ] = "auto",
    folds: Annotated[int, Option(metavar="N", min=2, help="Parts of the cross-validation.")] = 3,
    skip_faulty: Annotated[bool, Option("--skip-faulty", help="Leave faulty cases out.")] = False,
    plan_only: Annotated[bool, Option("--plan-only", help="Write and print the plan, and end.")] = False,
    engine: EngineOption = "local",
    address: AddressOption = None,
    quiet: QuietOption = False,
) -> None:
    """Make a model of a labelled dataset of your own.

    DATASET is looked at for faults and planned for: grid, sampling, augmentation, stages. The plan, in MODEL-fit/plan,
    consists of run files; it may be edited, and the same command goes on with it, also after an interruption.
    """
    with status("starting", hidden=quiet):
        from meddelinea.fitting.plan_folder import PlanFile

    if output.exists():
        raise UsageError(f"{output}: exists already; choose another folder, or remove it")
    if (engine == "ray") != bool(address):
        raise UsageError("--engine ray needs --address HOST:PORT; --engine local excludes it")
    work = output.with_name(f"{output.name}-fit")
    asked: dict[str, Any] = {
        "source": str(source.absolute()),
        "layout": layout,
        "hours": hours,
        "processor_time": processor_time,
        "start": start,
        "folds": folds,
        "skip_faulty": skip_faulty,
    }
    folder = work / "plan"
    if folder.is_dir():
        plan = PlanFile.read(folder)
        odd = [name for name, value in asked.items() if plan.asked.get(name) != value]
        if odd:
            raise UsageError(f"{folder}: made for another {', '.join(odd)}; remove it to have a plan made for this")
        _say(f"the plan in {folder} is taken as it stands", quiet=quiet)
    else:
        plan = _planned(source, work, asked, address=address, quiet=quiet)
    if not quiet:
        for decision in plan.decisions:
            print(f"{decision['what']}: {decision['value']} ({decision['reason']})")
    if plan_only:
        _say(f"written: {folder}", quiet=quiet)
        return
    with progress_bar(hidden=quiet) as bar:
        fitted = _carried_out(plan, work, output, address=address, bar=bar)
    if not quiet:
        print("\n".join(fitted.lines))
        print(f"written: {output}; see its README.md")
    for name, reason in fitted.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if fitted.failures:
        raise PartialFailureError(f"{len(fitted.failures)} test cases could not be measured; the means leave them out")


def _carried_out(plan: PlanFile, work: Path, output: Path, *, address: str | None, bar: Progress) -> Fitted:
    """Make the store, train, and write the model's folder."""
    from meddelinea.data.prepare import prepare_store
    from meddelinea.fitting.outcome import write_outcome
    from meddelinea.fitting.trainings import choose_start, train_all
    from meddelinea.pool.cluster import on_cluster
    from meddelinea.pool.local import on_this_machine

    silence_diffusers()
    task = bar.add_task("slices", total=None)
    prepared = prepare_store(
        plan.layout,
        plan.source,
        work / "store",
        only=plan.cases,
        organs=plan.organs,
        preprocessing=plan.grid,
        engine=partial(on_cluster, address=address, use_gpus=False)
        if address
        else partial(on_this_machine, workers=os.cpu_count() or 1),
        progress=lambda done, total, name: bar.update(task, completed=done, total=total, description=f"slices, {name}"),
    )
    if prepared.failed:
        name, reason = next(iter(prepared.failed.items()))
        raise InputRefusedError(f"{name}: {reason}; repair it, or take it out of the plan's cases")

    shares: dict[str, int] = {}

    def show(name: str, done: int, total: int) -> None:
        shares[name] = done
        met = ", ".join(f"{each} {share} %" for each, share in sorted(shares.items()) if share < total)
        bar.update(task, completed=sum(shares.values()), total=total * len(shares), description=met or "tests")

    workers = plan.trainings
    engine: Engine[Training, float] = (
        partial(on_cluster, address=address, workers=workers) if address else partial(on_this_machine, workers=workers)
    )
    start, trial = choose_start(plan, work, engine=engine, progress=show)
    for name, dice in trial.items():
        bar.console.print(f"trial from {name}: Dice {dice:.3f}", highlight=False)
    shares.clear()
    train_all(plan, work, start, engine=engine, progress=show)
    return write_outcome(
        plan,
        work,
        output,
        start=start,
        trial=trial,
        progress=lambda what, done, total: bar.update(task, completed=done, total=total, description=what),
    )


def _planned(source: Path, work: Path, asked: dict[str, Any], *, address: str | None, quiet: bool) -> PlanFile:
    """Look at the dataset, report its faults, and write a plan."""
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task("starting", total=None)
        import torch

        from meddelinea.fitting.faults import find_faults
        from meddelinea.fitting.plan import Means, make_plan
        from meddelinea.fitting.plan_folder import PlanFile, write_plan
        from meddelinea.fitting.survey import layout_of, survey
        from meddelinea.pool.cluster import on_cluster
        from meddelinea.pool.local import on_this_machine

        layout, cores = asked["layout"] or layout_of(source), os.cpu_count() or 1
        seen = survey(
            layout,
            source,
            engine=partial(on_cluster, address=address, use_gpus=False)
            if address
            else partial(on_this_machine, workers=cores),
            progress=lambda done, total, name: bar.update(task, completed=done, total=total, description=name),
        )
        bar.update(task, description="comparing the cases", total=None)
        faults = find_faults(seen)
    seen, left_out = _without_faulty(seen, faults, skip=asked["skip_faulty"])
    base, scratch = _base(asked["start"], seen)
    gpus, memory = min(1, torch.cuda.device_count()), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if gpus:
        memory = torch.cuda.get_device_properties(0).total_memory
    means = Means(
        hours=asked["hours"],
        clock="processor" if asked["processor_time"] else "wall",
        cores=cores,
        memory_gb=memory / 1e9,
        gpus=gpus,
    )
    plan = make_plan(seen, means, folds=asked["folds"], base=base, scratch=scratch)
    return PlanFile.read(write_plan(plan, seen, work, means=means, asked=asked, left_out=left_out))


def _without_faulty(seen: Survey, faults: tuple[Fault, ...], *, skip: bool) -> tuple[Survey, dict[str, str]]:
    """The dataset without the cases that nothing may be trained on, and why not; each fault is a line on stderr."""
    fatal = [fault for fault in faults if fault.level == "refuse"]
    left_out = {fault.case: str(fault) for fault in fatal if fault.case}
    for fault in faults:
        mark = "warning" if fault.level == "warn" else "left out" if skip and fault.case else "fault"
        print(f"{mark}: {fault}", file=sys.stderr)
    if any(not fault.case for fault in fatal):
        raise InputRefusedError(f"{seen.source}: the dataset as a whole is faulty; repair it first")
    if fatal and not skip:
        raise InputRefusedError(
            f"{seen.source}: {len(left_out)} of {len(seen.cases) + len(seen.broken)} cases are faulty; repair them, or "
            "leave them out",
            parameter="skip_faulty",
        )
    return replace(seen, cases=tuple(case for case in seen.cases if case.name not in left_out)), left_out


def _base(start: str, seen: Survey) -> tuple[Base | None, bool]:
    """The model to start from, if any, and whether a new one may be started too."""
    from meddelinea.fitting.base import find_base

    if start == "scratch":
        return None, True
    base = find_base("small" if start == "auto" else start, seen.cases)
    if base.unfit and start != "auto":
        raise InputRefusedError(f"{start} {base.unfit}; start from scratch, or from another model", parameter="start")
    return base, start == "auto"


def _say(text: str, *, quiet: bool) -> None:
    if not quiet:
        print(text)
