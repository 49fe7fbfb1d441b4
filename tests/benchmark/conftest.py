"""A benchmark of two methods on five small scans."""

import json
from pathlib import Path

import numpy as np
import pytest

from meddelinea.benchmark.bench_file import BenchFile, read_bench_file
from meddelinea.data.prepare import prepare_store
from meddelinea.data.preprocess import Preprocessing
from meddelinea.io.volumes import write_volume
from meddelinea.volume import Volume
from support.benchmarks import TEST, TRAIN
from support.tiny_models import ORGANS, SIDE, run_config


@pytest.fixture(scope="session")
def bench_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of two methods on five small scans, in the layout of pairs; each early stage has two steps."""
    root = tmp_path_factory.mktemp("bench")
    source = root / "scans"
    for folder in ("images", "labels"):
        (source / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*TRAIN, *TEST):
        mask = np.zeros((48, 48, 6), np.uint8)
        for organ in (1, 2, 3) if name != "e" else (1, 2):
            row, column = 11 * organ + rng.integers(-2, 3, 2)
            mask[row - 4 : row + 5, column - 4 : column + 5, 1:5] = organ
        array = (100.0 * mask - 100.0 + rng.normal(0, 10, mask.shape)).astype(np.float32)
        affine = np.diag([8.0, 8.0, 5.0, 1.0])
        write_volume(Volume(array, affine), source / "images" / f"{name}.nii.gz")
        write_volume(Volume(mask, affine), source / "labels" / f"{name}.nii.gz")
    labels = {organ: index for index, organ in enumerate(ORGANS, start=1)}
    (source / "labels.json").write_text(json.dumps({"modality": "CT", "labels": labels}))
    prepare_store("pairs", source, root / "store", preprocessing=Preprocessing(size=SIDE, spacing_mm=6.0))
    same = {"steps": 2, "checkpoint_minutes": 1e-9}  # a checkpoint after every step
    runs = {
        "codec": run_config("codec", root / "store", root / "unused", data={"crop": 32}, **same),
        "base": run_config("base", root / "store", root / "unused", **same),
        "control": run_config(
            "model", root / "store", root / "unused", data={"validation": ("d",)}, precision="bf16", **same
        ),
    }
    network = {"method": "unet", "sizes": {"widths": [4, 8, 8]}}
    runs["unet"] = run_config("model", root / "store", root / "unused", model=network, **same)
    for name, config in runs.items():
        (root / f"{name}.yaml").write_text(config.model_dump_json())
    bench = {
        "format": "pairs",
        "source": str(source),
        "store": str(root / "store"),
        "train": TRAIN,
        "test": TEST,
        "cpu_minutes": 1.5,
        "methods": {"Med Delinea": ["codec.yaml", "base.yaml", "control.yaml"], "U-Net": ["unet.yaml"]},
    }
    (root / "bench.yaml").write_text(json.dumps(bench))
    return root / "bench.yaml"


@pytest.fixture
def bench(bench_file: Path) -> BenchFile:
    return read_bench_file(bench_file)
