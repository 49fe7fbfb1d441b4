"""Stable Diffusion: its UNet on both latents, all its weights trained (Rombach et al. 2022)."""

from __future__ import annotations

from types import MappingProxyType

from diffusers import ModelMixin, UNet2DConditionModel
from torch import Tensor

from meddelinea.diffusion.sampling import SCHEDULER_CLASSES
from meddelinea.methods.comparison import SHARED_PARTS
from meddelinea.methods.concatenated import Concatenated, ConcatenatedPipeline
from meddelinea.models.codec import FACTOR, Codec
from meddelinea.models.latent_unet import UNETS, LatentUNetSizes, build_unet, no_text, unet_multiple


class ConcatenatedUNet(Concatenated):
    """A UNet on both latents."""

    def denoise(self, both: Tensor, t: Tensor) -> Tensor:
        return self.denoiser(both, t, no_text(self.denoiser, both)).sample  # (B, C, h, w)


class StableDiffusionSlicePipeline(ConcatenatedPipeline):
    """Images of slices in, masks out, by one UNet."""

    known_parts = MappingProxyType(
        {**SHARED_PARTS, "denoiser": (UNet2DConditionModel,), "scheduler": SCHEDULER_CLASSES}
    )
    presets = UNETS

    @classmethod
    def build(cls, sizes: LatentUNetSizes, codec: Codec) -> dict[str, ModelMixin]:
        """The UNet, see `ComparisonPipeline`."""
        channels = codec.latent_channels + codec.image_channels
        return {"denoiser": build_unet(sizes, channels, codec.latent_channels)}

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return FACTOR * unet_multiple(self.denoiser)

    def segmenter(self) -> ConcatenatedUNet:
        """The components put together."""
        return ConcatenatedUNet(
            codec=self.codec,
            denoiser=self.denoiser,
            mask_head=self.mask_head,
            colours=self.palette.to(self.codec.dtype),
        )
