"""Parameters and inference time of several models, one after the other in one run on one machine (Table 4)."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.data.case import Case
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import MedDelineaError
from meddelinea.evaluation.summary import plain
from meddelinea.io.volumes import read_scan
from meddelinea.json_files import read_json
from meddelinea.scan import Scan
from meddelinea.segmentation.model import Model, load_model
from meddelinea.segmentation.predict import segment
from meddelinea.segmentation.sampling import Sampling

#: Images of the larger of the two batches that are timed.
BATCH = 16
#: A measurement is repeated for so many seconds, or so many times; its result is the median.
SECONDS, TIMES = 5.0, 20


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A model: its size, and what a mask takes by its own number of steps."""

    parameters: int  # of all networks that make a mask but an autoencoder, as Table 4 counts them
    trained: int | None  # parameters that its last stage trained; None where it was trained elsewhere
    steps: int | None  # None where it does not sample
    side: int  # rows and columns of its slices
    #: Wall seconds after a warm-up: of an image alone, of each of 16 in a batch, and of a volume from scan to mask.
    image_seconds: float
    batch_seconds: float
    volume_seconds: float


@dataclass(frozen=True)
class Speeds:
    """Models by method, the machine, and the volume that they were timed on."""

    machine: str
    volume: str
    models: Mapping[str, Speed]
    failed: Mapping[str, str]  # why a model was not timed


def measure_speeds(
    models: Mapping[str, tuple[Path, int | None]], case: Case, progress: ShowProgress = unwatched
) -> Speeds:
    """Time models on slices of their own size, and on a volume.

    Parameters
    ----------
    models
        By method: the model's folder, and the parameters that were trained, where known.
    case
        Whose scan is the volume.

    Raises
    ------
    InputRefusedError
        If the scan cannot be read.
    """
    scan = replace(read_scan(case.image), name=case.name, modality=case.modality)
    rows, failed = {}, {}
    for done, (name, (folder, trained)) in enumerate(models.items()):
        progress(f"time {name}", done, len(models))
        try:
            rows[name] = _measure(load_model(folder), trained, scan)
        except MedDelineaError as error:
            failed[name] = str(error)
    shape = " x ".join(map(str, scan.volume.shape))
    return Speeds(machine(), f"{case.dataset} {case.name}, {shape} voxels", rows, failed)


def _measure(model: Model, trained: int | None, scan: Scan) -> Speed:
    sampler, side = model.pipeline.sampler(), model.files.preprocessing.size
    channels = 2 * model.pipeline.neighbour_pairs + 1
    noise = torch.Generator().manual_seed(0)
    images = (2.0 * torch.rand(BATCH, channels, side, side, generator=noise) - 1.0).to(model.pipeline.device)
    keys = [NoiseKey(seed=0, case=0, slice=index, sample=0) for index in range(BATCH)]

    def slices_of(count: int) -> Tensor:
        with Sampling().autocast(images.device.type):  # as in the volume
            return sampler.method.segment(images[:count], keys[:count])

    return Speed(
        parameters=sum(
            weight.numel()
            for role, part in model.pipeline.components.items()
            if isinstance(part, torch.nn.Module) and role != "codec"
            for weight in part.parameters()
        ),
        trained=trained,
        steps=sampler.steps,
        side=side,
        image_seconds=_seconds(lambda: slices_of(1)),
        batch_seconds=_seconds(lambda: slices_of(BATCH)) / BATCH,
        volume_seconds=segment(model, scan).seconds,
    )


def _seconds(work: Callable[[], object]) -> float:
    """Median time of some work that was done once before."""
    times: list[float] = []
    _timed(work)
    while not times or (sum(times) < SECONDS and len(times) < TIMES):
        times.append(_timed(work))
    return median(times)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def machine() -> str:
    """What it is timed on: a GPU where there is one, the processor and its threads, and the version of torch."""
    parts = [f"{torch.get_num_threads()} of {os.cpu_count()} threads of {processor()}"]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name())
    return ", ".join(parts)


def processor() -> str:
    """Name of the processor, and the version of torch."""
    info = Path("/proc/cpuinfo")  # of Linux, where `platform` does not know the processor's name
    lines = info.read_text().splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{named or platform.processor() or platform.machine()}, torch {torch.__version__}"


def speeds_document(speeds: Speeds) -> dict[str, Any]:
    """The measurement as plain JSON types."""
    return plain(vars(speeds))


def read_speeds(path: Path) -> Speeds:
    """The measurement that `speeds_document` made this file of."""
    content = read_json(path)
    return Speeds(**{**content, "models": {name: Speed(**row) for name, row in content["models"].items()}})
