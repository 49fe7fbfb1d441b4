"""How fast a store gives random slices, read as training reads them: by the workers of a data loader."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
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


def slices_per_second(source: Source, *, workers: int, slices: int, reach: int) -> float:
    """Random slices, image and mask, that reach this process in a second.

    Parameters
    ----------
    workers
        Processes that read; 0 reads in this one.
    slices
        How many are read; the first batch of each worker, in whose time it starts, is read besides.
    reach
        Distance of the two neighbours that are read with a slice; 0 reads the slice alone.
    """
    batches = max(1, slices // BATCH)
    ahead = max(1, workers)
    loader = DataLoader(
        RandomSlices(source, reach), batch_size=None, sampler=range(batches + ahead), num_workers=workers
    )
    reader: Iterator[Slices] = iter(loader)
    for _ in range(ahead):
        next(reader)
    began = time.perf_counter()
    for _ in reader:
        pass
    return batches * BATCH / (time.perf_counter() - began)


def forget(folder: Path) -> None:
    """Have the system drop a folder's files from its page cache, so that the next reading comes from the disk.

    It does so where the files are on a local disk of Linux and no other process has them mapped.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
