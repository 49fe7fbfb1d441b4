"""MedSegDiff (Wu et al. 2022) as a method: diffusion over the pixels of masks, conditioned on the image.

Its ensemble is what the other sampled methods have too: several samples of a slice, whose shares are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self, get_args

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from meddelinea.diffusion.losses import Objective, timesteps
from meddelinea.diffusion.noise import Noise, NoiseKey
from meddelinea.diffusion.sampling import SCHEDULER_CLASSES, make_scheduler, sample, scheduler_name
from meddelinea.diffusion.schedule import NoiseSchedule, Prediction, PredictionType
from meddelinea.errors import UsageError
from meddelinea.methods.network import Widths, check_side, chosen_sizes
from meddelinea.methods.pipeline import MaskType, SegmentationOutput, SlicePipeline
from meddelinea.methods.protocol import Batch, Recipe, Sampler
from meddelinea.models.codec import FACTOR
from meddelinea.models.mask_head import UNLIKELY
from meddelinea.models.medsegdiff import MedSegDiffUNet
from meddelinea.models.presets import CHECKED, Whole

#: What a network answers for an organ that it does not know, so that the clean mask is -1 at the last timestep. Noise
#: cannot be answered without being seen: there the organ is drawn at random until it is learnt.
ABSENT: Mapping[PredictionType, float] = {"epsilon": 0.0, "sample": -1.0, "v_prediction": 1.0}


class MedSegDiff(nn.Module):
    """The network with its noise schedule and objective.

    A mask has a channel a class, 1 where a pixel is of it and -1 elsewhere; its noise is drawn in pixels.

    Parameters
    ----------
    network
        Denoises masks.
    objective
        How it is trained; `segment` needs its prediction type only.
    scheduler, steps
        How `segment` samples: a scheduler of diffusers, see `diffusion.sampling`, and its number of steps.
    """

    def __init__(self, network: MedSegDiffUNet, objective: Objective, scheduler: SchedulerMixin, *, steps: int) -> None:
        super().__init__()
        self.network = network
        self.objective = objective
        self.scheduler = scheduler
        self.steps = steps
        self.schedule = NoiseSchedule.linear()
        self.prediction = Prediction(self.schedule, objective.prediction_type)

    @property
    def classes(self) -> int:
        """L + 1."""
        return int(self.network.config.organs) + 1

    @property
    def noise_channels(self) -> int:
        """Those of a mask, folded to the eighth of its size that a batch's noise has."""
        return self.classes * FACTOR**2

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L_diff alone: the mean squared error of what the network predicts."""
        clean = 2.0 * F.one_hot(batch.masks, self.classes).movedim(3, 1).float() - 1.0  # (B, L + 1, H, W)
        noise = F.pixel_shuffle(batch.noise, FACTOR)  # (B, L + 1, H, W)
        t = timesteps(batch.uniform, len(self.schedule), self.objective)  # (B,)
        noisy = self.schedule.add_noise(clean, noise, t)  # (B, L + 1, H, W)
        output = self.network(noisy, t, batch.images).float()  # (B, L + 1, H, W)
        loss = F.mse_loss(output, self.prediction.target(clean, noise, t))
        return {"diffusion": loss, "total": loss}

    @torch.no_grad()
    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Sample masks for images (B, slices, H, W) and B keys -> logits (B, L + 1, H, W)."""
        return self.sample(images, Noise.keyed(noise, (self.classes, *images.shape[2:])))

    def sample(self, images: Tensor, noise: Noise) -> Tensor:
        """Images (B, slices, H, W) and noise (B, L + 1, H, W) -> logits (B, L + 1, H, W)."""
        as_clean = Prediction(self.schedule, "sample")

        def denoise(noisy: Tensor, t: Tensor) -> tuple[Tensor, None]:
            # All slices are at one timestep; see `MedDelinea.sample`.
            output = self.network(noisy, t[:1], images).float()  # (B, L + 1, H, W)
            # A mask is bound to [-1, 1], which bounds what an error of the noise can do at high noise.
            clean = self.prediction.clean(output, noisy, t).clamp(-1.0, 1.0)  # (B, L + 1, H, W)
            return as_clean.epsilon(clean, noisy, t), None

        clean, _ = sample(denoise, noise, self.scheduler, steps=self.steps, device=images.device)  # (B, L + 1, H, W)
        return -UNLIKELY * clean  # so that absent organs are as unlikely as new ones of other networks


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


