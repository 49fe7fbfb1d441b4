"""`meddelinea train`: a run file -> a trained stage."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meddelinea.cli.options import OverridesOption, QuietOption
from meddelinea.cli.progress import progress_bar, silence_diffusers, status

if TYPE_CHECKING:
    from meddelinea.training.engine import Progress


def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="Run file: stage, data, model, schedule.")],
    overrides: OverridesOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Train a stage as a run file describes it.

    The stages are codec, base, control and baseline.
    """
    with status("starting", hidden=quiet):
        from accelerate import PartialState

        from meddelinea.training.cases import mixed_datasets
        from meddelinea.training.config import load_config
        from meddelinea.training.curves import write_curves
        from meddelinea.training.engine import train as run_stage

    config = load_config(run_file, tuple(overrides or ()))
    for warning in mixed_datasets(config):
        print(f"warning: {warning}", file=sys.stderr)
    silence_diffusers()
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task(config.stage, total=None)
        last: Progress | None = None

        def report(progress: Progress) -> None:
            nonlocal last
            last = progress
            # Where a time limit ends the run early, the steps still to come follow from the share that is done.
            total = max(progress.step, round(progress.step / progress.share)) if progress.share > 0 else progress.steps
            loss = f"{config.stage}, loss {progress.figures['total']:.4f}"
            bar.update(task, completed=progress.step, total=total, description=loss)
            if "dice" in progress.figures and not quiet:  # a step that was validated
                figures = ", ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
                bar.console.print(f"step {progress.step}: {figures}", markup=False, highlight=False, soft_wrap=True)

        folder = run_stage(config, resume=resume, report=report)
    if not PartialState().is_main_process:
        return
    if last is not None:  # a run that trains
        write_curves([folder], folder / "curves.png")
        if not quiet:
            minutes, loss = last.seconds / 60, last.figures["total"]
            print(f"{last.step} steps in {minutes:.1f} min, loss {loss:.4f}; written: {folder}")
    if not quiet:
        for line in _measured(folder):
            print(line)


def _measured(folder: Path) -> list[str]:
    """What the run came to on its validation and test cases, where it has such; a line each."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    test = folder / "test.json"
    measured = {"validation": rows[-1] if rows else {}, "test": json.loads(test.read_text()) if test.is_file() else {}}
    return [f"mean Dice on the {role} cases {row['dice']:.3f}" for role, row in measured.items() if "dice" in row]
