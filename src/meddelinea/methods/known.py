"""The closed list of methods: a line here is all that the rest of the package needs to know of one.

A run file names the method (`model.method`), a trained model's `model_index.json` the class of its pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from meddelinea.errors import UsageError, WeightsMissingError, first_fault, reason_of

if TYPE_CHECKING:
    from meddelinea.methods.pipeline import SlicePipeline

#: Method -> class of its pipeline, which is imported when it is asked for.
METHODS: Mapping[str, str] = {
    "meddelinea": "meddelinea.methods.meddelinea_pipeline.MedDelineaPipeline",
    "direct": "meddelinea.methods.direct.DirectPipeline",
    "unet": "meddelinea.methods.unet.UNetPipeline",
    "dynunet": "meddelinea.methods.dynunet.DynUNetPipeline",
    "dynunet_3d": "meddelinea.methods.dynunet_3d.DynUNet3DPipeline",
    "nnformer": "meddelinea.methods.nnformer.NNFormerPipeline",
    "unetr++": "meddelinea.methods.unetr_pp.UNETRPlusPlusPipeline",
    "transunet": "meddelinea.methods.transunet.TransUNetPipeline",
    "synergynet": "meddelinea.methods.synergynet.SynergyNetPipeline",
    "medsam": "meddelinea.methods.medsam.MedSAMPipeline",
    "medsegdiff": "meddelinea.methods.medsegdiff.MedSegDiffPipeline",
    "dit": "meddelinea.methods.dit.DiTSlicePipeline",
    "stable_diffusion": "meddelinea.methods.stable_diffusion.StableDiffusionSlicePipeline",
    "controlnet": "meddelinea.methods.controlnet.ControlNetSlicePipeline",
    "vqdiffusion": "meddelinea.methods.vqdiffusion.VQDiffusionSlicePipeline",
}

#: Parameters of the methods in Table 4 of the paper, in millions.
TABLE_4: Mapping[str, int] = {
    "meddelinea": 227,
    "unet": 33,
    "transunet": 182,
    "synergynet": 23,
    "controlnet": 400,
    "medsegdiff": 372,
    "vqdiffusion": 340,
    "dit": 187,
}

#: Slices that a model takes are of this many rows and columns at most.
MOST_PIXELS = 4096


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


class Index(NamedTuple):
    """What `model_index.json` says, checked: a pipeline's class, its settings, and the class of each of its parts."""

    kind: type[SlicePipeline]
    settings: Mapping[str, Any]
    parts: Mapping[str, type[Any] | None]  # None for one that is left out

    @property
    def organs(self) -> tuple[str, ...]:
        """Canonical names behind channels 1..L."""
        return tuple(self.settings["organs"])


def read_index(folder: Path) -> Index:
    """Read a model's `model_index.json`; nothing that it names is imported but what this package knows.

    Raises
    ------
    WeightsMissingError
        If there is none, it names another class than the method's own for a part, or a setting is unknown or out of
        range.
    """
    from pydantic import ValidationError

    from meddelinea.methods.pipeline import Settings
    from meddelinea.models.component import read_document

    path = folder / "model_index.json"
    if not path.is_file():
        raise WeightsMissingError(f"{folder}: no model_index.json; expected a trained model's folder")
    document = read_document(path)
    named = document.get("_class_name")
    method = method_of(named) if isinstance(named, str) else None
    if method is None:
        raise WeightsMissingError(f"{path}: a {_word(named)}; expected a model of {', '.join(METHODS)}")
    kind = pipeline_of(method)
    known = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
    settings = {name: value for name, value in document.items() if not name.startswith("_")}
    odd = [name for name in settings if name not in known]
    if odd:  # the model would be another one than was trained
        raise WeightsMissingError(f"{folder}: made by another version: {_word(odd[0])} in its model_index.json")
    parts = {role: _part(settings.pop(role, None), role, classes, path) for role, classes in kind.known_parts.items()}
    try:
        Settings(**settings)
    except ValidationError as error:
        raise WeightsMissingError(f"{path}: {first_fault(error)}; install or train the model again") from error
    return Index(kind, settings, parts)


