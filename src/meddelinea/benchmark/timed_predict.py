"""`predict` from file to mask, timed stage by stage, twice in one process.

Run as a program by `benchmark.prediction_speed`: `python -m meddelinea.benchmark.timed_predict SCAN MODEL PRECISION`.
It prints an object for each pass: when it ended, its seconds, and those of its stages. The first pass has the imports
and the loading of the model, one after the other, unlike `predict`, which reads the scan meanwhile.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast


class _Watch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.monotonic()

    def __call__(self, stage: str) -> None:
        """The stage that has just ended."""
        now = time.monotonic()
        self.stages[stage] = now - self._last
        self._last = now


def main() -> None:
    """Segment a scan twice, with everything loaded the second time."""
    watch = _Watch()
    from meddelinea.checks.scan import examine, require_accepted
    from meddelinea.io.volumes import read_scan
    from meddelinea.results.result import Result
    from meddelinea.segmentation.model import load_model
    from meddelinea.segmentation.predict import segment
    from meddelinea.segmentation.sampling import Precision, Sampling

    watch("imports")
    source, name, precision = Path(sys.argv[1]), sys.argv[2], cast(Precision, sys.argv[3])
    model = load_model(name, "cpu")
    watch("model")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            scan = examine(read_scan(source), model.files.limits)
            require_accepted(scan)
            watch("reading and checks")
            segmentation = segment(model, scan, Sampling(precision=precision))
            watch("segmenting")
            Result.of(scan, segmentation).save(Path(folder) / "mask.nii.gz", overwrite=True)
            watch("measuring and writing")
            made: dict[str, Any] = {"ended": time.time(), "seconds": sum(watch.stages.values()), "stages": watch.stages}
            print(json.dumps({**made, "precision": segmentation.precision}), flush=True)
            watch.stages = {}


if __name__ == "__main__":
    main()
