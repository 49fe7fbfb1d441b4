"""VQDiffusion: discrete diffusion of the codes that stand for a mask's latent, given the image (Gu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Size, Tensor, nn

from meddelinea.diffusion.losses import Objective, segmentation_loss, timesteps
from meddelinea.diffusion.mask_and_replace import STEPS, MaskAndReplace, draw
from meddelinea.diffusion.noise import Noise, NoiseKey
from meddelinea.diffusion.sampling import StepCallback, unchanged
from meddelinea.errors import UsageError
from meddelinea.methods.comparison import SHARED_PARTS, ComparisonPipeline
from meddelinea.methods.network import chosen_sizes
from meddelinea.methods.protocol import Batch, Recipe, Sampler
from meddelinea.models.codec import FACTOR, Codec
from meddelinea.models.codes import VQDIFFUSION_SIZES, Codebook, CodeTransformer, VQDiffusionSizes
from meddelinea.models.component import load_component
from meddelinea.models.mask_head import PlainMaskHead
from meddelinea.models.presets import component_folder
from meddelinea.models.segmenter import BaseWeights, ImageFeatures, LatentSegmenter

#: Weight of the cross-entropy of the clean codes beside the variational bound; the paper's lambda.
AUXILIARY = 5e-4


class CodeSegmenter(LatentSegmenter):
    """A transformer that names the clean codes of noisy ones, and the codebook between codes and latents.

    Parameters
    ----------
    codec, codebook, denoiser, mask_head
        Its parts.
    colours
        See `LatentSegmenter`.
    """

    def __init__(
        self, codec: Codec, codebook: Codebook, denoiser: CodeTransformer, mask_head: PlainMaskHead, colours: Tensor
    ) -> None:
        super().__init__(colours)
        self.codec = codec
        self.codebook = codebook
        self.denoiser = denoiser
        self.mask_head = mask_head

    def train_networks(self, base: BaseWeights) -> None:
        """The transformer; other codes than it has learnt to name would be of no use to it."""
        self.denoiser.requires_grad_(True)

    def latent_shape(self, image: ImageFeatures) -> Size:
        """(B, 1, h, w): one code a position."""
        return Size((len(image.latent), 1, *image.latent.shape[2:]))

    def forward(self, noisy: Tensor, t: Tensor, image: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Noisy codes (B, h, w) at times (B,) -> logits of the clean ones (B, K, h w); it has no tokens."""
        return self.denoiser(noisy, t, image.latent), image.latent.new_empty(0)


