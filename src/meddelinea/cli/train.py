"""`meddelinea train`, a run file -> a trained stage, and `meddelinea curves`, logs of such runs -> a figure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from meddelinea.cli.options import OverridesOption, QuietOption
from meddelinea.cli.progress import progress_bar, silence_diffusers, status
from meddelinea.files import ensure_writable

if TYPE_CHECKING:
    from meddelinea.training.engine import Progress


def train(
    run_file: Annotated[Path, Argument(metavar="RUN.yaml", help="Run file: stage, data, model, schedule.")],
    overrides: OverridesOption = None,
    resume: Annotated[bool, Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Train a stage as a run file describes it.

    The stages are codec, base and model.
    """
    with status("starting", hidden=quiet):
        from accelerate import PartialState

        from meddelinea.training.cases import mixed_datasets, refused_cases
        from meddelinea.training.curves import write_curves
        from meddelinea.training.engine import train as run_stage
        from meddelinea.training.run_file import load_config

    config = load_config(run_file, tuple(overrides or ()))
    for warning in (*mixed_datasets(config), *refused_cases(config)):
        print(f"warning: {warning}", file=sys.stderr)
    silence_diffusers()
    last: Progress | None = None
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task(config.stage, total=None)
        for last in run_stage(config, resume=resume):
            if not PartialState().is_main_process:  # known once the run has started
                continue
            # If a time limit ends the run early, the number of steps follows from the share that is done.
            total = max(last.step, round(last.step / last.share)) if last.share > 0 else last.steps
            description = f"{config.stage}, loss {last.figures['total']:.4f}"
            bar.update(task, completed=last.step, total=total, description=description)
            if "dice" in last.figures and not quiet:  # a step that was validated
                figures = ", ".join(f"{name} {value:.4g}" for name, value in last.figures.items())
                bar.console.print(f"step {last.step}: {figures}", markup=False, highlight=False, soft_wrap=True)
    if not PartialState().is_main_process:
        return
    folder = config.output
    if last is not None:  # a run that trains
        write_curves([folder], folder / "curves.png")
    if not quiet and last is not None:
        minutes, loss = last.seconds / 60, last.figures["total"]
        print(f"{last.step} steps in {minutes:.1f} min, loss {loss:.4f}; written: {folder}")
    if not quiet:
        for line in _measured(folder):
            print(line)


def _measured(folder: Path) -> list[str]:
    """The figures of the run on its validation and test cases, if it has such; one line each."""
    from meddelinea.json_files import read_json
    from meddelinea.training.metrics_log import MetricsLog

    rows, test = MetricsLog(folder).read(), folder / "test.json"
    measured = {"validation": rows[-1] if rows else {}, "test": read_json(test) if test.is_file() else {}}
    lines = []
    for role, row in measured.items():
        if "dice" in row:
            lines.append(f"mean Dice on the {role} cases {row['dice']:.3f}")
        if "image_psnr" in row:
            lines.append(f"image PSNR on the {role} cases {row['image_psnr']:.1f} dB")
    return lines


def curves(
    runs: Annotated[list[Path], Argument(metavar="RUN_FOLDER", help="Folders of training runs.")],
    output: Annotated[Path, Option("-o", "--output", metavar="FILE", help="The figure, a PNG file.")],
) -> None:
    """Plot loss and validation Dice of training runs.

    The figure of a single run shows the terms of its loss too.
    """
    ensure_writable(output, (".png",))
    with status("drawing"):
        from meddelinea.training.curves import write_curves

        write_curves(runs, output)
    print(f"written: {output}")
