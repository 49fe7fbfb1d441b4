"""MedSegDiff (Wu et al. 2022) as a method: diffusion over the pixels of masks, conditioned on the image.

Its ensemble is what the other sampled methods have too: several samples of a slice, whose shares are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from meddelinea.diffusion.losses import Objective, timesteps
from meddelinea.diffusion.sampling import SCHEDULER_CLASSES
from meddelinea.diffusion.schedule import Prediction, PredictionType
from meddelinea.errors import UsageError
from meddelinea.methods.meddelinea import MedDelinea
from meddelinea.methods.network import Widths, check_side, chosen_sizes
from meddelinea.methods.protocol import Batch, Method, Recipe
from meddelinea.methods.sampled import SampledPipeline
from meddelinea.models.codec import FACTOR
from meddelinea.models.mask_head import UNLIKELY
from meddelinea.models.medsegdiff import MedSegDiffUNet
from meddelinea.models.presets import CHECKED, Whole
from meddelinea.models.segmenter import BaseWeights, ImageFeatures, LatentSegmenter, TrainableDecoder

#: What a network answers for an organ that it does not know, so that the clean mask is -1 at the last timestep. Noise
#: cannot be answered without being seen: there the organ is drawn at random until it is learnt.
ABSENT: Mapping[PredictionType, float] = {"epsilon": 0.0, "sample": -1.0, "v_prediction": 1.0}


class PixelSegmenter(LatentSegmenter):
    """The network, where a mask's latent is the mask: a channel a class, 1 where a pixel is of it and -1 elsewhere."""

    def __init__(self, network: MedSegDiffUNet) -> None:
        super().__init__(torch.zeros(0))  # nothing is painted
        self.network = network

    @property
    def classes(self) -> int:
        """L + 1."""
        return int(self.network.config.organs) + 1

    def train_networks(self, base: BaseWeights) -> None:
        """All of it."""
        self.network.requires_grad_(True)

    def freeze(self, trainable_decoder: TrainableDecoder, base: BaseWeights = "frozen") -> None:
        """There is no decoder, and no base."""
        self.train_networks(base)

    def latent_shape(self, image: ImageFeatures) -> torch.Size:
        """(B, L + 1, H, W)."""
        return torch.Size((len(image.latent), self.classes, *image.latent.shape[2:]))

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Organ ids (B, H, W) -> (B, L + 1, H, W)."""
        return 2.0 * F.one_hot(mask, self.classes).movedim(3, 1).float() - 1.0

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Images (B, slices, H, W) as they are."""
        return ImageFeatures(images, None, ())

    def forward(self, noisy: Tensor, t: Tensor, image: ImageFeatures) -> tuple[Tensor, Tensor]:
        """A noisy mask (B, L + 1, H, W) at timesteps (B,) -> the network's output, the same; it has no tokens."""
        return self.network(noisy, t, image.latent).float(), noisy.new_empty(0)

    def decode(self, clean: Tensor, image: ImageFeatures, tokens: Tensor) -> Tensor:
        """A mask (B, L + 1, H, W) -> logits (B, L + 1, H, W): absent organs as unlikely as new ones elsewhere."""
        return -UNLIKELY * clean