class MedSegDiffPipeline(SlicePipeline):
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
        self.register_modules(network=network, scheduler=scheduler)
        self.register_to_config(
            organs=organs or [],
            prediction_type=prediction_type,
            default_steps=default_steps,
            neighbours=neighbours,
            neighbour_pairs=neighbour_pairs,
        )

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
        return cls(
            network,
            make_scheduler(recipe.scheduler),
            organs=list(recipe.organs),
            prediction_type=recipe.objective.prediction_type,
            default_steps=recipe.steps,
            neighbours=recipe.neighbours,
            neighbour_pairs=recipe.neighbour_pairs,
        )

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return int(self.network.multiple)

    def change_organs(self, organs: tuple[str, ...]) -> None:
        """Carry the mask's channels over to other organs, by their names."""
        new = ABSENT[self.config.prediction_type]
        self.register_modules(network=self.network.for_organs(self.organs, organs, new=new))
        self.register_to_config(organs=list(organs))

    def for_training(self, recipe: Recipe) -> MedSegDiff:
        """The network as a method that samples as the recipe says, trained as a whole."""
        kind = self.config.prediction_type
        if kind != recipe.objective.prediction_type:
            raise UsageError(f"model.pipeline: it predicts '{kind}'; set objective.prediction_type to that")
        if recipe.objective.recycle:
            raise UsageError("objective.recycle: this method trains on true masks alone; set it to false")
        self.register_modules(scheduler=make_scheduler(recipe.scheduler))
        self.register_to_config(default_steps=recipe.steps)
        return MedSegDiff(self.network, recipe.objective, self.scheduler, steps=recipe.steps)

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The network as a method, on the pipeline's device and in evaluation mode, see `SlicePipeline`."""
        method = self._method(steps, self.scheduler if scheduler is None else make_scheduler(scheduler))
        return Sampler(method, method.steps, scheduler_name(method.scheduler))

    def _method(self, steps: int | None, scheduler: SchedulerMixin) -> MedSegDiff:
        objective = Objective(prediction_type=self.config.prediction_type)
        steps = int(self.config.default_steps) if steps is None else steps
        return MedSegDiff(self.network, objective, scheduler, steps=steps).to(self.device).eval()

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        *,
        num_inference_steps: int | None = None,
        keys: Sequence[NoiseKey] | None = None,
        output_type: MaskType = "mask",
        return_dict: bool = True,
    ) -> SegmentationOutput | tuple[Tensor, ...]:
        """Segment a batch of slices.

        Parameters
        ----------
        images
            (B, slices, H, W) in [-1, 1], H and W multiples of `multiple`; moved to the pipeline's device.
        num_inference_steps
            Sampling steps, 1..1000; the pipeline's `default_steps` where None.
        keys
            Where the noise of each image comes from: the same key gives the same mask in any batch and on any device.
            Noise of torch's global generator where None.
        output_type, return_dict
            As of every `SlicePipeline`.

        Raises
        ------
        UsageError
            If the images do not have that shape, there is no such output type, the number of steps is out of range, or
            there is not one key an image.
        """
        self._require_images(images)
        self._require_choice(output_type, get_args(MaskType))
        if keys is not None and len(keys) != len(images):
            raise UsageError(f"{len(keys)} noise keys for {len(images)} images; expected one each", parameter="keys")
        method, images = self._method(num_inference_steps, self.scheduler), images.to(self.device)
        shape = (method.classes, *images.shape[2:])
        noise = Noise.drawn(None, (len(images), *shape), self.device) if keys is None else Noise.keyed(keys, shape)
        output = SegmentationOutput.of(method.sample(images, noise), output_type)
        return output if return_dict else output.to_tuple()
