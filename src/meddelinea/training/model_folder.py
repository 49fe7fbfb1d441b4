"""What a model's folder holds beside its weights: organs, preprocessing, and which scans it was trained on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from meddelinea import __version__
from meddelinea.data.store import SliceStore
from meddelinea.labels import organ_ids
from meddelinea.training.config import RunConfig

#: Pieces of an organ smaller than this share of its largest piece are dropped from a mask; see docs/experiments.md.
LEAST_COMPONENT_SHARE = 0.1


def write_model_files(folder: Path, train: SliceStore, validation: SliceStore, config: RunConfig) -> None:
    """Write `labels.json`, `preprocessing.json`, `training_cases.json` and `run.json` into a model's folder.

    `training_cases.json` names each scan by the SHA-256 of its grey values and its robust fingerprint
    (`data.fingerprint`), so that a leak into a test set can be found without the scans.
    """
    manifest = train.manifest
    modalities = sorted({case.modality for case in train.cases})
    cases = {
        role: [
            {"name": c.name, "dataset": c.dataset, "fingerprint": c.fingerprint, "sketch": c.sketch}
            for c in store.cases
        ]
        for role, store in (("train", train), ("validation", validation))
    }
    contents = {
        "labels.json": {"labels": organ_ids(manifest.organs)},
        "preprocessing.json": {
            **asdict(manifest.preprocessing),
            "modalities": modalities,
            "least_component_share": LEAST_COMPONENT_SHARE,
        },
        "training_cases.json": {"meddelinea": __version__, **cases},
        "run.json": config.model_dump(mode="json"),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