class MedSegDiff(MedDelinea):
    """The network with its noise schedule and objective; noise is drawn in pixels.

    Parameters
    ----------
    network
        Denoises masks.
    objective, scheduler, steps
        As of `MedDelinea`.
    """

    segmenter: PixelSegmenter

    def __init__(self, network: MedSegDiffUNet, objective: Objective, scheduler: SchedulerMixin, *, steps: int) -> None:
        super().__init__(PixelSegmenter(network), objective, scheduler, steps=steps)

    @property
    def network(self) -> MedSegDiffUNet:
        """What denoises masks."""
        return self.segmenter.network

    @property
    def noise_channels(self) -> int:
        """Those of a mask, folded to the eighth of its size that a batch's noise has."""
        return self.segmenter.classes * FACTOR**2

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L_diff alone: the mean squared error of what the network predicts."""
        clean, noise = self.segmenter.encode_mask(batch.masks), F.pixel_shuffle(batch.noise, FACTOR)  # (B, L + 1, H, W)
        t = timesteps(batch.uniform, len(self.schedule), self.objective)  # (B,)
        noisy = self.schedule.add_noise(clean, noise, t)  # (B, L + 1, H, W)
        output, _ = self.segmenter(noisy, t, self.segmenter.encode_image(batch.images))  # (B, L + 1, H, W)
        loss = F.mse_loss(output, self.prediction.target(clean, noise, t))
        return {"diffusion": loss, "total": loss}

    def noise_in(self, noisy: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """As of `MedDelinea`, of a mask within [-1, 1]: that bounds what an error of the noise can do at high noise."""
        clean = self.prediction.clean(output, noisy, t).clamp(-1.0, 1.0)  # (B, L + 1, H, W)
        return Prediction(self.schedule, "sample").epsilon(clean, noisy, t)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MedSegDiffSizes:
    """Sizes of a `MedSegDiffUNet`, see there."""

    patch: Annotated[Whole, Field(ge=1, le=4)]
    widths: Widths
    units: Annotated[Whole, Field(ge=1, le=64)]

    def __post_init__(self) -> None:
        if self.patch == 3:
            raise ValueError("patch 3; expected a power of 2")

    @property
    def halvings(self) -> int:
        """How often a slice's side is halved."""
        return self.patch.bit_length() - 1 + len(self.widths) - 1


class MedSegDiffPipeline(SampledPipeline):
    """Images of slices in, sampled masks out.

    Parameters
    ----------
    network, scheduler
        Its components, each a sub-folder of a checkpoint.
    organs, prediction_type, default_steps, neighbours, neighbour_pairs
        As of `MedDelineaPipeline`.
    """

    known_parts = MappingProxyType({"network": (MedSegDiffUNet,), "scheduler": SCHEDULER_CLASSES})
    presets: ClassVar[Mapping[str, MedSegDiffSizes]] = {
        "small": MedSegDiffSizes(patch=2, widths=(24, 48, 96, 144), units=1),
        # The paper names no widths: these have the parameters of Table 4, 372 M.
        "paper": MedSegDiffSizes(patch=1, widths=(128, 256, 512, 992, 1024), units=2),
    }

    def __init__(
        self,
        network: MedSegDiffUNet,
        scheduler: SchedulerMixin,
        organs: list[str] | None = None,
        prediction_type: str = "epsilon",
        default_steps: int = 20,
        neighbours: int = 0,
        neighbour_pairs: int = 1,
    ) -> None:
        super().__init__()
        self._keep(locals())

    @classmethod
    def check_sizes(cls, preset: str, sizes: Mapping[str, Any]) -> None:
        """Refuse sizes that the method does not know, or that are out of range, see `SlicePipeline`."""
        chosen_sizes(cls.presets, preset, sizes)

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """A pipeline with random weights, see `SlicePipeline`."""
        if recipe.codec or recipe.dit:
            raise UsageError("model.codec, model.dit: this network stands on neither; set both to null")
        sizes = chosen_sizes(cls.presets, recipe.preset, recipe.sizes)
        check_side(recipe.side, sizes.halvings)
        network = MedSegDiffUNet(organs=len(recipe.organs), slices=recipe.slices, side=recipe.side, **asdict(sizes))
        return cls._made(recipe, {"network": network})

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return int(self.network.multiple)

    def change_organs(self, organs: tuple[str, ...]) -> None:
        """Carry the mask's channels over to other organs, by their names."""
        new = ABSENT[self.config.prediction_type]
        self.register_modules(network=self.network.for_organs(self.organs, organs, new=new))
        self.register_to_config(organs=list(organs))

    def segmenter(self) -> PixelSegmenter:
        """The network, put together with nothing."""
        return PixelSegmenter(self.network)

    def build_method(self, objective: Objective, scheduler: SchedulerMixin, steps: int) -> MedSegDiff:
        """The network as a method that samples so."""
        return MedSegDiff(self.network, objective, scheduler, steps=steps)

    def for_training(self, recipe: Recipe) -> Method:
        """The network as a method that samples as the recipe says, trained as a whole."""
        if recipe.objective.recycle:
            raise UsageError("objective.recycle: this method trains on true masks alone; set it to false")
        return super().for_training(recipe)
