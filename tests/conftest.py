"""What every test shares: where the real scans are."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core: more threads, also of sub-processes, would only contend
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real labelled scans: `MEDDELINEA_DATA`, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("MEDDELINEA_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "btcv" / "split.json").is_file():
        pytest.skip(f"real scans are absent: {folder} has no btcv/split.json; set MEDDELINEA_DATA")
    return folder
