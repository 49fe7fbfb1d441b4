"""How fast a store gives random slices, read as training reads them: by the workers of a data loader."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

BATCH = 16

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
        How many are read, after a first batch of each worker, in whose time it starts.
    reach
        Distance of the two neighbours that are read with a slice; 0 reads the slice alone.
    """
    batches = max(1, slices // BATCH)
    ahead = max(1, workers)
    loader = DataLoader(
        RandomSlices(source, reach), batch_size=None, sampler=range(batches + ahead), num_workers=workers
    )
    before = _processor_seconds()
    reader: Iterator[Slices] = iter(loader)
    for _ in range(ahead):
        next(reader)
    began = time.perf_counter()
    for _ in reader:
        pass
    seconds = time.perf_counter() - began
    processor = _processor_seconds() - before  # the workers have ended, and are counted
    return Rate(batches * BATCH / seconds, 1000.0 * processor / ((batches + ahead) * BATCH))


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
