"""nnFormer (Zhou et al. 2023) as a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from meddelinea.methods.network import chosen_sizes
from meddelinea.methods.protocol import Recipe
from meddelinea.methods.volume import PatchSize, VolumePipeline, check_patch
from meddelinea.models.nnformer import LOCAL_LEVELS, NNFormer
from meddelinea.models.presets import CHECKED, Channels, Whole
from meddelinea.models.token_grid import COARSEST_TOKEN, token_grids

Heads = Annotated[Whole, Field(ge=1, le=1024)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NNFormerSizes:
    """Sizes of an `NNFormer`, see there."""

    patch: PatchSize
    width: Annotated[Channels, Field(multiple_of=2)]
    heads: tuple[Heads, Heads, Heads, Heads]
    blocks: Annotated[Whole, Field(ge=1, le=64)]
    window: Annotated[Whole, Field(ge=2, le=32)]

    def __post_init__(self) -> None:
        check_patch(self.patch, *COARSEST_TOKEN)
        for level, heads in enumerate(self.heads):
            if self.width * 2**level % heads:
                raise ValueError(f"width {self.width * 2**level} cannot be divided among {heads} heads")
        for grid in token_grids(self.patch)[:LOCAL_LEVELS]:
            if any(edge % min(self.window, edge) for edge in grid):
                raise ValueError(f"window {self.window} does not divide a level of {' x '.join(map(str, grid))} tokens")


class NNFormerPipeline(VolumePipeline):
    """nnFormer over 3D patches."""

    known_parts = MappingProxyType({"network": (NNFormer,)})
    presets: ClassVar[Mapping[str, NNFormerSizes]] = {
        "small": NNFormerSizes(patch=(16, 96), width=48, heads=(3, 6, 12, 24), blocks=2, window=4),
        # As published for abdominal CT.
        "paper": NNFormerSizes(patch=(64, 128), width=192, heads=(6, 12, 24, 48), blocks=2, window=4),
    }

    @classmethod
    def build(cls, recipe: Recipe) -> NNFormer:
        sizes = asdict(chosen_sizes(cls.presets, recipe.preset, recipe.sizes))
        return NNFormer(organs=len(recipe.organs), **{**sizes, "patch": list(sizes["patch"])})
