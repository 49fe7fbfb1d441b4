"""What the pipelines share whose masks are sampled, with diffusion over latents or over pixels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, Protocol, Self, get_args

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from torch import Tensor

from meddelinea.diffusion.losses import Objective
from meddelinea.diffusion.noise import Noise, NoiseKey
from meddelinea.diffusion.sampling import StepCallback, make_scheduler, scheduler_name
from meddelinea.errors import UsageError
from meddelinea.methods.meddelinea import MedDelinea
from meddelinea.methods.pipeline import MaskType, SegmentationOutput, SlicePipeline
from meddelinea.methods.protocol import Method, Recipe, Sampler
from meddelinea.models.segmenter import ImageFeatures, LatentSegmenter

OutputType = MaskType | Literal["latent"]
#: The pipeline, the number of the step, its timestep, and tensors by name -> those that are to be changed.
PipelineCallback = Callable[[DiffusionPipeline, int, Tensor, dict[str, Tensor]], Mapping[str, Tensor] | None]


class SampledMethod(Method, Protocol):
    """A method whose latents are sampled in steps: `MedDelinea`, or one whose networks differ in more than weights."""

    steps: int

    @property
    def segmenter(self) -> LatentSegmenter:
        """Its networks."""

    def to(self, device: torch.device) -> Self:
        """As of every module."""

    def eval(self) -> Self:
        """As of every module."""

    def sample(self, image: ImageFeatures, noise: Noise, on_step: StepCallback) -> tuple[Tensor, Tensor]:
        """Clean latents (B, C, h, w), and tokens for the mask head."""


class SampledPipeline(SlicePipeline):
    """A pipeline that samples masks by a scheduler of diffusers, one of its components; trained as `MedDelinea`."""

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents"]

    @abstractmethod
    def segmenter(self) -> LatentSegmenter:
        """The components put together."""

    def build_method(self, objective: Objective, scheduler: SchedulerMixin, steps: int) -> SampledMethod:
        """The components as a method that samples so."""
        return MedDelinea(self.segmenter(), objective, scheduler, steps=steps)

    def for_training(self, recipe: Recipe) -> Method:
        """The components as a method that samples as the recipe says; those stay frozen that its network freezes."""
        kind = self.config.prediction_type
        if kind != recipe.objective.prediction_type:
            raise UsageError(f"model.pipeline: it predicts '{kind}'; set objective.prediction_type to that")
        self.register_modules(scheduler=make_scheduler(recipe.scheduler))
        self.register_to_config(default_steps=recipe.steps)
        method = self.build_method(recipe.objective, self.scheduler, recipe.steps)
        method.segmenter.freeze(recipe.trainable_decoder, recipe.base)
        return method

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The components as a method, on the pipeline's device and in evaluation mode, see `SlicePipeline`."""
        method = self._method(steps, scheduler)
        return Sampler(method, method.steps, scheduler or scheduler_name(self.scheduler))

    def _method(self, steps: int | None = None, scheduler: str | None = None) -> SampledMethod:
        objective = Objective(prediction_type=self.config.prediction_type)
        steps = int(self.config.default_steps) if steps is None else steps
        chosen = self.scheduler if scheduler is None else make_scheduler(scheduler)
        return self.build_method(objective, chosen, steps).to(self.device).eval()

    @property
    def num_timesteps(self) -> int:
        """Steps of the call that is under way, or was the last."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor,
        *,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        keys: Sequence[NoiseKey] | None = None,
        output_type: OutputType = "mask",
        return_dict: bool = True,
        callback_on_step_end: PipelineCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> SegmentationOutput | tuple[Tensor, ...]:
        """Segment a batch of slices.

        Parameters
        ----------
        images
            (B, slices, H, W) in [-1, 1], H and W multiples of `multiple`; moved to the pipeline's device.
        num_inference_steps
            Sampling steps, 1..1000; the pipeline's `default_steps` where None.
        generator
            Draws the noise, as in diffusers: one for the batch, or one for each image. Neither it nor `keys`: torch's
            global one.
        keys
            In its place, where the noise of each image comes from: the same key gives the same mask in any batch and
            on any device.
        output_type
            Which field of the answer is wanted: `mask`, `probabilities`, `logits` or `latent`.
        return_dict
            As everywhere in diffusers: an object with a named field, or a tuple of its value.
        callback_on_step_end
            Called after each step as `callback(pipeline, step, timestep, tensors)`; the tensors in the dictionary that
            it returns take the place of the step's own.
        callback_on_step_end_tensor_inputs
            Names of the tensors that it is given; there are `latents`, float32, of the shape of the noise.

        Raises
        ------
        UsageError
            If the images do not have that shape, a choice is unknown, the number of steps is out of range, or the
            noise is given twice or not for each image.
        """
        self._require_images(images)
        self._require_choice(output_type, (*get_args(MaskType), "latent"))
        _require_noise(len(images), generator, keys)
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise UsageError(
                f"tensors {', '.join(unknown)} for the callback; expected {', '.join(self._callback_tensor_inputs)}",
                parameter="callback_on_step_end_tensor_inputs",
            )

        method = self._method(num_inference_steps)
        self._num_timesteps = method.steps
        image = method.segmenter.encode_image(images.to(self.device))
        shape = method.segmenter.latent_shape(image)
        noise = Noise.drawn(generator, shape, self.device) if keys is None else Noise.keyed(keys, shape[1:])

        with self.progress_bar(total=method.steps) as bar:

            def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
                bar.update()
                if callback_on_step_end is None:
                    return latents
                given = {"latents": latents} if "latents" in callback_on_step_end_tensor_inputs else {}
                changed = callback_on_step_end(self, step, timestep, given) or {}
                return changed.get("latents", latents)

            clean, tokens = method.sample(image, noise, on_step)  # (B, C, h, w), (B, T, D)

        if output_type == "latent":
            output = SegmentationOutput(latents=clean)
        else:
            output = SegmentationOutput.of(method.segmenter.decode(clean, image, tokens), output_type)
        return output if return_dict else output.to_tuple()


def _require_noise(
    images: int, generator: torch.Generator | list[torch.Generator] | None, keys: Sequence[NoiseKey] | None
) -> None:
    """Refuse noise that is given twice, or not for each image."""
    if generator is not None and keys is not None:
        raise UsageError("a generator and keys, which are both noise; expected one of them", parameter="keys")
    if keys is not None and len(keys) != images:
        raise UsageError(f"{len(keys)} noise keys for {images} images; expected one each", parameter="keys")
    if isinstance(generator, list) and len(generator) != images:
        raise UsageError(
            f"{len(generator)} generators for {images} images; expected one, or one each", parameter="generator"
        )
