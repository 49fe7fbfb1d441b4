"""What the comparison methods share that sample over a codec's latents: how one is built from sizes, and counted."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from diffusers import ModelMixin

from meddelinea.errors import UsageError
from meddelinea.methods.latent import LatentPipeline
from meddelinea.methods.network import chosen_sizes
from meddelinea.methods.protocol import Recipe
from meddelinea.methods.sampled import SampledPipeline
from meddelinea.models.codec import Codec, KLCodec, SpaceToDepthCodec, palette
from meddelinea.models.mask_head import PlainMaskHead
from meddelinea.models.presets import build_codec, find_preset, load_any_codec

#: The classes of the components that all of them have.
SHARED_PARTS: Mapping[str, tuple[type[Any] | None, ...]] = {
    "codec": (SpaceToDepthCodec, KLCodec),
    "mask_head": (PlainMaskHead,),
}


class ComparisonPipeline(LatentPipeline, SampledPipeline):
    """A pipeline with a codec of either kind, networks of its own, and the paper's mask head."""

    #: Its sizes by the name of a preset.
    presets: ClassVar[Mapping[str, Any]]

    @classmethod
    @abstractmethod
    def build(cls, sizes: Any, codec: Codec) -> dict[str, ModelMixin]:
        """Its own networks with random weights, by the names of its components."""

    @classmethod
    def check_sizes(cls, preset: str, sizes: Mapping[str, Any]) -> None:
        """Refuse sizes that are not its own, see `SlicePipeline`."""
        chosen_sizes(cls.presets, preset, sizes)

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """A codec that is there, with networks and a mask head that reads its colours, see `SlicePipeline`."""
        codec = load_any_codec(recipe.codec)
        head = PlainMaskHead.of_codec(codec, palette(len(recipe.organs) + 1))
        return cls._made(recipe, {"codec": codec, **cls.networks_for(recipe, codec), "mask_head": head})

    @classmethod
    def networks_for(cls, recipe: Recipe, codec: Codec) -> dict[str, ModelMixin]:
        """Its own networks for a run, those of `build` but for what the recipe gives.

        Raises
        ------
        UsageError
            If the recipe gives a network that the method has no use for, or that is of other latents.
        WeightsMissingError
            If one is absent that it cannot do without.
        """
        if recipe.dit:
            raise UsageError("model.dit: this method stands on no trained network but the codec; set it to null")
        return cls.build(chosen_sizes(cls.presets, recipe.preset, recipe.sizes), codec)

    @classmethod
    def parameter_count(cls, preset: str, organs: int) -> int:
        """Parameters of its networks and its mask head, see `SlicePipeline`."""
        return sum(cls.parameter_counts(preset, organs).values())

    @classmethod
    def parameter_counts(cls, preset: str, organs: int) -> dict[str, int]:
        """Parameters of each, by the names of its components, counted on networks that hold no memory."""
        sizes = chosen_sizes(cls.presets, preset, {})
        with torch.device("meta"):
            codec = build_codec(find_preset(preset))
            head = PlainMaskHead(codec.feature_channels, codec.feature_factor, organs)
            networks = {**cls.build(sizes, codec), "mask_head": head}
        return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
