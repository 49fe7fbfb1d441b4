"""A method in one file: each organ is a range of grey values. It shows what a method has to answer, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import UsageError
from meddelinea.methods.pipeline import SlicePipeline
from meddelinea.methods.protocol import Batch, Recipe, Sampler


class Levels(ModelMixin, ConfigMixin):
    """The grey level of each class."""

    @register_to_config
    def __init__(self, organs: int) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.linspace(-1, 1, organs + 1))


class Grey(nn.Module):
    """The nearest level is the organ; the levels are learnt by cross-entropy."""

    noise_channels = 0

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self.levels = levels

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"total": F.cross_entropy(self._logits(batch.images), batch.masks)}

    @torch.no_grad()
    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        middle = images[:, images.shape[1] // 2, None]  # (B, 1, H, W)
        return -20.0 * (middle - self.levels.level.view(1, -1, 1, 1)).square()  # (B, L + 1, H, W)


class GreyPipeline(SlicePipeline):
    multiple = 1
    known_parts = MappingProxyType({"levels": (Levels,)})

    def __init__(
        self, levels: Levels, organs: Sequence[str] = (), neighbours: int = 0, neighbour_pairs: int = 1
    ) -> None:
        super().__init__()
        self.register_modules(levels=levels)
        self.register_to_config(organs=list(organs), neighbours=neighbours, neighbour_pairs=neighbour_pairs)

    @classmethod
    def check_sizes(cls, preset: str, sizes: Mapping[str, Any]) -> None:
        if sizes:
            raise UsageError("grey levels have no sizes")

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        levels = Levels(organs=len(recipe.organs))
        return cls(levels, recipe.organs, recipe.neighbours, neighbour_pairs=recipe.neighbour_pairs)

    def change_organs(self, organs: tuple[str, ...]) -> None:
        old, levels = self.levels.level.detach(), Levels(organs=len(organs))
        with torch.no_grad():
            rows = [0, *(1 + self.organs.index(name) if name in self.organs else 0 for name in organs)]
            levels.level.copy_(old[rows])
        self.register_modules(levels=levels)
        self.register_to_config(organs=list(organs))

    def for_training(self, recipe: Recipe) -> Grey:
        return Grey(self.levels)

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        return Sampler(Grey(self.levels).to(self.device).eval(), None, None)
