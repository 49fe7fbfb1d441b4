"""How fast a run's batches are made, beside how fast they are trained on: whether training waits for its data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from meddelinea.data.store import SliceStore
from meddelinea.methods.protocol import Batch
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.cases import choose_cases
from meddelinea.training.config import RunConfig
from meddelinea.training.stages import build_stage

#: Batches, or training steps, before those that are timed: the first open files and start workers.
WARM_UP = 2
#: Batches that each worker process makes ahead.
AHEAD = 2


@dataclass(frozen=True)
class Loading:
    """Seconds that a run's batches take, by the number of worker processes that make them.

    Parameters
    ----------
    batch_size
        Slices in a batch.
    read, augmented
        Workers -> seconds a batch: its slices as the store has them, and as training takes them.
    step
        Seconds of a training step on a batch that is there already: losses, gradients and optimiser.
    device
        What the step ran on.
    """

    batch_size: int
    read: dict[int, float]
    augmented: dict[int, float]
    step: float
    device: str


def measure_loading(config: RunConfig, batches: int, workers: tuple[int, ...] = (0, 2)) -> Loading:
    """Time a run's batches and training steps on this machine; nothing is written.

    Parameters
    ----------
    batches
        How many of each are timed, after a few that are not.
    workers
        Numbers of worker processes to try; 0: batches are made in this process, as steps are.
    """
    store = SliceStore(config.data.store, choose_cases(config.data).train)
    dataset = TrainingBatches(store, config.data, config.batch_size, config.seed, rank=0, processes=1)
    read, augmented = (
        {count: _seconds_a_batch(source, batches, count) for count in workers} for source in (_Slices(dataset), dataset)
    )
    step, device = _seconds_a_step(config, dataset, batches)
    return Loading(config.batch_size, read, augmented, step, device)


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


def _seconds_a_batch(dataset: Dataset[Any], batches: int, workers: int) -> float:
    """In the steady state: the last timed batch leaves as many made ahead as the first one found."""
    drawn = range(WARM_UP + batches + AHEAD * workers)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, sampler=drawn, num_workers=workers, prefetch_factor=AHEAD if workers else None
    )
    made = iter(loader)
    for _ in islice(made, WARM_UP):
        pass
    began = time.monotonic()
    for _ in islice(made, batches):
        pass
    return (time.monotonic() - began) / batches


def _seconds_a_step(config: RunConfig, dataset: TrainingBatches, steps: int) -> tuple[float, str]:
    """Seconds of a step of the bare training loop on batches of all the run's resolutions, and the device."""
    accelerator = Accelerator(mixed_precision=config.precision)
    stage: Any = build_stage(config, dataset.store.manifest.organs)
    stage.to(memory_format=torch.channels_last)
    parameters = [p for p in stage.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, config.optimiser.learning_rate)
    stage, optimiser = accelerator.prepare(stage, optimiser)
    ready = [
        Batch(*(tensor.to(accelerator.device) for tensor in dataset[number])) for number in range(len(dataset.factors))
    ]
    stage.train()
    began = 0.0
    for number, batch in enumerate(islice(cycle(ready), WARM_UP + steps)):
        if number == WARM_UP:
            began = time.monotonic()
        with accelerator.autocast():
            loss = stage(batch)["total"]
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, config.optimiser.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        loss.item()  # waits for the device
    return (time.monotonic() - began) / steps, str(accelerator.device)
