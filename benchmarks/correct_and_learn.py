"""The loop of the server on real data: segment, correct one mask to its reference, learn from it, segment the others.

    python benchmarks/correct_and_learn.py --model MODEL --format chaos-nifti ../shared/data/chaos_mr

The first scans are segmented, the first of them is corrected, and the model adapts to it. Printed is the mean Dice of
each organ on all scans but that one, before and after. The model must take scans of the dataset's modality.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from meddelinea.data.case import LabelledScan, read_case
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.evaluation.metrics import dice
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.serving.app import create_app
from meddelinea.volume import Volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--format", default="chaos-nifti")
    parser.add_argument("--first", type=int, default=5, help="scans that are segmented before one is corrected")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--slices", type=int, default=0, help="take so many slices of the middle only; 0 takes all")
    parser.add_argument("--cases", type=int, default=0, help="take so many cases only; 0 takes all")
    arguments = parser.parse_args()

    found = find_cases(arguments.format, arguments.data).cases[: arguments.cases or None]
    organs = organs_of(found)
    scans = [part(read_case(case, organs), arguments.slices) for case in found]
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Path(folder) / "server", arguments.model)
        with TestClient(app, base_url="http://127.0.0.1:8000") as client:
            loop = Loop(client, Path(folder))
            jobs = {scan.scan.name: loop.segment(scan) for scan in scans[: arguments.first]}
            corrected, others = scans[0], scans[1:]
            changes = loop.correct(jobs[corrected.scan.name], corrected)["changes"]
            print(f"corrected: {corrected.scan.name}")
            for organ, change in changes.items():
                print(f"  {organ}: {change['added_ml']:.1f} ml added, {change['removed_ml']:.1f} ml removed")
            learnt = loop.learn(arguments.steps)
            print(f"learnt: {learnt['model']}, {learnt['steps']} steps; {learnt['check']}")
            if learnt["model"] is None:
                return
            before = [score(loop, scan, jobs.get(scan.scan.name) or loop.segment(scan)) for scan in others]
            after = [score(loop, scan, loop.segment(scan, learnt["model"])) for scan in others]
    for organ in organs:
        print(f"{organ}: {mean(before, organ):.3f} -> {mean(after, organ):.3f}")
    means = [np.nanmean([mean(rows, organ) for organ in organs]) for rows in (before, after)]
    print(f"mean over {len(others)} scans: {means[0]:.3f} -> {means[1]:.3f}")


class Loop:
    """The requests of the loop."""

    def __init__(self, client: TestClient, folder: Path) -> None:
        self._client, self._folder = client, folder

    def segment(self, labelled: LabelledScan, model: str = "") -> dict[str, Any]:
        """Send a scan, and wait for its mask."""
        path = self._folder / "scan.nii"
        write_volume(labelled.volume, path)
        params = {"modality": str(labelled.scan.modality), "model": model}
        return self._done(self._client.post("/api/jobs", params=params, content=path.read_bytes()).json())

    def correct(self, job: dict[str, Any], labelled: LabelledScan) -> dict[str, Any]:
        """Send the reference as the corrected mask."""
        path = self._folder / "reference.nii.gz"
        write_volume(labelled.mask, path)
        labels = json.dumps({name: index for index, name in enumerate(labelled.organs, start=1)})
        form = {"labels": labels, "comment": "the reference"}
        where = f"/api/jobs/{job['id']}/corrections"
        return self._done(self._client.post(where, data=form, files={"mask": path.read_bytes()}).json())

    def learn(self, steps: int) -> dict[str, Any]:
        """Learn from what was corrected."""
        learnt: dict[str, Any] = self._done(self._client.post("/api/learnings", params={"steps": steps}).json())[
            "learnt"
        ]
        return learnt

    def mask(self, job: dict[str, Any]) -> tuple[Volume, dict[str, int]]:
        """The mask of a job, and its labels."""
        path = self._folder / "mask.nii.gz"
        path.write_bytes(self._client.get(f"/api/jobs/{job['id']}/files/mask.nii.gz").content)
        return read_volume(path), self._client.get(f"/api/jobs/{job['id']}/files/mask.json").json()["labels"]

    def _done(self, job: dict[str, Any]) -> dict[str, Any]:
        while job["state"] in ("queued", "running"):
            time.sleep(0.5)
            job = self._client.get(f"/api/jobs/{job['id']}").json()
        if job["state"] != "done":
            raise SystemExit(f"{job['kind']} {job['state']}: {job['message']}")
        return job


def part(labelled: LabelledScan, slices: int) -> LabelledScan:
    """The middle slices of a scan; the whole where `slices` is 0 or more than it has."""
    count = labelled.volume.shape[2]
    if not 0 < slices < count:
        return labelled
    first = (count - slices) // 2
    affine = labelled.volume.affine.copy()
    affine[:3, 3] += first * affine[:3, 2]
    arrays = (volume.array[:, :, first : first + slices] for volume in (labelled.volume, labelled.mask))
    return labelled.with_voxels(*(Volume(np.ascontiguousarray(array), affine) for array in arrays))


def score(loop: Loop, labelled: LabelledScan, job: dict[str, Any]) -> dict[str, float]:
    """Dice of each organ that the scan shows."""
    mask, labels = loop.mask(job)
    found = {}
    for index, name in enumerate(labelled.organs, start=1):
        truth = labelled.mask.array == index
        if truth.any():
            found[name] = dice(mask.array == labels.get(name, -1), truth)
    return found


def mean(rows: list[dict[str, float]], organ: str) -> float:
    return float(np.mean([row[organ] for row in rows if organ in row] or [np.nan]))


if __name__ == "__main__":
    main()
