"""What the tests of training stand on: slices, and a codec and a DiT of a few steps.

Models here have 32 channels and slices 64 pixels, so a step takes milliseconds; they learn nothing.
"""

from pathlib import Path

import pytest

from support.tiny_models import run_config, write_blobs
from support.training_runs import train


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="session")
def parts(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A codec and a DiT, trained for a few steps each: what the control stage stands on."""
    folder = tmp_path_factory.mktemp("parts")
    codec = train(run_config("codec", store, folder / "codec", data={"crop": 32})) / "codec"
    dit = train(run_config("base", store, folder / "base", model={"codec": codec})) / "dit"
    return {"codec": codec, "dit": dit}
