"""The command `meddelinea serve` in a process of its own, for the tests that speak to it from outside."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support.waiting import PATIENCE


class RunningServer:
    """A running server: its `address`, what it printed, and ways to end it."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "meddelinea", "serve", "--port", "0", "--folder", str(folder), *options]
        self.log = folder.with_suffix(".log")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        self.printed = self.process.stdout.readline()
        assert "http" in self.printed, self.log.read_text()
        self.address = self.printed.split()[-1].partition("#")[0]

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self.process.terminate)

    def kill(self) -> None:
        """End it as a power cut does."""
        self._end(self.process.kill)

    def _end(self, signal: Callable[[], None]) -> None:
        signal()
        self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
