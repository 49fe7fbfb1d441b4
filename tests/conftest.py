"""What tests share: where the real scans are, and libraries that may log."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli import Run

if "PYTEST_XDIST_WORKER" in os.environ:  # one worker a core: more threads, also of sub-processes, would only contend
    os.environ.setdefault("OMP_NUM_THREADS", "1")


#: Seconds for a test that is marked slow; pyproject.toml has the limit of the others.
SLOW_TIMEOUT = 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests take minutes: each may take an hour before it counts as hanging."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of real labelled scans: `MEDDELINEA_DATA`, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("MEDDELINEA_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "btcv" / "split.json").is_file():
        pytest.skip(f"real scans are absent: {folder} has no btcv/split.json; set MEDDELINEA_DATA")
    return folder


@pytest.fixture(autouse=True)
def logging_enabled() -> Iterator[None]:
    """The command line switches libraries' logging off for its process, which in a test is that of all tests."""
    logging.disable(logging.NOTSET)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `meddelinea WORDS...`: exit code, stdout, stderr."""
    from meddelinea.cli.main import main

    monkeypatch.setattr("logging.disable", lambda level: None)  # process-wide, so it would outlive the test

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, out, err

    return call
