"""What a run leaves behind: the trained components, and for a whole model what its folder says of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from meddelinea.data.store import SliceStore
from meddelinea.data.training_cases import TrainingCases
from meddelinea.files import remove_abandoned, whole_folder, write_json
from meddelinea.labels import organ_ids
from meddelinea.training.batches import shrink_factors
from meddelinea.training.cases import CaseStores, inherited_cases, model_limits
from meddelinea.training.config import RunConfig
from meddelinea.training.stages import build_stage

#: Pieces of an organ smaller than this share of its largest piece are dropped from a mask; see docs/design-notes.md.
LEAST_COMPONENT_SHARE = 0.1
#: Slices whose masks a stage gets at its end; their latents set a codec's scaling factor.
SCALE_SLICES = 256


def write_result(config: RunConfig, weights: dict[str, Tensor], cases: CaseStores) -> None:
    """Write the trained components into the run's folder, whole or not at all.

    Parameters
    ----------
    weights
        The stage's whole state; it is put into a stage that is neither wrapped nor sharded.
    cases
        What it was trained on.
    """
    result = build_stage(config, cases.train.manifest.organs)
    result.load_state_dict(weights)
    result.eval()
    remove_abandoned([config.result])  # by a run that was killed while it wrote this
    with whole_folder(config.result) as folder:
        result.finish(folder, _masks(cases.train, SCALE_SLICES))
        if (folder / "model_index.json").is_file():  # a whole model, and no component
            write_model_files(folder, result.organs, cases, config=config)
        training_cases(config, cases).write(folder)


def _masks(store: SliceStore, count: int) -> Tensor:
    """Masks (count, H, W) spread evenly over the store."""
    chosen = range(0, len(store), max(1, len(store) // count))[:count]
    return torch.stack([torch.from_numpy(store.mask(*store.place(number))).long() for number in chosen])


def write_model_files(folder: Path, organs: tuple[str, ...], cases: CaseStores, *, config: RunConfig) -> None:
    """Write `labels.json`, `preprocessing.json`, `run.json` and `scan_limits.json` into a model's folder."""
    manifest = cases.train.manifest
    limits = model_limits(config, cases.train.cases, manifest.preprocessing)
    contents = {
        "labels.json": {"labels": organ_ids(organs)},
        "preprocessing.json": {
            **asdict(manifest.preprocessing.shrunk(shrink_factors(config.data, manifest.preprocessing.size)[0])),
            "modalities": limits.modalities,
            "least_component_share": LEAST_COMPONENT_SHARE,
        },
        "run.json": config.model_dump(mode="json"),
    }
    for name, content in contents.items():
        write_json(content, folder / name)
    limits.write(folder)


def training_cases(config: RunConfig, cases: CaseStores) -> TrainingCases:
    """The run's cases by role, and those that what it started from was trained on.

    A scan that the codec or the base has seen is no test case of the whole model.
    """
    return TrainingCases.of_stores(*cases).after(inherited_cases(config.model))
