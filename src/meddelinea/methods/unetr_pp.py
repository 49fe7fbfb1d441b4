"""UNETR++ (Shaker et al. 2024) as a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from meddelinea.methods.network import chosen_sizes
from meddelinea.methods.protocol import Recipe
from meddelinea.methods.volume import PatchSize, VolumePipeline, check_patch
from meddelinea.models.presets import CHECKED, Channels, Whole
from meddelinea.models.token_grid import COARSEST_TOKEN, token_grids
from meddelinea.models.unetr_pp import UNETRPlusPlus


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class UNETRPlusPlusSizes:
    """Sizes of a `UNETRPlusPlus`, see there."""

    patch: PatchSize
    widths: tuple[Channels, Channels, Channels, Channels]
    heads: Annotated[Whole, Field(ge=1, le=1024)]
    blocks: Annotated[Whole, Field(ge=1, le=64)]
    mixtures: Annotated[Whole, Field(ge=1, le=4096)]

    def __post_init__(self) -> None:
        check_patch(self.patch, *COARSEST_TOKEN)
        if prod(token_grids(self.patch)[-1]) < 2:
            raise ValueError(
                f"patch {self.patch[0]} x {self.patch[1]} is one token at the coarsest level; expected more"
            )
        for width, coarser in zip(self.widths, (*self.widths[1:], self.widths[-1]), strict=True):
            if width % self.heads or width % 2 or coarser % width:
                raise ValueError(f"widths {self.widths}; expected multiples of 2, of heads, and each of the one before")


class UNETRPlusPlusPipeline(VolumePipeline):
    """UNETR++ over 3D patches."""

    known_parts = MappingProxyType({"network": (UNETRPlusPlus,)})
    presets: ClassVar[Mapping[str, UNETRPlusPlusSizes]] = {
        "small": UNETRPlusPlusSizes(patch=(16, 96), widths=(16, 32, 64, 128), heads=4, blocks=2, mixtures=64),
        # As published for abdominal CT.
        "paper": UNETRPlusPlusSizes(patch=(64, 128), widths=(32, 64, 128, 256), heads=4, blocks=3, mixtures=64),
    }

    @classmethod
    def build(cls, recipe: Recipe) -> UNETRPlusPlus:
        sizes = asdict(chosen_sizes(cls.presets, recipe.preset, recipe.sizes))
        lists = {name: list(sizes[name]) for name in ("patch", "widths")}
        return UNETRPlusPlus(organs=len(recipe.organs), **{**sizes, **lists})
