"""What tests of commands share: running one, a model that is no network, and a scan."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meddelinea.data.preprocess import Preprocessing
from meddelinea.errors import WeightsMissingError
from meddelinea.scan import Scan
from meddelinea.segmentation.model import Model, ModelFiles, read_model_files
from meddelinea.segmentation.predict import Segmentation
from meddelinea.segmentation.sampling import Sampling
from meddelinea.volume import Volume
from support.cli import body, save
from support.scans import a_segmentation
from support.tiny_models import write_pipeline


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose files are read."""
    folder = tmp_path_factory.mktemp("model") / "small"
    write_pipeline(folder, ("liver", "spleen"))
    files = {
        "labels.json": {"labels": {"liver": 1, "spleen": 2}},
        "preprocessing.json": {**asdict(Preprocessing()), "modalities": ["CT"], "least_component_share": 0.0},
        "training_cases.json": {
            role: [{"name": name, "dataset": "btcv", "fingerprint": "0"}]
            for role, name in (("train", "img0001"), ("validation", "img0002"))
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# small\n")
    return folder


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch, model_files: Path) -> dict[str, Any]:
    """FAKE: a model that calls all that is above 20 HU liver and never finds a spleen. Returns what it was asked."""
    asked: dict[str, Any] = {}

    def segment(_: object, scan: Scan, sampling: Sampling, progress: Callable[[int, int], None]) -> Segmentation:
        asked.update(asdict(sampling))
        progress(1, 1)
        mask = Volume((scan.volume.array > 20).astype(np.uint8), scan.volume.affine)
        drawn = {"steps": sampling.steps or 1, "samples": sampling.samples, "seed": sampling.seed}
        return a_segmentation(mask, {"liver": 1, "spleen": 2}, **drawn)

    def load_model(model: str | ModelFiles, device: str) -> Model:
        files = model if isinstance(model, ModelFiles) else read_model_files(model)
        asked.update(model=files.name, device=device)
        return Model(files, SimpleNamespace())

    def model_folder(model: str) -> Path:
        if str(model) not in ("small", str(model_files)):
            raise WeightsMissingError(f"{model}: no such model; expected small or a folder")
        return model_files

    monkeypatch.setattr("meddelinea.segmentation.model.model_folder", model_folder)
    monkeypatch.setattr("meddelinea.segmentation.model.load_model", load_model)
    monkeypatch.setattr("meddelinea.segmentation.predict.segment", segment)
    return asked


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return save(body(), tmp_path / "in" / "scan.nii.gz")


@pytest.fixture
def folder(scan: Path, fake_model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a scan and a damaged one, which are worked on in this process."""
    from meddelinea.folders import batch
    from meddelinea.pool import local
    from meddelinea.segmentation import model, predict

    def here(make: Any, cases: Any, progress: Any, workers: int) -> Any:
        fake_model["workers"] = workers
        return local.in_this_process(make, cases, progress)

    monkeypatch.setattr(local, "on_this_machine", here)
    monkeypatch.setattr(batch, "load_model", model.load_model)  # the fakes: the names were bound before
    monkeypatch.setattr(batch, "segment", predict.segment)
    (scan.parent / "bad.nii.gz").write_bytes(b"no scan")
    return scan.parent