class VQDiffusion(nn.Module):
    """The codes' diffusion as a method.

    Parameters
    ----------
    segmenter
        The networks.
    objective
        Its timesteps and its pixel loss count; what a network predicts are always clean codes.
    steps
        Sampling steps of `segment`, 1..T.

    Raises
    ------
    UsageError
        If `steps` is out of range.
    """

    #: Of each position one number says what becomes of its code.
    noise_channels = 1

    def __init__(self, segmenter: CodeSegmenter, objective: Objective, *, steps: int) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.objective = objective
        self.steps = steps
        self.process = MaskAndReplace.linear(segmenter.codebook.config.codes)
        if not 1 <= steps <= len(self.process):
            raise UsageError(f"{steps} sampling steps of codes; expected 1..{len(self.process)}")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The variational bound of the codes in nats a position, and L_seg of the clean codes."""
        segmenter, process = self.segmenter, self.process

        # Clean codes, noisy ones, and the network's answer.
        image = segmenter.encode_image(batch.images)
        with torch.no_grad():
            codes = segmenter.codebook.codes(segmenter.encode_mask(batch.masks))  # (B, h, w)
            t = 1 + timesteps(batch.uniform, len(process), self.objective)  # (B,) in 1..T
            clean = codes.flatten(1)  # (B, N), N = h w
            noisy = draw(process.marginal(clean, t), batch.noise.flatten(1))  # (B, N)
        logits, tokens = segmenter(noisy.view_as(codes), t, image)  # (B, K, N), (0,)

        # KL(q(x_t-1 | x_t, x_0), p(x_t-1 | x_t)), which for t = 1 is -log p(x_0 | x_1); a T-th of the bound's terms.
        log_shares = logits.float().log_softmax(dim=1)  # (B, K, N)
        sure = F.one_hot(clean, process.codes).mT.float()  # (B, K, N)
        true, ours = (process.posterior(of, noisy, t - 1, late=t) for of in (sure, log_shares.exp()))  # (B, K + 1, N)
        divergence = (torch.special.xlogy(true, true) - true * ours.clamp(min=1e-30).log()).sum(dim=1)  # (B, N)
        auxiliary = F.nll_loss(log_shares, clean)
        losses = {"diffusion": len(process) * (divergence.mean() + AUXILIARY * auxiliary)}

        # The mask head learns to read clean codes.
        mask = segmenter.decode(segmenter.codebook(codes), image, tokens)  # (B, L + 1, H, W)
        ones = torch.ones(len(mask), device=mask.device)
        losses["segmentation"] = segmentation_loss(mask, batch.masks, ones, pixel_loss=self.objective.pixel_loss)
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    @torch.no_grad()
    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Images (B, slices, H, W) and B keys -> logits (B, L + 1, H, W); the same key gives the same mask."""
        image = self.segmenter.encode_image(images)
        shape = self.segmenter.latent_shape(image)
        clean, tokens = self.sample(image, Noise.keyed(noise, shape[1:]))  # (B, C, h, w), (0,)
        return self.segmenter.decode(clean, image, tokens)  # (B, L + 1, H, W)

    def sample(self, image: ImageFeatures, noise: Noise, on_step: StepCallback = unchanged) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) of sampled codes; `on_step` sees and may change codes, (B, 1, h, w) whole numbers.

        The last step takes the most probable codes.
        """
        process, device = self.process, image.latent.device
        times = torch.linspace(len(process), 0, self.steps + 1).round().long()  # (steps + 1,)
        B, _, h, w = noise.initial.shape

        nothing = torch.zeros(B, h * w, dtype=torch.long, device=device)  # (B, N); at time T nothing of it is left
        start = process.marginal(nothing, times[:1].to(device))  # (B, K + 1, N)
        codes = draw(start, noise.initial.to(device).flatten(1))  # (B, N)
        for number, (late, early) in enumerate(times.to(device).unfold(0, 2, 1)):
            # All slices are at one time. Asked for it once, the network adds up the same for any number of slices.
            logits, tokens = self.segmenter(codes.view(B, h, w), late[None], image)  # (B, K, N), (0,)
            shares = logits.float().softmax(dim=1)  # (B, K, N)
            chances = process.posterior(shares, codes, early[None], late=late[None])  # (B, K + 1, N)
            if early > 0:
                normal = randn_tensor((B, h * w), generator=noise.generator, device=device)
                codes = draw(chances, normal)  # (B, N)
            else:
                codes = chances.argmax(dim=1)  # (B, N)
            codes = on_step(number, late, codes.view(B, 1, h, w)).flatten(1)  # (B, N)
        return self.segmenter.codebook(codes.view(B, h, w)), tokens  # (B, C, h, w), (0,)


class VQDiffusionSlicePipeline(ComparisonPipeline):
    """Images of slices in, masks out, by codes; `callback_on_step_end` is given codes as `latents`.

    Parameters
    ----------
    codec, codebook, denoiser, mask_head
        Its components, each a sub-folder of a checkpoint.
    organs, default_steps, neighbours, neighbour_pairs, colours
        As of `MedDelineaPipeline`.
    """

    known_parts = MappingProxyType({**SHARED_PARTS, "codebook": (Codebook,), "denoiser": (CodeTransformer,)})
    presets = VQDIFFUSION_SIZES

    def __init__(
        self,
        codec: Codec,
        codebook: Codebook,
        denoiser: CodeTransformer,
        mask_head: PlainMaskHead,
        organs: list[str] | None = None,
        default_steps: int = STEPS,
        neighbours: int = 0,
        neighbour_pairs: int = 1,
        colours: list[list[float]] | None = None,
    ) -> None:
        super().__init__()
        self._keep(locals())

    @classmethod
    def build(cls, sizes: VQDiffusionSizes, codec: Codec) -> dict[str, ModelMixin]:
        """Codebook and transformer, see `ComparisonPipeline`."""
        return {
            "codebook": Codebook(codes=sizes.codes, latent_channels=codec.latent_channels),
            "denoiser": CodeTransformer(
                codes=sizes.codes,
                image_channels=codec.image_channels,
                latent_size=sizes.resolution // FACTOR,
                width=sizes.width,
                depth=sizes.depth,
                heads=sizes.heads,
            ),
        }

    @classmethod
    def networks_for(cls, recipe: Recipe, codec: Codec) -> dict[str, ModelMixin]:
        """See `ComparisonPipeline`; `model.dit` is the codebook, whose codes a new transformer names."""
        codebook = load_component(component_folder(recipe.dit, "dit"), {"Codebook": Codebook})
        if codebook.config.latent_channels != codec.latent_channels:
            raise UsageError(
                f"model.dit: {recipe.dit} has codes for latents of {codebook.config.latent_channels} channels; "
                f"expected {codec.latent_channels}, as many as the codec's of masks"
            )
        sizes = replace(chosen_sizes(cls.presets, recipe.preset, recipe.sizes), codes=codebook.config.codes)
        return {**cls.build(sizes, codec), "codebook": codebook}

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return FACTOR

    def segmenter(self) -> CodeSegmenter:
        """The components put together."""
        return CodeSegmenter(
            codec=self.codec,
            codebook=self.codebook,
            denoiser=self.denoiser,
            mask_head=self.mask_head,
            colours=self.palette.to(self.codec.dtype),
        )

    def for_training(self, recipe: Recipe) -> VQDiffusion:
        """The components as a method that samples in as many steps as the recipe says; the encoder is frozen."""
        if recipe.objective.recycle:
            raise UsageError("objective.recycle: this method trains on true codes alone; set it to false")
        self.register_to_config(default_steps=recipe.steps)
        segmenter = self.segmenter()
        segmenter.freeze(recipe.trainable_decoder, recipe.base)
        return VQDiffusion(segmenter, recipe.objective, steps=recipe.steps)

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The components as a method, see `SlicePipeline`; codes are sampled in no other way."""
        method = self._method(steps, scheduler)
        return Sampler(method, method.steps, "mask_and_replace")

    def _method(self, steps: int | None = None, scheduler: str | None = None) -> VQDiffusion:
        if scheduler is not None:
            raise UsageError(
                f"scheduler {scheduler!r}, of latents; this model's codes have none", parameter="scheduler"
            )
        steps = int(self.config.default_steps) if steps is None else steps
        return VQDiffusion(self.segmenter(), Objective(), steps=steps).to(self.device).eval()
