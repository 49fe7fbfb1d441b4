"""How fast a run's batches are made, beside how fast they are trained on: whether training waits for its data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from meddelinea.benchmark.throughput import WARM_UP, seconds_a_batch
from meddelinea.methods.protocol import Batch
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.config import RunConfig
from meddelinea.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Loading:
    """Seconds that a run's batches take, by the number of worker processes that make them."""

    batch_size: int  # slices in a batch
    #: Workers -> seconds a batch: its slices as the store has them, and as training takes them.
    read: dict[int, float]
    augmented: dict[int, float]
    #: Seconds that the run's own step takes a batch that is there already: losses, gradients and, over the batches
    #: that are accumulated, optimiser and moving average.
    step: float
    device: str  # what the step ran on


def measure_loading(config: RunConfig, batches: int, workers: tuple[int, ...] = (0, 2)) -> Loading:
    """Time a run's batches and training steps on this machine; nothing is written.

    Parameters
    ----------
    batches
        How many of each are timed, after a few that are not.
    workers
        Numbers of worker processes to try; 0: batches are made in this process, as steps are.
    """
    run = Run(config)
    read, augmented = (
        {count: seconds_a_batch(source, batches, count)[0] for count in workers}
        for source in (_Slices(run.dataset), run.dataset)
    )
    step = _seconds_a_step(run, batches)
    return Loading(batch_size=config.batch_size, read=read, augmented=augmented, step=step, device=str(run.device))


class _Slices(Dataset[tuple[Tensor, Tensor]]):
    """The slices of a run's batches, read and no more."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        store, data = self.batches.store, self.batches.config
        places = self.batches.slices(step)
        images = np.stack([store.image(case, index, data.neighbours, data.neighbour_pairs) for case, index in places])
        masks = np.stack([store.mask(case, index) for case, index in places])
        return torch.from_numpy(images), torch.from_numpy(masks)


def _seconds_a_step(run: Run, batches: int) -> float:
    """Seconds of the run's own optimiser steps, a batch, on batches of all its resolutions that are there already."""
    ready = [
        Batch(*(tensor.to(run.device) for tensor in run.dataset[number])) for number in range(len(run.dataset.factors))
    ]
    run.batches = cycle(ready)
    for _ in range(max(WARM_UP, len(ready))):
        run.step()
    began, steps = time.monotonic(), max(1, batches // run.config.accumulation)
    for _ in range(steps):
        run.step()  # its figures wait for the device
    return (time.monotonic() - began) / (steps * run.config.accumulation)
