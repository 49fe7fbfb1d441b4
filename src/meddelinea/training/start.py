"""The trained model that a run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar, cast

from diffusers import DiffusionPipeline

from meddelinea.errors import UsageError, WeightsMissingError

Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


def load_start(folder: Path | None, kind: type[Pipeline]) -> Pipeline:
    """The model of `model.pipeline`.

    Raises
    ------
    WeightsMissingError
        If the folder holds no trained model.
    UsageError
        If it holds one of another kind: a baseline and a model of MedDelinea do not go on from each other.
    """
    if folder is None or not (folder / "model_index.json").is_file():
        raise WeightsMissingError(f"{folder}: no model_index.json; model.pipeline expects a trained model's folder")
    name = kind.load_config(folder)["_class_name"]
    if name != kind.__name__:
        raise UsageError(f"{folder}: a {name}; only a {kind.__name__} can be gone on with here")
    return cast(Pipeline, kind.from_pretrained(folder, use_safetensors=True))
