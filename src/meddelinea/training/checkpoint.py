"""Training state on disk: written whole or not at all, and read back without unpickling anything but tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meddelinea.errors import InputRefusedError, reason_of
from meddelinea.files import whole
from meddelinea.training.sharding import scatter

FILE = "checkpoint.pt"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything that an uninterrupted run would have in memory, whole even where the run is sharded.

    Random numbers are not in it: they are functions of the seed and the step.
    """

    step: int
    seconds: float
    cpu_seconds: float
    weights: dict[str, Tensor]
    optimisers: list[dict[str, Any]]
    ema: dict[str, Any]
    scaler: dict[str, Any]
    best: dict[str, Any]


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the checkpoint into `folder`, replacing the one before in one move."""
    with whole(folder / FILE) as part:
        torch.save(vars(checkpoint), part)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the checkpoint of `folder`; None where a run was begun there and stopped before its first.

    Raises
    ------
    InputRefusedError
        If no run was begun there, or the file is not a checkpoint of this program.
    """
    path = folder / FILE
    if not path.is_file():
        if (folder / "run.json").is_file():
            return None
        raise InputRefusedError(f"{folder}: no run to resume; start one there", parameter="resume")
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a foreign or damaged file raises whatever it leads the parser to
        raise InputRefusedError(f"{path}: not a training checkpoint ({reason_of(error)})") from error


def restore_weights(checkpoint: Checkpoint, module: nn.Module) -> None:
    """Copy the trained parameters into `module`.

    Raises
    ------
    InputRefusedError
        If the checkpoint's parameters are not those that `module` trains, by name and shape.
    """
    current = trainable_state(module)
    ours, theirs = ({(name, p.shape) for name, p in state.items()} for state in (current, checkpoint.weights))
    if ours != theirs:
        odd = ", ".join(sorted({name for name, _ in ours ^ theirs})[:3])
        raise InputRefusedError(f"the checkpoint trains other parameters: {odd}, ...; resume with its own run file")
    for name, value in checkpoint.weights.items():
        current[name].copy_(scatter(value, current[name]))


def restore_optimiser(state: dict[str, Any], optimiser: torch.optim.Optimizer) -> None:
    """Load the optimiser's state, each tensor of a parameter's shape placed as the parameter is."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    placed = {
        index: {k: scatter(v, parameters[index]) if v.shape == parameters[index].shape else v for k, v in entry.items()}
        for index, entry in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": placed})
