"""Which library should keep the slices: bytes, seconds to write and random slices per second of each, on real scans.

    pip install 'zarr>=3' webdataset hdf5plugin
    meddelinea prepare --format btcv ../shared/data/btcv stores/btcv-256
    python benchmarks/stores.py stores/btcv-256 /tmp/stores

Every candidate keeps the same bytes of pixels, taken from a prepared store, and hands them over through the same data
loader. Candidates take turns within each round, so that what else the machine does meets all of them alike; the
median of the rounds is printed. "Cold" is after the system was asked to drop the candidate's files from its page
cache. "Reopening" is the rate where each slice opens its case's file anew, as in a store of far more cases than a
process keeps open.
"""

from __future__ import annotations

import io
import shutil
import statistics
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import webdataset
import zarr
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from zarr.codecs import BloscCodec

from meddelinea.benchmark.throughput import BATCH, forget, measure
from meddelinea.data.store import SliceStore

ROUNDS = 5
SLICES = 1600
Pixels = Mapping[str, NDArray[np.uint8]]  # image and mask of a case, (S, size, size) each


class Candidate:
    """A store in another library: `write` keeps a case, `datasets` opens it."""

    def __init__(
        self, folder: Path, counts: list[int], write: Callable[[Path, Pixels], None], opened: Callable[[Path], Any]
    ) -> None:
        self.folder, self.write, self.opened = folder, write, opened
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.keep_open = True
        self.files: dict[int, Any] = {}

    def path(self, case: int) -> Path:
        return self.folder / f"case{case:04d}"

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, number: int) -> tuple[int, int]:
        case = int(np.searchsorted(self.starts, number, side="right")) - 1
        return case, int(number - self.starts[case])

    def datasets(self, case: int) -> Any:
        if case not in self.files or not self.keep_open:
            self.files[case] = self.opened(self.path(case))
        return self.files[case]

    def image(self, case: int, index: int, reach: int) -> NDArray[np.uint8]:
        dataset = self.datasets(case)["image"]
        last = int(self.starts[case + 1] - self.starts[case]) - 1
        wanted = [min(max(index + offset, 0), last) for offset in (-reach, 0, reach)]
        slices = {i: dataset[i] for i in dict.fromkeys(wanted)}
        return np.stack([slices[i] for i in wanted])

    def mask(self, case: int, index: int) -> NDArray[np.uint8]:
        ids: NDArray[np.uint8] = self.datasets(case)["mask"][index]
        return ids


def hdf5(options: Mapping[str, Any]) -> Callable[[Path, Pixels], None]:
    def write(path: Path, pixels: Pixels) -> None:
        with h5py.File(path, "w") as file:
            for kind, values in pixels.items():
                file.create_dataset(kind, data=values, chunks=(1, *values.shape[1:]), **options)

    return write


def open_hdf5(path: Path) -> dict[str, h5py.Dataset]:
    file = h5py.File(path, "r", locking=False, rdcc_nbytes=0)
    return {kind: file[kind] for kind in ("image", "mask")}


def write_zarr(path: Path, pixels: Pixels) -> None:
    group = zarr.open_group(path, mode="w")
    for kind, values in pixels.items():
        chunk = (1, *values.shape[1:])
        group.create_array(kind, data=values, chunks=chunk, shards=values.shape, compressors=BloscCodec(cname="zstd"))


def open_zarr(path: Path) -> dict[str, Any]:
    group = zarr.open_group(path, mode="r")
    return {kind: group[kind] for kind in ("image", "mask")}


def write_tar(path: Path, pixels: Pixels) -> None:
    """A sample a slice, its arrays compressed by numpy: what a reader of whole shards in sequence is given."""
    with tarfile.open(path, "w") as tar:
        for index, (image, mask) in enumerate(zip(pixels["image"], pixels["mask"], strict=True)):
            content = io.BytesIO()
            np.savez_compressed(content, image=image, mask=mask)
            entry = tarfile.TarInfo(f"{index:05d}.npz")
            entry.size = content.tell()
            content.seek(0)
            tar.addfile(entry, content)


