"""What tests of commands share: running one, a model that is no network, and a scan."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from meddelinea.data.preprocess import Preprocessing
from meddelinea.errors import WeightsMissingError
from meddelinea.segmentation.predict import Segmentation
from meddelinea.volume import Volume
from support.cli import body, save


@pytest.fixture
def fake_model(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """FAKE: a model that calls all that is above 20 HU liver and never finds a spleen. Returns what it was asked."""
    asked: dict[str, Any] = {}

    def segment(model: object, volume: Volume, **options: Any) -> Segmentation:
        asked.update(options)
        options["progress"](1, 1)
        mask = Volume((volume.array > 20).astype(np.uint8), volume.affine)
        return Segmentation(
            mask,
            {"liver": 1, "spleen": 2},
            "small",
            "1",
            options["steps"] or 1,
            "ddim",
            options["samples"],
            options["seed"],
            0.5,
        )

    def load_model(model: str, device: str) -> object:
        asked.update(model=model, device=device)
        return SimpleNamespace(files=SimpleNamespace(card="# Fake"))

    folder = tmp_path_factory.mktemp("model")
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

    def model_folder(model: str) -> Path:
        if model != "small":
            raise WeightsMissingError(f"{model}: no such model; expected small or a folder")
        return folder

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
    from meddelinea.pool import local

    def here(make: Any, cases: Any, progress: Any, workers: int) -> Any:
        fake_model["workers"] = workers
        return local.in_this_process(make, cases, progress)

    monkeypatch.setattr(local, "on_this_machine", here)
    monkeypatch.setattr("meddelinea.folders.batch.load_model", lambda model, device: object())
    (scan.parent / "bad.nii.gz").write_bytes(b"no scan")
    return scan.parent
