"""`meddelinea benchmark speed`: how long a mask takes, beside other models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from meddelinea.cli.options import ModelOption, names
from meddelinea.cli.progress import reporting, silence_diffusers
from meddelinea.errors import PartialFailureError, UsageError
from meddelinea.files import write_json, write_text


def speed(
    scan: Annotated[Path, Argument(metavar="SCAN", help="A CT as NIfTI.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="Folder for speed.md and speed.json.")],
    model: ModelOption = "small",
    peers: Annotated[
        list[str] | None, Option("--peer", metavar="MODEL", help="Another model; may be repeated.")
    ] = None,
    threads: Annotated[str, Option(metavar="N,N", help="Numbers of threads.")] = "1,2",
    quiet: Annotated[bool, Option("--quiet", "-q", help="Hide the progress bar.")] = False,
) -> None:
    """Time predict and its peers, from file to mask.

    All in one run, on the processor. Peers are nnU-Net v2's own predictor with random weights, in 2D and in 3D at 3 mm,
    where nnunetv2 is installed, and models that are named. Only ratios hold on other machines, and only where nothing
    else runs on this one.
    """
    try:
        counts = tuple(int(word) for word in names(threads, "threads") or ())
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise UsageError(f"{threads}: expected whole numbers from 1, such as 1,2", parameter="threads")
    with reporting(hidden=quiet) as report:
        silence_diffusers()
        from meddelinea.benchmark.prediction_speed import (
            prediction_speed_document,
            prediction_speed_lines,
            prediction_speeds,
        )

        command = ("-m", "meddelinea", "predict", "--model", model, "-q")
        speeds = prediction_speeds(scan, model, command, peers or (), counts, report)
    output.mkdir(parents=True, exist_ok=True)
    write_json(prediction_speed_document(speeds), output / "speed.json")
    text = "\n".join(prediction_speed_lines(speeds)) + "\n"
    write_text(text, output / "speed.md")
    print(text)
    if any(name != "nnU-Net v2" for name in speeds.failed):
        raise PartialFailureError(f"{len(speeds.failed)} methods could not be timed")