def tars_per_second(folder: Path, workers: int) -> float:
    """Slices per second of webdataset's shuffled stream; it has no random access, nor a slice's neighbours."""
    shards = [str(path) for path in sorted(folder.iterdir())]

    def decode(sample: dict[str, Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        arrays = np.load(io.BytesIO(sample["npz"]))
        return np.stack([arrays["image"]] * 3), arrays["mask"]

    stream = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0, empty_check=False)
    stream = stream.repeat().shuffle(500).map(decode).batched(BATCH)
    reader: Iterator[Any] = iter(DataLoader(stream, batch_size=None, num_workers=workers))
    for _ in range(workers):
        next(reader)
    began = time.perf_counter()
    for _ in range(SLICES // BATCH):
        next(reader)
    return SLICES / (time.perf_counter() - began)


def main(prepared: Path, folder: Path) -> None:
    store = SliceStore(prepared)
    counts = [case.slices for case in store.cases]
    checked: dict[str, Any] = {"fletcher32": True}
    gzip = {"compression": "gzip", **checked}
    layouts = {
        "HDF5, none": (hdf5(checked), open_hdf5),
        "HDF5, lzf": (hdf5({"compression": "lzf", **checked}), open_hdf5),
        "HDF5, gzip 1": (hdf5({"compression_opts": 1, **gzip}), open_hdf5),
        "HDF5, gzip 4": (hdf5({"compression_opts": 4, **gzip}), open_hdf5),
        "HDF5, scale-offset": (hdf5({"scaleoffset": 0}), open_hdf5),
        "HDF5, zstd 3 (hdf5plugin)": (hdf5({**hdf5plugin.Zstd(3), **checked}), open_hdf5),
        "HDF5, lz4 (hdf5plugin)": (hdf5({**hdf5plugin.LZ4(), **checked}), open_hdf5),
        "zarr 3, a shard a case, zstd": (write_zarr, open_zarr),
        "webdataset, a tar a case": (write_tar, tarfile.open),
    }
    candidates = {
        name: Candidate(folder / str(number), counts, write, opened)
        for number, (name, (write, opened)) in enumerate(layouts.items())
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    shutil.rmtree(folder, ignore_errors=True)
    for candidate in candidates.values():
        candidate.folder.mkdir(parents=True)
    for case, count in enumerate(counts):
        pixels = {
            "image": np.stack([store.image(case, i, 0)[1] for i in range(count)]),
            "mask": np.stack([store.mask(case, i) for i in range(count)]),
        }
        for name, candidate in candidates.items():
            began = time.perf_counter()
            candidate.write(candidate.path(case), pixels)
            seconds[name].append(time.perf_counter() - began)
    rates: dict[str, dict[str, list[float]]] = {name: {} for name in candidates}
    for _ in range(ROUNDS):
        for name, candidate in candidates.items():
            for label, figure in _measured(name, candidate):
                rates[name].setdefault(label, []).append(figure)
    _print(candidates, seconds, rates, len(counts))


def _measured(name: str, candidate: Candidate) -> Iterator[tuple[str, float]]:
    """One round of a candidate: a figure for each way of reading."""
    if name.startswith("webdataset"):
        forget(candidate.folder)
        yield "single, 2 workers, cold", tars_per_second(candidate.folder, 2)
        for workers in (1, 2):
            yield f"single, {workers} workers", tars_per_second(candidate.folder, workers)
        return
    forget(candidate.folder)
    yield "single, 2 workers, cold", measure(candidate, workers=2, slices=SLICES, reach=0).per_second
    for workers in (1, 2):
        yield f"single, {workers} workers", measure(candidate, workers=workers, slices=SLICES, reach=0).per_second
    yield "neighbours, 2 workers", measure(candidate, workers=2, slices=SLICES, reach=1).per_second
    candidate.keep_open = False
    yield "neighbours, 2 workers, reopening", measure(candidate, workers=2, slices=SLICES, reach=1).per_second
    candidate.keep_open = True


def _print(
    candidates: Mapping[str, Candidate],
    seconds: Mapping[str, list[float]],
    rates: Mapping[str, Mapping[str, list[float]]],
    cases: int,
) -> None:
    labels = list(next(iter(rates.values())))
    print("| | MB a volume | s a volume to write | " + " | ".join(labels) + " |")
    print("| --- " * (3 + len(labels)) + "|")
    for name, candidate in candidates.items():
        size = sum(path.stat().st_size for path in candidate.folder.rglob("*") if path.is_file()) / 1e6 / cases
        row = [f"{size:.2f}", f"{statistics.mean(seconds[name]):.2f}"]
        row += [f"{statistics.median(rates[name][label]):.0f}" if label in rates[name] else "-" for label in labels]
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
