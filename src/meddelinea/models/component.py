"""A trained network's folder, `config.json` and its weights: checked as a whole, then loaded.

Nothing in the folder chooses what code runs. Its class is one of those that the caller knows, its configuration holds
plain values for that class alone, and of the weights only tensors are read, once their names, shapes and types are
those of the network that the configuration describes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from meddelinea.errors import MedDelineaError, WeightsMissingError, reason_of
from meddelinea.json_files import read_json

#: As diffusers calls them.
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
#: Number types that weights are stored in; they are computed with in 32 bits.
STORED = ("F64", "F32", "F16", "BF16")
#: Largest number in a configuration, and most items of a list in it.
MOST, MOST_ITEMS = 1 << 20, 16
#: Largest count of parts that repeat, so that no configuration builds for hours.
MOST_REPEATED = 256
REPEATED = (
    "depth", "encoder_blocks", "decoder_blocks", "layers_per_block", "transformer_layers_per_block", "units",
    "blocks",
)  # fmt: skip

Kind = TypeVar("Kind", bound=nn.Module)
Shape = tuple[int, ...]


def load_component(folder: Path, kinds: Mapping[str, type[Kind]]) -> Kind:
    """The trained network of a folder, in evaluation mode and in 32 bits.

    Parameters
    ----------
    folder
        What `save_pretrained` of diffusers wrote.
    kinds
        The classes that it may be of, by name.

    Raises
    ------
    WeightsMissingError
        If a file is missing or damaged, the two contradict each other, or a weight is no finite number.
    """
    network = _described(folder, kinds)
    try:
        weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    except Exception as error:  # a damaged file raises whatever it leads the reader to
        raise WeightsMissingError(
            f"{folder / WEIGHTS}: cannot be read ({reason_of(error)}); install it again"
        ) from error
    require_finite(weights, folder / WEIGHTS)
    network.load_state_dict(weights, assign=True)
    return network.eval()


def _described(folder: Path, kinds: Mapping[str, type[Kind]]) -> Kind:
    """The network that `config.json` describes, once it is sure that the weights are for it; it takes no memory."""
    kind, config = read_config(folder, kinds)
    try:
        with torch.device("meta"):
            network: Kind = kind(**config)
    except MedDelineaError:
        raise
    except Exception as error:  # whatever sizes that do not fit lead its layers to
        raise WeightsMissingError(
            f"{folder / CONFIG}: no {kind.__name__} has these sizes ({reason_of(error)}); install the model again"
        ) from error
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    faults = key_faults(expected, _stored_shapes(folder / WEIGHTS))
    if faults:
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise WeightsMissingError(
            f"{folder / WEIGHTS}: {faults[0]}{more}; expected the tensors that {CONFIG} describes; install the model "
            "again"
        )
    return network


def read_config(folder: Path, kinds: Mapping[str, type[Kind]]) -> tuple[type[Kind], dict[str, Any]]:
    """The class that a folder's `config.json` names, and the arguments for it.

    Raises
    ------
    WeightsMissingError
        If it is missing or damaged, or has another class, an argument too many or too few, or one out of range.
    """
    path = folder / CONFIG
    document = read_document(path)
    named = document.get("_class_name")
    kind = kinds.get(named) if isinstance(named, str) else None
    if kind is None:
        raise WeightsMissingError(f"{path}: a {named}; expected {' or '.join(kinds)}; install a model of this version")
    config = {name: value for name, value in document.items() if not name.startswith("_")}
    known, hints = inspect.signature(kind.__init__).parameters, get_type_hints(kind.__init__)
    needed = [name for name, argument in known.items() if argument.default is argument.empty and name != "self"]
    for name in [*(name for name in config if name not in known), *(name for name in needed if name not in config)]:
        fault = "unknown" if name in config else "missing"
        raise WeightsMissingError(f"{path}: {name} is {fault}; expected what a {named} has: made by another version?")
    for name, value in config.items():
        most = MOST_REPEATED if name in REPEATED else MOST
        if not _is_of(value, hints.get(name)) or not is_plain(value, most):
            raise WeightsMissingError(
                f"{path}: {name} is {shown(value)}; expected a {named}'s; install the model again"
            )
    return kind, config


def read_document(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder.

    Raises
    ------
    WeightsMissingError
        If there is no such file, or it holds something else.
    """
    if not path.is_file():  # a folder, or a pipe that never ends
        raise WeightsMissingError(f"{path}: no such file; expected a complete model; install or train it again")
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise WeightsMissingError(
            f"{path}: not readable as JSON ({reason_of(error)}); install the model again"
        ) from error
    if not isinstance(document, dict):
        raise WeightsMissingError(
            f"{path}: a JSON {type(document).__name__}; expected an object; install the model again"
        )
    return document


def require_finite(weights: Mapping[str, Tensor], where: Path) -> None:
    """Refuse weights that would make every mask empty.

    Raises
    ------
    WeightsMissingError
        If one is NaN or infinite, or all are zero.
    """
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            count = int((~torch.isfinite(value)).sum())
            raise WeightsMissingError(
                f"{where}: {name} holds {count} of {value.numel()} weights that are NaN or infinite; expected numbers; "
                "install or train the model again"
            )
    if not any(value.any() for value in weights.values()):
        raise WeightsMissingError(f"{where}: every weight is 0; expected a trained network; install it again")


def key_faults(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> list[str]:
    """How a file of weights differs from a network: each missing, unexpected or misshapen tensor."""
    faults = [f"missing {name}" for name in expected if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in expected]
    faults += [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    return faults


def shown(value: object) -> str:
    """A value of a file in a message: short, and without what would steer a terminal."""
    text = "".join(character if character.isprintable() else "?" for character in repr(value)[:61])
    return text if len(text) <= 60 else f"{text[:60]}..."


def _stored_shapes(path: Path) -> dict[str, Shape]:
    """Tensors of a file by name; only its header is read."""
    if not path.is_file():
        raise WeightsMissingError(f"{path}: no such file; expected the weights; install or train the model again")
    shapes = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in list(file.keys()):
                tensor = file.get_slice(name)
                shapes[name] = tuple(tensor.get_shape())
                if tensor.get_dtype() not in STORED:
                    raise WeightsMissingError(
                        f"{path}: {name} is of type {tensor.get_dtype()}; expected {', '.join(STORED)}; convert it"
                    )
    except MedDelineaError:
        raise
    except Exception as error:
        raise WeightsMissingError(f"{path}: not readable ({reason_of(error)}); install the model again") from error
    return shapes


def _is_of(value: object, hint: object) -> bool:
    """Whether a value is of the type that an argument is annotated with, where that is a plain one."""
    match hint:
        case t if t is bool or t is int or t is str:
            return type(value) is t
        case t if t is float:
            return type(value) in (int, float)
    return True


def is_plain(value: object, most: int) -> bool:
    """Whether a value of a configuration is none that takes long or much memory: no long list, no large number."""
    match value:
        case None | bool():
            return True
        case int() | float():
            return math.isfinite(value) and 0 <= value <= most
        case str():
            return len(value) <= 100
        case list():
            return len(value) <= MOST_ITEMS and all(
                is_plain(item, most) and not isinstance(item, list) for item in value
            )
    return False
