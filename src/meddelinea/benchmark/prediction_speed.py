"""From a scan's file to the mask's: MedDelinea beside its peers, in one run on one machine, on the processor.

Each row is a process of its own, so that it starts as a user's command does: cold is from its start to the mask, warm
the second mask in the same process. What holds on other machines is the ratio of two rows, not the seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.benchmark.speed import processor
from meddelinea.errors import MedDelineaError
from meddelinea.evaluation.summary import plain
from meddelinea.io.volumes import read_scan
from meddelinea.segmentation.model import read_model_files

#: Sides of the matrices that the machine's rate is measured with, and times that they are multiplied.
SIDE, TIMES = 2048, 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method with so many threads."""

    method: str
    threads: int
    cold: float  # seconds
    warm: float
    precision: str | None = None
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # of `cold` and `warm`, where known


@dataclass(frozen=True)
class PredictionSpeeds:
    """The rows, MedDelinea's in its chosen precision first, the processor, and the scan.

    `rates` are the processor's matrix products in 10^9 operations a second, by precision and threads.
    """

    processor: str
    scan: str
    rates: Mapping[str, Mapping[int, float]]
    rows: Sequence[Row]
    failed: Mapping[str, str]


def prediction_speeds(
    scan: Path,
    model: str,
    command: Sequence[str],
    peers: Sequence[str],
    threads: Sequence[int],
    progress: ShowProgress = unwatched,
) -> PredictionSpeeds:
    """Time a model in each precision, other models, and nnU-Net v2 where it is installed, with each number of threads.

    Parameters
    ----------
    scan
        A NIfTI file that the models take.
    model, peers
        As `load_model` takes them.
    command
        Arguments for Python that segment with the model as a user's command does, but for input and output.

    Raises
    ------
    InputRefusedError
        If the scan cannot be read.
    WeightsMissingError
        If there is no such model.
    """
    shape = " x ".join(map(str, read_scan(scan).volume.shape))
    organs = len(read_model_files(model).labels)
    ours = "meddelinea.benchmark.timed_predict"
    programs = {
        "MedDelinea": (ours, model, "auto"),
        "MedDelinea, float32": (ours, model, "float32"),
        **{f"{read_model_files(peer).name} ({peer})": (ours, peer, "auto") for peer in peers},
    }
    failed = {}
    if find_spec("nnunetv2") is None:
        failed["nnU-Net v2"] = "not installed; pip install nnunetv2"
    else:
        theirs = "meddelinea.benchmark.timed_nnunet"
        programs["nnU-Net v2, 2D"] = (theirs, "2d", str(organs))
        programs["nnU-Net v2, 3D at 3 mm"] = (theirs, "3d", str(organs))

    rows = []
    tasks = [(count, method) for count in threads for method in programs]
    for done, (count, method) in enumerate(tasks):
        progress(f"{method}, {count} threads", done, len(tasks))
        module, *arguments = programs[method]
        try:
            began, passes = _passes([module, str(scan), *arguments], count)
        except MedDelineaError as error:
            failed[method] = str(error)
            continue
        cold, warm = passes
        seconds = _command_seconds(command, scan, count) if method == "MedDelinea" else cold["ended"] - began
        rows.append(
            Row(
                method=method,
                threads=count,
                cold=seconds,
                warm=warm["seconds"],
                precision=cold.get("precision"),
                stages={"cold": cold["stages"], "warm": warm["stages"]} if "stages" in cold else {},
            )
        )
    return PredictionSpeeds(processor(), f"{scan.name}, {shape} voxels", _rates(threads), rows, failed)


def _passes(program: Sequence[str], threads: int) -> tuple[float, list[dict[str, Any]]]:
    """When a program was started, and what it printed of its two passes."""
    began = time.time()
    done = _run(["-m", *program], threads)
    return began, [json.loads(line) for line in done.splitlines() if line.startswith("{")]


def _command_seconds(command: Sequence[str], scan: Path, threads: int) -> float:
    """Seconds of a command that makes a mask of a scan."""
    with tempfile.TemporaryDirectory() as folder:
        mask = Path(folder) / "mask.nii.gz"
        began = time.monotonic()
        _run([*command, "-i", str(scan), "-o", str(mask)], threads)
        return time.monotonic() - began


def _run(arguments: Sequence[str], threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MedDelineaError(f"exit code {done.returncode}: {last}")
    return done.stdout


def _rates(threads: Sequence[int]) -> dict[str, dict[int, float]]:
    """10^9 operations a second in products of two square matrices."""
    found: dict[str, dict[int, float]] = {}
    before = torch.get_num_threads()
    try:
        for dtype in (torch.float32, torch.bfloat16):
            matrix = torch.randn(SIDE, SIDE).to(dtype)
            for count in threads:
                torch.set_num_threads(count)
                _ = matrix @ matrix
                began = time.perf_counter()
                for _ in range(TIMES):
                    _ = matrix @ matrix
                rate = TIMES * 2 * SIDE**3 / (time.perf_counter() - began) / 1e9
                found.setdefault(str(dtype).removeprefix("torch."), {})[count] = rate
    finally:
        torch.set_num_threads(before)
    return found


def prediction_speed_lines(speeds: PredictionSpeeds) -> list[str]:
    """The measurement as Markdown: a row for each method and number of threads, the times of MedDelinea beside it."""
    ours = {row.threads: row for row in speeds.rows if row.method == "MedDelinea"}
    lines = [
        f"{speeds.scan}; {speeds.processor}",
        "",
        "| method | threads | precision | cold, s | warm, s | cold, times MedDelinea's | warm, times MedDelinea's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in speeds.rows:
        base = ours.get(row.threads)
        ratios = ("", "") if base is None else (f"{row.cold / base.cold:.1f}", f"{row.warm / base.warm:.1f}")
        cells = (row.method, str(row.threads), row.precision or "", f"{row.cold:.1f}", f"{row.warm:.1f}", *ratios)
        lines.append(f"| {' | '.join(cells)} |")
    for row in ours.values():
        lines += ["", f"| stages, {row.threads} threads | first mask, s | second, s |", "| --- | --- | --- |"]
        for stage, seconds in row.stages["cold"].items():
            again = row.stages["warm"].get(stage)
            lines.append(f"| {stage} | {seconds:.1f} | {'' if again is None else f'{again:.1f}'} |")
    lines += ["", "| matrix products, 10^9 operations a second | threads | rate |", "| --- | --- | --- |"]
    for precision, by_threads in speeds.rates.items():
        lines += [f"| {precision} | {count} | {rate:,.0f} |" for count, rate in by_threads.items()]
    lines += ["", *(f"not timed: {method}: {reason}" for method, reason in speeds.failed.items())]
    return lines


def prediction_speed_document(speeds: PredictionSpeeds) -> dict[str, Any]:
    """The measurement as plain JSON types."""
    return plain(vars(speeds))
