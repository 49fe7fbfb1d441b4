"""TransUNet (Chen et al. 2021) as a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from meddelinea.methods.network import NetworkPipeline, check_side, chosen_sizes
from meddelinea.methods.protocol import Recipe
from meddelinea.models.presets import CHECKED, Channels, Whole
from meddelinea.models.transunet import COARSEST, TransUNet

Units = Annotated[Whole, Field(ge=1, le=64)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TransUNetSizes:
    """Sizes of a `TransUNet`, see there."""

    root: Annotated[Whole, Field(ge=1, le=256)]
    units: tuple[Units, Units, Units]
    width: Channels
    heads: Annotated[Whole, Field(ge=1, le=1024)]
    depth: Annotated[Whole, Field(ge=1, le=256)]
    decoder: tuple[Channels, Channels, Channels, Channels]

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads")


class TransUNetPipeline(NetworkPipeline):
    """TransUNet over 2D slices."""

    known_parts = MappingProxyType({"network": (TransUNet,)})
    presets: ClassVar[Mapping[str, TransUNetSizes]] = {
        "small": TransUNetSizes(root=16, units=(2, 2, 2), width=192, heads=4, depth=4, decoder=(96, 64, 32, 16)),
        # R50-ViT-B/16, as published.
        "paper": TransUNetSizes(root=64, units=(3, 4, 9), width=768, heads=12, depth=12, decoder=(256, 128, 64, 16)),
    }

    @classmethod
    def build(cls, recipe: Recipe) -> TransUNet:
        sizes = chosen_sizes(cls.presets, recipe.preset, recipe.sizes)
        check_side(recipe.side, 4)
        return TransUNet(organs=len(recipe.organs), slices=recipe.slices, grid=recipe.side // COARSEST, **asdict(sizes))
