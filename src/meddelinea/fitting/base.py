"""The model that a training may start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meddelinea.data.likeness import likenesses
from meddelinea.data.training_cases import SeenScan, TrainingCases
from meddelinea.errors import WeightsMissingError
from meddelinea.fitting.plan import Base
from meddelinea.fitting.survey import CaseFacts
from meddelinea.json_files import read_json
from meddelinea.methods.known import read_index
from meddelinea.segmentation.model import read_model_files

#: Class of the pipelines that can be started from.
KIND = "MedDelineaPipeline"


def find_base(model: str | Path, cases: Sequence[CaseFacts]) -> Base:
    """A model to start from, and whether it can be.

    It cannot where it has seen a case: nothing would be left to test on.

    Raises
    ------
    WeightsMissingError
        If there is no such model, or it is none of this package's own method.
    """
    files = read_model_files(model)
    index = read_json(files.folder / "model_index.json")
    if index.get("_class_name") != KIND:
        raise WeightsMissingError(f"{model}: a {index.get('_class_name')}; expected a model of the method meddelinea")
    seen = _seen_by(TrainingCases.read(files.folder), cases)
    return Base(
        name=Path(files.name).name,
        folder=files.folder,
        neighbours=int(index.get("neighbours", 0)),
        neighbour_pairs=int(index.get("neighbour_pairs", 1)),
        organs=read_index(files.folder).organs,
        unfit=f"has seen {seen} of the {len(cases)} cases, and could not be tested on them" if seen else "",
    )


def _seen_by(known: TrainingCases, cases: Sequence[CaseFacts]) -> int:
    """How many of the cases are copies of scans that a model was trained on or chosen by."""
    scans: list[SeenScan] = [*known.train, *known.validation]
    exact = {scan.fingerprint for scan in scans}
    sketches = [scan.sketch for scan in scans if scan.sketch]
    return sum(case.fingerprint in exact or bool(np.any(likenesses(case.sketch, sketches) > 0)) for case in cases)
