"""A complete model's folder with random weights, and part of a real CT."""

from pathlib import Path

import numpy as np
import pytest

from meddelinea.io.volumes import read_volume
from meddelinea.segmentation.model import Model, load_model
from meddelinea.volume import Volume
from support.tiny_models import write_model


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model's folder with random weights."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(folder: Path) -> Model:
    return load_model(folder, "cpu")


@pytest.fixture(scope="session")
def scan(data: Path) -> Volume:
    """Part of a real abdominal CT: all of the plane at half of its resolution, 18 slices."""
    whole = read_volume(data / "btcv" / "img" / "img0005.nii.gz")
    first = whole.array.shape[2] // 2
    affine = whole.affine @ np.diag([2.0, 2.0, 1.0, 1.0])
    affine[:3, 3] += whole.affine[:3, 2] * first
    return Volume(np.ascontiguousarray(whole.array[::2, ::2, first : first + 18]), affine)
