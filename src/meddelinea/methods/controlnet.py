"""ControlNet: a frozen UNet that denoises masks, and a trained copy of its encoder that sees the image (Zhang 2023)."""

from __future__ import annotations

from types import MappingProxyType

from diffusers import ControlNetModel, ModelMixin, SchedulerMixin, UNet2DConditionModel
from torch import Size, Tensor

from meddelinea.diffusion.sampling import SCHEDULER_CLASSES
from meddelinea.errors import UsageError
from meddelinea.methods.comparison import SHARED_PARTS, ComparisonPipeline
from meddelinea.methods.network import chosen_sizes
from meddelinea.methods.protocol import Recipe
from meddelinea.models.codec import FACTOR, Codec
from meddelinea.models.component import load_component
from meddelinea.models.latent_unet import UNETS, LatentUNetSizes, build_unet, no_text, unet_multiple
from meddelinea.models.mask_head import PlainMaskHead
from meddelinea.models.presets import component_folder
from meddelinea.models.segmenter import BaseWeights, ImageFeatures, LatentSegmenter, middle_slices


def control_of(unet: UNet2DConditionModel, sizes: LatentUNetSizes) -> ControlNetModel:
    """The trainable copy of a UNet's encoder and middle, each of whose outputs passes a convolution of zeros."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=sizes.image_widths)


class ControlledUNet(LatentSegmenter):
    """A UNet on Z_mt, to whose skip connections a ControlNet adds what it makes of Z_mt and the image's pixels.

    Parameters
    ----------
    codec, unet, controlnet, mask_head
        Its parts; the UNet stays frozen.
    colours
        See `LatentSegmenter`.
    """

    def __init__(
        self,
        codec: Codec,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        mask_head: PlainMaskHead,
        colours: Tensor,
    ) -> None:
        super().__init__(colours)
        self.codec = codec
        self.unet = unet
        self.controlnet = controlnet
        self.mask_head = mask_head

    def train_networks(self, base: BaseWeights) -> None:
        """The ControlNet; the UNet too where the base is `trained`."""
        self.controlnet.requires_grad_(True)
        if base == "trained":
            self.unet.requires_grad_(True)

    def latent_shape(self, image: ImageFeatures) -> Size:
        """(B, C, h, w), see `LatentSegmenter`."""
        B, _, H, W = image.latent.shape
        return Size((B, self.codec.latent_channels, H // FACTOR, W // FACTOR))

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Images (B, slices, H, W) in [-1, 1] -> the middle three slices, which the ControlNet takes as colours."""
        return ImageFeatures(middle_slices(images.to(self.dtype)), None, ())

    def forward(self, noisy: Tensor, t: Tensor, image: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Z_mt (B, C, h, w) at timesteps (B,) -> the UNet's output (B, C, h, w); it has no tokens."""
        noisy = noisy.to(self.dtype)
        text = no_text(self.unet, noisy)  # (B, tokens, D)
        control = self.controlnet(noisy, t, text, controlnet_cond=image.latent)  # (B, c, h / 2^i, w / 2^i) each
        output = self.unet(
            noisy,
            t,
            text,
            down_block_additional_residuals=control.down_block_res_samples,
            mid_block_additional_residual=control.mid_block_res_sample,
        )
        return output.sample, noisy.new_empty(0)  # (B, C, h, w)


class ControlNetSlicePipeline(ComparisonPipeline):
    """Images of slices in, masks out, by a UNet and its ControlNet; other parameters as of `MedDelineaPipeline`."""

    known_parts = MappingProxyType(
        {
            **SHARED_PARTS,
            "unet": (UNet2DConditionModel,),
            "controlnet": (ControlNetModel,),
            "scheduler": SCHEDULER_CLASSES,
        }
    )
    presets = UNETS

    def __init__(
        self,
        codec: Codec,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        mask_head: PlainMaskHead,
        scheduler: SchedulerMixin,
        organs: list[str] | None = None,
        prediction_type: str = "epsilon",
        default_steps: int = 20,
        neighbours: int = 0,
        neighbour_pairs: int = 1,
        colours: list[list[float]] | None = None,
    ) -> None:
        super().__init__()
        self._keep(locals())

    @classmethod
    def build(cls, sizes: LatentUNetSizes, codec: Codec) -> dict[str, ModelMixin]:
        """The UNet and its ControlNet, see `ComparisonPipeline`."""
        unet = build_unet(sizes, codec.latent_channels, codec.latent_channels)
        return {"unet": unet, "controlnet": control_of(unet, sizes)}

    @classmethod
    def networks_for(cls, recipe: Recipe, codec: Codec) -> dict[str, ModelMixin]:
        """See `ComparisonPipeline`; `model.dit` is the UNet that is controlled, of random weights where None."""
        sizes = chosen_sizes(cls.presets, recipe.preset, recipe.sizes)
        if recipe.dit is None or recipe.base == "random":
            return cls.build(sizes, codec)
        kinds = {"UNet2DConditionModel": UNet2DConditionModel}
        unet = load_component(component_folder(recipe.dit, "dit"), kinds)
        channels = codec.latent_channels
        if (unet.config.in_channels, unet.config.out_channels) != (channels, channels):
            raise UsageError(
                f"model.dit: {recipe.dit} has {unet.config.in_channels} channels in and {unet.config.out_channels} "
                f"out; expected {channels} of each, those of the codec's latents of masks"
            )
        return {"unet": unet, "controlnet": control_of(unet, sizes)}

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return FACTOR * unet_multiple(self.unet)

    def segmenter(self) -> ControlledUNet:
        """The components put together."""
        return ControlledUNet(
            codec=self.codec,
            unet=self.unet,
            controlnet=self.controlnet,
            mask_head=self.mask_head,
            colours=self.palette.to(self.codec.dtype),
        )
