"""Averaged weights: put into the parameters for a while, and kept where they were best."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from meddelinea.training.config import ValidationConfig


@dataclass(frozen=True)
class Best:
    """The averaged weights with the largest validation Dice so far, and after which step."""

    step: int
    dice: float
    weights: list[Tensor]

    def out_of_patience(self, validation: ValidationConfig, step: int) -> bool:
        """Whether so many measurements up to `step` found none better that the run should end."""
        return bool(validation.patience) and (step - self.step) // validation.every >= validation.patience


@contextmanager
def in_place(values: list[Tensor], parameters: list[torch.nn.Parameter]) -> Iterator[None]:
    """Other values in the parameters for a while."""
    held = [p.detach().clone() for p in parameters]
    copy_into(values, parameters)
    try:
        yield
    finally:
        copy_into(held, parameters)


@torch.no_grad()
def copy_into(values: list[Tensor], parameters: list[torch.nn.Parameter]) -> None:
    """Set the parameters to other values, for good."""
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
