"""What a store of thousands of volumes costs, on one machine.

    python benchmarks/scale.py volume ../shared/data/btcv /tmp/large       # seconds and memory for one 512x512x400 scan
    python benchmarks/scale.py store stores/btcv-256 /tmp/linked 8000      # a store of so many cases: open, draw, read

`volume` resamples a BTCV case to 512x512x400, adds noise of 12 HU (BTCV's copy is smoothed and clipped, which packs too
well), writes it as a NIfTI file and prepares it with one worker. `store` makes a store of many cases out of a prepared
one by hard links, so that it needs no space: its list, its table and its reading are those of a store of that many
cases, except that the pixels come from the page cache.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from meddelinea.data.resample import resample_labels, resample_linear
from meddelinea.data.store import SliceStore, case_file, read_manifest
from meddelinea.data.store_writer import begin_store, compile_store, write_record
from meddelinea.io.nifti import write_nifti
from meddelinea.io.volumes import read_volume
from meddelinea.volume import Volume

SHAPE = (512, 512, 400)
SKETCH = "0" * 4096  # as long as a robust fingerprint may be


def volume(data: Path, folder: Path) -> None:
    """Seconds and peak memory of preparing one large scan."""
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("img", "label"):
        (folder / "btcv" / kind).mkdir(parents=True)
    scan, mask = read_volume(data / "img" / "img0005.nii.gz"), read_volume(data / "label" / "label0005.nii.gz")
    affine = scan.affine @ np.diag([*((n - 1) / (m - 1) for n, m in zip(scan.array.shape, SHAPE, strict=True)), 1.0])
    large = resample_linear(scan, affine, SHAPE, outside=-125.0).array
    large += np.random.default_rng(0).normal(0.0, 12.0, SHAPE).astype(np.float32)
    files = (folder / "btcv" / "img" / "img0005.nii.gz", folder / "btcv" / "label" / "label0005.nii.gz")
    write_nifti(Volume(np.rint(large).astype(np.int16), affine), files[0])
    write_nifti(resample_labels(mask, affine, SHAPE), files[1])
    del large
    words = ["prepare", "--format", "btcv", "--workers", "1", str(folder / "btcv"), str(folder / "store")]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "meddelinea", *words], check=True)
    seconds = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    case = read_manifest(folder / "store").cases[0]
    print(f"source: {'x'.join(map(str, SHAPE))}, {sum(path.stat().st_size for path in files) / 1e6:.0f} MB")
    print(f"stored: {case.slices} slices, {case_file(folder / 'store', case.name).stat().st_size / 1e6:.1f} MB")
    print(f"time: {seconds:.1f} s, {usage.ru_utime + usage.ru_stime:.1f} s of processor, start of Python included")
    print(f"peak memory of the worker: {usage.ru_maxrss / 1024:.0f} MiB")


def store(prepared: Path, folder: Path, count: int) -> None:
    """Time and memory of a store of `count` cases."""
    shutil.rmtree(folder, ignore_errors=True)
    few = read_manifest(prepared)
    begin_store(folder, few.organs, few.preprocessing)
    for number in range(count):
        case = few.cases[number % len(few.cases)]
        name = f"case{number:06d}"
        os.link(case_file(prepared, case.name), case_file(folder, name))
        write_record(folder, replace(case, name=name, sketch=SKETCH))
    began = time.perf_counter()
    compile_store(folder)
    print(f"compiled at the end of a preparation: {time.perf_counter() - began:.1f} s")
    sizes = {name: (folder / name).stat().st_size / 1e6 for name in ("cases.jsonl", "organ_pixels.npy")}
    print(", ".join(f"{name} {size:.0f} MB" for name, size in sizes.items()))
    process = multiprocessing.get_context("spawn").Process(target=_use, args=(folder,))
    process.start()
    process.join()


def _use(folder: Path) -> None:
    from meddelinea.benchmark.throughput import measure
    from meddelinea.training.batches import TrainingBatches
    from meddelinea.training.config import DataConfig

    before, began = _peak(), time.perf_counter()
    slices = SliceStore(folder)
    opened = time.perf_counter()
    names = tuple(case.name for case in slices.cases)
    config = DataConfig(store=folder, train=names, rare_organ_share=0.5, empty_share=0.1)
    batches = TrainingBatches(slices, config, batch_size=1, noise_channels=4, seed=0, rank=0, processes=1)
    built = time.perf_counter()
    print(f"{len(slices.cases)} cases, {len(slices)} slices: store opened in {opened - began:.1f} s")
    print(f"training batches built in {built - opened:.1f} s; peak memory grew by {_peak() - before:.0f} MiB")
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    for _ in range(2000):
        batches._pick(rng)
    print(f"a slice drawn in {(time.perf_counter() - began) / 2000 * 1e6:.0f} microseconds")
    for name, reach in (("single slices", 0), ("with two neighbours", 1)):
        rate = measure(slices, workers=2, slices=4000, reach=reach)
        print(
            f"{name}: {rate.per_second:.0f} a second, 2 workers, nearly every slice opens a file; "
            f"{rate.processor_ms:.2f} ms of processor a slice"
        )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if sys.argv[1] == "volume":
        volume(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        store(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