def _part(named: object, role: str, classes: tuple[type[Any] | None, ...], path: Path) -> type[Any] | None:
    """The class of a part that an entry of `model_index.json` names: one of `classes`, or of models that need none."""
    from meddelinea.methods.pipeline import SlicePipeline

    library, name = named if isinstance(named, list) and len(named) == 2 else (named, None)
    method = method_of(name) if SlicePipeline in classes and isinstance(name, str) else None
    if method is not None and method != "medsam" and METHODS[method] == f"{library}.{name}":
        return pipeline_of(method)
    for kind in classes:
        if (library, name) == ((None, None) if kind is None else (_library(kind), kind.__name__)):
            return kind
    own = " or ".join(f"{_library(kind)}.{kind.__name__}" for kind in classes if kind is not None)
    raise WeightsMissingError(
        f"{path}: component {role} is of {_word(library)}; expected meddelinea or diffusers, and there {own}"
    )


def _word(value: object) -> str:
    """A name in a message, without quotes."""
    from meddelinea.models.component import shown

    return shown(value).strip("'")


def _library(kind: type[Any]) -> str:
    """What diffusers writes down for where a class is from."""
    return "diffusers" if kind.__module__.startswith("diffusers.") else kind.__module__


def load_pipeline(folder: Path) -> SlicePipeline:
    """The trained model of a folder, of whatever method it is: checked as a whole, then loaded, then tried.

    It is not loaded by diffusers, which would import the modules that `model_index.json` names and, in older versions,
    run Python files that lie beside the weights.

    Raises
    ------
    WeightsMissingError
        If the folder holds no model, one that this version does not know in full, or parts that do not fit together.
    UsageError
        If the method needs a package that is not installed.
    """
    from torch import nn

    from meddelinea.diffusion.sampling import load_scheduler
    from meddelinea.methods.pipeline import SlicePipeline
    from meddelinea.models.component import load_component

    index = read_index(folder)
    parts: dict[str, Any] = {}
    for role, kind in index.parts.items():
        if kind is None or issubclass(kind, nn.Module):
            parts[role] = None if kind is None else load_component(folder / role, {kind.__name__: kind})
        elif issubclass(kind, SlicePipeline):
            if read_index(folder / role).kind is not kind:
                raise WeightsMissingError(f"{folder / role}: no {kind.__name__}; install or train the model again")
            parts[role] = load_pipeline(folder / role)
        else:
            parts[role] = load_scheduler(folder / role, kind, steps=index.settings.get("default_steps", 1))
    pipeline = index.kind(**parts, **index.settings)
    _try(pipeline, folder)
    return pipeline


def _try(pipeline: SlicePipeline, folder: Path) -> None:
    """Segment one empty slice: what does not fit together, or overflows, is found out before any scan waits for it."""
    import torch

    from meddelinea.diffusion.noise import NoiseKey

    side = 2 * pipeline.multiple
    if side > MOST_PIXELS:
        raise WeightsMissingError(f"{folder}: slices of {side} pixels are its smallest; expected at most {MOST_PIXELS}")
    images = -torch.ones(1, 2 * pipeline.neighbour_pairs + 1, side, side)  # (B, slices, H, W)
    try:
        logits = pipeline.sampler(1).method.segment(images, [NoiseKey(seed=0, case=0, slice=0, sample=0)])
    except Exception as error:  # whatever parts that do not fit lead their layers to
        raise WeightsMissingError(
            f"{folder}: its parts do not fit together ({reason_of(error)}); install or train the model again"
        ) from error
    expected = (1, len(pipeline.organs) + 1, side, side)
    if tuple(logits.shape) != expected:
        raise WeightsMissingError(
            f"{folder}: its masks are {tuple(logits.shape)}; expected {expected} for the {len(pipeline.organs)} organs "
            "in model_index.json; install or train the model again"
        )
    if not torch.isfinite(logits).all():
        raise WeightsMissingError(
            f"{folder}: its masks are NaN or infinite, so that its weights are no trained ones; install it again"
        )
