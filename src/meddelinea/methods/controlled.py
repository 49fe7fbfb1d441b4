"""What the pipelines over the controlled network share: with diffusion (MedDelinea) and without (direct)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

from meddelinea.methods.latent import LatentPipeline
from meddelinea.methods.protocol import Recipe
from meddelinea.models.codec import FACTOR, Codec, KLCodec, SpaceToDepthCodec
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import GuidedMaskHead, MaskHead, PlainMaskHead
from meddelinea.models.presets import (
    build_control,
    build_mask_head,
    find_preset,
    load_codec,
    load_dit,
    parameter_counts,
)
from meddelinea.models.segmenter import Segmenter


class Parts(NamedTuple):
    """Components of the controlled network, each a sub-folder of a checkpoint."""

    codec: Codec
    dit: DiT
    control: ControlDiT
    mask_head: MaskHead | None


def build_parts(recipe: Recipe) -> Parts:
    """A codec and a DiT that were trained or imported, with a new control branch and mask head."""
    preset = find_preset(recipe.preset, recipe.sizes)
    codec = load_codec(preset, recipe.codec)
    dit = load_dit(recipe.dit)
    if recipe.base == "random":
        dit.draw_weights()
    head = None if recipe.trainable_decoder == "none" else build_mask_head(preset, codec, len(recipe.organs))
    control = build_control(preset, dit, codec, recipe.slices)
    return Parts(codec=codec, dit=dit, control=control, mask_head=head)


class ControlledPipeline(LatentPipeline):
    """A pipeline with the components of `Parts`."""

    _optional_components: ClassVar[list[str]] = ["mask_head"]
    known_parts = MappingProxyType(
        {
            "codec": (SpaceToDepthCodec, KLCodec),
            "dit": (DiT,),
            "control": (ControlDiT,),
            "mask_head": (PlainMaskHead, GuidedMaskHead, None),
        }
    )

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return FACTOR * int(self.dit.config.patch_size)

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """A codec and a DiT that are there, with a new control branch and mask head, see `SlicePipeline`."""
        return cls._made(recipe, build_parts(recipe)._asdict())

    @classmethod
    def check_sizes(cls, preset: str, sizes: Mapping[str, Any]) -> None:
        """Refuse sizes of a preset that do not fit, see `SlicePipeline`."""
        find_preset(preset, sizes)

    @classmethod
    def parameter_count(cls, preset: str, organs: int) -> int:
        """Parameters of DiT, control branch and mask head, see `SlicePipeline`."""
        counts = parameter_counts(preset, organs)
        return counts["dit_and_control"] + counts["mask_head"]

    def segmenter(self) -> Segmenter:
        """The components put together."""
        return Segmenter(
            codec=self.codec,
            dit=self.dit,
            control=self.control,
            mask_head=self.mask_head,
            colours=self.palette.to(self.dit.dtype),
        )
