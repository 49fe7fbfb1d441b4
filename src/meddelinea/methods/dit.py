"""DiT: one diffusion transformer on both latents, all its weights trained (Peebles and Xie 2023).

What MedDelinea is without its control branch: the same objective, sampler and decoder.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated

from diffusers import ModelMixin
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from meddelinea.diffusion.sampling import SCHEDULER_CLASSES
from meddelinea.methods.comparison import SHARED_PARTS
from meddelinea.methods.concatenated import Concatenated, ConcatenatedPipeline
from meddelinea.models.codec import FACTOR, Codec
from meddelinea.models.dit import DiT
from meddelinea.models.presets import CHECKED, Whole


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DiTSizes:
    """Sizes of a DiT, checked when they are made."""

    width: Annotated[Whole, Field(ge=4, le=8192, multiple_of=4)]
    heads: Annotated[Whole, Field(ge=1, le=1024)]
    depth: Annotated[Whole, Field(ge=1, le=256)]
    patch_size: Annotated[Whole, Field(ge=1, le=16)] = 2
    #: Rows and columns of the slices it is trained at.
    resolution: Annotated[Whole, Field(ge=8, le=4096, multiple_of=8)] = 256

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads")
        if self.resolution % (FACTOR * self.patch_size):
            raise ValueError(
                f"resolution {self.resolution}; expected a multiple of {FACTOR * self.patch_size}, a token's"
            )


class ConcatenatedDiT(Concatenated):
    """A DiT on both latents."""

    def denoise(self, both: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(both, self.denoiser.condition(t)).sample  # (B, C, h, w)


class DiTSlicePipeline(ConcatenatedPipeline):
    """Images of slices in, masks out, by one DiT."""

    known_parts = MappingProxyType({**SHARED_PARTS, "denoiser": (DiT,), "scheduler": SCHEDULER_CLASSES})
    presets = MappingProxyType(
        {
            "small": DiTSizes(width=192, heads=4, depth=8, resolution=128),
            # No published DiT has the 187 M of Table 4: the width of DiT-B, as deep as comes nearest.
            "paper": DiTSizes(width=768, heads=12, depth=17),
        }
    )

    @classmethod
    def build(cls, sizes: DiTSizes, codec: Codec) -> dict[str, ModelMixin]:
        """The DiT, its gates open, see `ComparisonPipeline`."""
        dit = DiT(
            latent_channels=codec.latent_channels,
            latent_size=sizes.resolution // FACTOR,
            patch_size=sizes.patch_size,
            width=sizes.width,
            depth=sizes.depth,
            heads=sizes.heads,
            classes=0,
            learn_sigma=False,
            image_channels=codec.image_channels,
        )
        dit.open_gates()
        return {"denoiser": dit}

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return FACTOR * int(self.denoiser.config.patch_size)

    def segmenter(self) -> ConcatenatedDiT:
        """The components put together."""
        return ConcatenatedDiT(
            codec=self.codec,
            denoiser=self.denoiser,
            mask_head=self.mask_head,
            colours=self.palette.to(self.codec.dtype),
        )
