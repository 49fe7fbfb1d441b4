"""`meddelinea train`: a run file -> a trained stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meddelinea.cli.progress import progress_bar

if TYPE_CHECKING:
    from meddelinea.training.engine import Progress


def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run: stage, data, model, schedule.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeat for more.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Train a stage (codec, base or control) as a run file says."""
    from meddelinea.training.config import load_config
    from meddelinea.training.engine import train as run_stage

    config = load_config(run_file, tuple(overrides or ()))
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task(config.stage, total=None)
        reported: list[Progress] = []

        def report(progress: Progress) -> None:
            # Where a time limit ends the run early, the steps still to come follow from the share that is done.
            total = max(progress.step, round(progress.step / progress.share)) if progress.share > 0 else progress.steps
            loss = f"{config.stage}, loss {progress.figures['total']:.4f}"
            bar.update(task, completed=progress.step, total=total, description=loss)
            if not reported or len(progress.figures) > len(reported[0].figures):  # a step that was validated
                reported.append(progress)
                figures = ", ".join(f"{name} {value:.4g}" for name, value in progress.figures.items())
                if not quiet:
                    bar.console.print(f"step {progress.step}: {figures}", markup=False, highlight=False, soft_wrap=True)

        folder = run_stage(config, resume=resume, report=report)
    if reported and not quiet:  # the main process of several
        print(f"written: {folder}")
