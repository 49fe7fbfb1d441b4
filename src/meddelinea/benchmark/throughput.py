"""How fast a store gives random slices, read as training reads them: by the workers of a data loader."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

BATCH = 16
#: Batches before those that are timed: the first open files and start workers.
WARM_UP = 2
#: Batches that each worker process makes ahead.
AHEAD = 2

#: Bytes of slices: images and masks of a batch.
Slices = tuple[torch.Tensor, torch.Tensor]


class Source(Protocol):
    """What is measured: a `SliceStore`, or another store with its three methods."""

    def __len__(self) -> int: ...

    def place(self, number: int) -> tuple[int, int]: ...

    def image(self, case: int, index: int, reach: int) -> NDArray[np.uint8]: ...

    def mask(self, case: int, index: int) -> NDArray[np.uint8]: ...


class RandomSlices(Dataset[Slices]):
    """Item b is a batch of slices drawn at random from all of a store, the same in any process."""

    def __init__(self, source: Source, reach: int) -> None:
        self.source = source
        self.reach = reach

    def __getitem__(self, batch: int) -> Slices:
        numbers = np.random.default_rng(batch).integers(len(self.source), size=BATCH)
        places = [self.source.place(int(number)) for number in numbers]
        images = np.stack([self.source.image(case, index, self.reach) for case, index in places])
        masks = np.stack([self.source.mask(case, index) for case, index in places])
        return torch.from_numpy(images), torch.from_numpy(masks)


@dataclass(frozen=True)
class Rate:
    """Random slices, image and mask, that reached this process in a second, and what one cost.

    The processor's time of all processes, in milliseconds, is the figure to compare on a machine that others use too:
    N free cores give at most N / `processor_ms` * 1000 slices a second.
    """

    per_second: float
    processor_ms: float


def measure(source: Source, *, workers: int, slices: int, reach: int) -> Rate:
    """Read random slices.

    Parameters
    ----------
    workers
        Processes that read; 0 reads in this one.
    slices
        How many are read, after a few batches in whose time the workers start.
    reach
        Distance of the two neighbours that are read with a slice; 0 reads the slice alone.
    """
    seconds, processor = seconds_a_batch(RandomSlices(source, reach), max(1, slices // BATCH), workers)
    return Rate(BATCH / seconds, 1000.0 * processor / BATCH)


def seconds_a_batch(dataset: Dataset[Any], batches: int, workers: int) -> tuple[float, float]:
    """Wall time and processor time of a batch that a data loader makes, in the steady state.

    The last timed batch leaves as many made ahead as the first one found.

    Parameters
    ----------
    dataset
        Item b is a batch.
    batches
        How many are timed.
    workers
        Processes that make them; 0 makes them in this one.
    """
    drawn = range(WARM_UP + batches + AHEAD * workers)
    before = _processor_seconds()
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=None, sampler=drawn, num_workers=workers, prefetch_factor=AHEAD if workers else None
    )
    made = iter(loader)
    _exhaust(islice(made, WARM_UP))
    began = time.monotonic()
    _exhaust(islice(made, batches))
    seconds = time.monotonic() - began
    _exhaust(made)  # until the workers have ended, and are counted
    return seconds / batches, (_processor_seconds() - before) / len(drawn)


def _exhaust(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def _processor_seconds() -> float:
    """User's and system's time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def forget(folder: Path) -> None:
    """Have the system drop a folder's files from its page cache, so that the next reading comes from the disk.

    It does so where the files are on a local disk of Linux and no other process has them mapped.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
