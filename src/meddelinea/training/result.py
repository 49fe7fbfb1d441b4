"""What a run leaves behind: the trained components, and for a whole model what its folder says of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meddelinea.data.store import SliceStore
from meddelinea.labels import organ_ids
from meddelinea.training.batches import shrink_factors
from meddelinea.training.cases import inherited_cases
from meddelinea.training.config import RunConfig
from meddelinea.training.network_stage import BaselineStage
from meddelinea.training.stages import CodecStage, ControlStage, build_stage
from meddelinea.version import __version__

#: Pieces of an organ smaller than this share of its largest piece are dropped from a mask; see docs/design-notes.md.
LEAST_COMPONENT_SHARE = 0.1
#: Slices whose latents set a codec's scaling factor.
SCALE_SLICES = 256


def write_result(
    config: RunConfig, weights: dict[str, Tensor], train: SliceStore, validation: SliceStore, test: SliceStore
) -> None:
    """Write the trained components into the run's folder, whole or not at all.

    Parameters
    ----------
    weights
        The stage's whole state; it is put into a stage that is neither wrapped nor sharded.
    train, validation, test
        The run's cases.
    """
    result = build_stage(config, train.manifest.organs)
    result.load_state_dict(weights)
    result.eval()
    if isinstance(result, CodecStage):
        result.measure_scale(_masks(train, SCALE_SLICES))
    unfinished = config.output / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    folder = result.save(unfinished)
    if isinstance(result, ControlStage | BaselineStage):
        write_model_files(folder, result.organs, train, validation, test, config)
    else:
        cases = training_cases(config, train, validation, test)
        (folder / "training_cases.json").write_text(json.dumps(cases, indent=2) + "\n")
    finished = config.output / folder.name
    shutil.rmtree(finished, ignore_errors=True)  # of a run that was stopped while it wrote this
    folder.replace(finished)
    unfinished.rmdir()


def _masks(store: SliceStore, count: int) -> Tensor:
    """Masks (count, H, W) spread evenly over the store."""
    chosen = range(0, len(store), max(1, len(store) // count))[:count]
    return torch.stack([torch.from_numpy(store.mask(*store.place(number))).long() for number in chosen])


def write_model_files(
    folder: Path,
    organs: tuple[str, ...],
    train: SliceStore,
    validation: SliceStore,
    test: SliceStore,
    config: RunConfig,
) -> None:
    """Write `labels.json`, `preprocessing.json`, `training_cases.json` and `run.json` into a model's folder.

    `training_cases.json` names each scan by the SHA-256 of its grey values (`data.fingerprint.fingerprint`), so that a
    leak into a test set can be found without the scans.
    """
    manifest = train.manifest
    modalities = sorted({case.modality for case in train.cases})
    contents = {
        "labels.json": {"labels": organ_ids(organs)},
        "preprocessing.json": {
            **asdict(manifest.preprocessing.shrunk(shrink_factors(config.data, manifest.preprocessing.size)[0])),
            "modalities": modalities,
            "least_component_share": LEAST_COMPONENT_SHARE,
        },
        "training_cases.json": training_cases(config, train, validation, test),
        "run.json": config.model_dump(mode="json"),
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def training_cases(config: RunConfig, train: SliceStore, validation: SliceStore, test: SliceStore) -> dict[str, Any]:
    """What `training_cases.json` holds: the run's cases by role, and those that what it started from was trained on.

    A scan that the codec or the base has seen is no test case of the whole model.
    """
    roles: dict[str, Any] = {
        role: [
            {"name": c.name, "dataset": c.dataset, "fingerprint": c.fingerprint, "sketch": c.sketch}
            for c in store.cases
        ]
        for role, store in (("train", train), ("validation", validation), ("test", test))
    }
    seen = {case["fingerprint"] for case in roles["train"]}
    for case in inherited_cases(config.model):
        if case["fingerprint"] not in seen:
            roles["train"].append(case)
            seen.add(case["fingerprint"])
    return {"meddelinea": __version__, **roles}
