"""The closed list of methods: a line here is all that the rest of the package needs to know of one.

A run file names the method (`model.method`), a trained model's `model_index.json` the class of its pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from meddelinea.errors import UsageError, WeightsMissingError

if TYPE_CHECKING:
    from meddelinea.methods.pipeline import SlicePipeline

#: Method -> class of its pipeline, which is imported when it is asked for.
METHODS: Mapping[str, str] = {
    "meddelinea": "meddelinea.methods.meddelinea_pipeline.MedDelineaPipeline",
    "direct": "meddelinea.methods.direct.DirectPipeline",
    "unet": "meddelinea.methods.unet.UNetPipeline",
    "dynunet": "meddelinea.methods.dynunet.DynUNetPipeline",
}

#: Where components may come from; `model_index.json` could name any module that is installed here.
LIBRARIES = ("meddelinea", "diffusers")


def pipeline_of(method: str) -> type[SlicePipeline]:
    """The class of a method's pipeline.

    Raises
    ------
    UsageError
        If there is no such method.
    """
    if method not in METHODS:
        raise UsageError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    module, _, name = METHODS[method].rpartition(".")
    return cast("type[SlicePipeline]", getattr(import_module(module), name))


def method_of(class_name: str) -> str | None:
    """The method whose pipeline has a class of that name; None where there is none."""
    return next((method for method, path in METHODS.items() if path.endswith(f".{class_name}")), None)


def load_pipeline(folder: Path) -> SlicePipeline:
    """The trained model of a folder, of whatever method it is.

    Raises
    ------
    WeightsMissingError
        If the folder holds no model, or one that this version does not know in full.
    UsageError
        If the method needs a package that is not installed.
    """
    from diffusers import DiffusionPipeline

    if not (folder / "model_index.json").is_file():
        raise WeightsMissingError(f"{folder}: no model_index.json; expected a trained model's folder")
    index = DiffusionPipeline.load_config(folder)
    method = method_of(index["_class_name"])
    if method is None:
        raise WeightsMissingError(f"{folder}: a {index['_class_name']}; expected a model of {', '.join(METHODS)}")
    kind = pipeline_of(method)
    _refuse_what_is_foreign(index, inspect.signature(kind.__init__).parameters, folder)
    return kind.from_pretrained(folder, use_safetensors=True)


def _refuse_what_is_foreign(index: Mapping[str, Any], known: Mapping[str, inspect.Parameter], folder: Path) -> None:
    """Before diffusers leaves out settings that it does not know, or imports any module that `index` names."""
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if name not in known:  # the model would be another one than was trained
            raise WeightsMissingError(f"{folder}: made by another version: {name} in its model_index.json")
        if known[name].default is inspect.Parameter.empty:
            library, _ = value  # both None for a component that is left out
            if library is not None and library.split(".")[0] not in LIBRARIES:
                raise WeightsMissingError(
                    f"{folder}/model_index.json: component {name} is of {library}; expected {' or '.join(LIBRARIES)}"
                )
