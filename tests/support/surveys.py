"""Datasets as a survey sees them, made up, and small ones on disk."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meddelinea.data.fingerprint import sketch
from meddelinea.fitting.survey import CaseFacts, OrganFacts, Survey
from meddelinea.io.volumes import write_volume
from meddelinea.volume import Volume

#: Of an abdomen: millimetres to the left, to the back and to the head, and millilitres.
ABDOMEN: Mapping[str, tuple[tuple[float, float, float], float]] = {
    "liver": ((-70.0, -10.0, 40.0), 1500.0),
    "spleen": ((90.0, 30.0, 50.0), 200.0),
    "left kidney": ((60.0, 40.0, 0.0), 160.0),
    "right kidney": ((-60.0, 40.0, -10.0), 160.0),
}
NO_SKETCH = sketch(Volume(np.zeros((4, 4, 4), np.float32), np.eye(4)))


def case_facts(name: str, **changes: Any) -> CaseFacts:
    """A CT of an abdomen, whose organs lie within a few millimetres of `ABDOMEN`; each name another patient."""
    rng = np.random.default_rng(sum(map(ord, name)))
    organs = {
        organ: OrganFacts(
            ml=ml * float(np.exp(rng.normal(0, 0.15))),
            surface_mm2=10 * ml,
            centre_mm=tuple(float(mm) for mm in np.add(centre, rng.normal(0, 4, 3))),
            slices=30 if ml < 1000 else 60,
            grey=(0.0, 100.0 + float(rng.normal(0, 8)), 220.0),
        )
        for organ, (centre, ml) in ABDOMEN.items()
    }
    facts: dict[str, Any] = {
        "name": name,
        "dataset": "pairs",
        "patient": name,
        "modality": "CT",
        "fingerprint": name,
        "sketch": NO_SKETCH,
        "shape": (512, 512, 130),
        "spacing_mm": (0.8, 0.8, 3.0),
        "plane": None,
        "body_mm": (360.0, 250.0),
        "refusal": None,
        "remarks": (),
        "shown": 90,
        "organs": organs,
    }
    return CaseFacts(**{**facts, **changes})


def placed(case: CaseFacts, **centres: tuple[float, float, float]) -> dict[str, OrganFacts]:
    """The organs of a case, some of them elsewhere; `left_kidney` is the left kidney."""
    moved = {name.replace("_", " "): centre for name, centre in centres.items()}
    return {
        name: OrganFacts(**{**vars(organ), "centre_mm": moved.get(name, organ.centre_mm)})
        for name, organ in case.organs.items()
    }


def survey_of(*cases: CaseFacts, **changes: Any) -> Survey:
    """A dataset of these cases."""
    organs = tuple(dict.fromkeys(organ for case in cases for organ in case.organs))
    facts = {"layout": "pairs", "source": Path("scans"), "organs": organs, "cases": cases, "broken": {}}
    return Survey(**{**facts, **changes})


def abdomens(count: int = 12) -> tuple[CaseFacts, ...]:
    """So many cases without a fault."""
    return tuple(case_facts(f"case{number:02}") for number in range(count))


def write_crops(root: Path, count: int = 6) -> Path:
    """MRs of 20 x 26 x 12 voxels of 1 mm, all filled, in which `front` and `behind` are balls; in layout `pairs`."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    i, j, k = np.indices((20, 26, 12))
    for number in range(count):
        rng = np.random.default_rng(number)
        mask = np.zeros((20, 26, 12), np.uint8)
        for index, middle in ((1, 19.0), (2, 7.0)):  # the second axis runs to the front
            row, column, level = rng.normal((9.5, middle, 5.5), 0.7)
            mask[(i - row) ** 2 + (j - column) ** 2 + (k - level) ** 2 < 4.0**2] = index
        grey = (400.0 + 300.0 * mask + rng.normal(0, 30, mask.shape)) * rng.uniform(0.5, 4.0)
        for folder, array in (("images", grey.astype(np.float32)), ("labels", mask)):
            write_volume(Volume(array, np.eye(4)), root / folder / f"crop{number}.nii.gz")
    described = {"modality": "MR", "labels": {"front": 1, "behind": 2}}
    (root / "labels.json").write_text(json.dumps(described))
    return root
