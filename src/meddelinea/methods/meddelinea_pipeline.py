"""The trained system over 2D slices, in the manner of diffusers: saved, loaded and re-scheduled like its pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from diffusers import SchedulerMixin
from torch import Tensor

from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.objective import Objective
from meddelinea.diffusion.sampling import make_scheduler, scheduler_name
from meddelinea.errors import UsageError
from meddelinea.methods.controlled import ControlledPipeline, build_parts
from meddelinea.methods.meddelinea import MedDelinea
from meddelinea.methods.protocol import Recipe, Sampler
from meddelinea.models.codec import FACTOR, Codec, palette
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import MaskHead


class MedDelineaPipeline(ControlledPipeline):
    """Images of slices in, mask logits out.

    Parameters
    ----------
    codec, dit, control, mask_head, scheduler
        Its components, each a sub-folder of a checkpoint. `mask_head` may be None, see `Segmenter`.
    organs
        Canonical names behind channels 1..L.
    prediction_type
        What the DiT was trained to predict: `epsilon`, `sample` or `v_prediction`.
    default_steps
        Sampling steps where a call names none.
    neighbours
        Distance in slices of the slices in an image's channels; 0 where the slice is repeated.
    neighbour_pairs
        Pairs of neighbours in an image's channels, 2 pairs + 1 in all.
    colours
        The palette that masks are painted with, L + 1 triples; `models.codec.palette` where None.
    """

    def __init__(
        self,
        codec: Codec,
        dit: DiT,
        control: ControlDiT,
        mask_head: MaskHead | None,
        scheduler: SchedulerMixin,
        organs: list[str] | None = None,
        prediction_type: str = "epsilon",
        default_steps: int = 20,
        neighbours: int = 0,
        neighbour_pairs: int = 1,
        colours: list[list[float]] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(codec=codec, dit=dit, control=control, mask_head=mask_head, scheduler=scheduler)
        self.register_to_config(
            organs=organs or [],
            prediction_type=prediction_type,
            default_steps=default_steps,
            neighbours=neighbours,
            neighbour_pairs=neighbour_pairs,
            colours=colours,
        )

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """A codec and a DiT that are there, with a new control branch and mask head, see `TrainablePipeline`."""
        return cls(
            **build_parts(recipe)._asdict(),
            scheduler=make_scheduler(recipe.scheduler),
            organs=list(recipe.organs),
            prediction_type=recipe.objective.prediction_type,
            default_steps=recipe.steps,
            neighbours=recipe.neighbours,
            neighbour_pairs=recipe.neighbour_pairs,
            colours=palette(len(recipe.organs) + 1).tolist(),
        )

    def for_training(self, recipe: Recipe) -> MedDelinea:
        """The components as a method that samples as the recipe says; base and encoder are frozen."""
        kind = self.config.prediction_type
        if kind != recipe.objective.prediction_type:
            raise UsageError(f"model.pipeline: it predicts '{kind}'; set objective.prediction_type to that")
        self.register_modules(scheduler=make_scheduler(recipe.scheduler))
        self.register_to_config(default_steps=recipe.steps)
        segmenter = self.segmenter()
        segmenter.freeze(recipe.trainable_decoder)
        return MedDelinea(segmenter, recipe.objective, self.scheduler, recipe.steps)

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The components as a method, on the pipeline's device and in evaluation mode, see `Pipeline`."""
        chosen = self.scheduler if scheduler is None else make_scheduler(scheduler)
        steps = int(self.config.default_steps) if steps is None else steps
        objective = Objective(prediction_type=self.config.prediction_type)
        method = MedDelinea(self.segmenter(), objective, chosen, steps).to(self.device).eval()
        return Sampler(method, steps, scheduler_name(chosen))

    def __call__(self, images: Tensor, keys: Sequence[NoiseKey], steps: int | None = None) -> Tensor:
        """Segment a batch of slices.

        Parameters
        ----------
        images
            (B, slices, H, W) in [-1, 1], H and W multiples of 8 times the patch size; moved to the pipeline's device.
        keys
            Where the noise of each slice comes from.
        steps
            Sampling steps; the pipeline's default where None.

        Returns
        -------
        Logits (B, L + 1, H, W), channel 0 the background, on the pipeline's device.

        Raises
        ------
        UsageError
            If the images do not have that shape, or there is not one key for each.
        """
        multiple = FACTOR * self.dit.config.patch_size
        slices = 2 * self.config.neighbour_pairs + 1
        if images.ndim != 4 or images.shape[1] != slices or images.shape[2] % multiple or images.shape[3] % multiple:
            raise UsageError(
                f"images of shape {tuple(images.shape)}; expected (B, {slices}, H, W), H and W multiples of {multiple}"
            )
        if len(keys) != len(images):
            raise UsageError(f"{len(keys)} noise keys for {len(images)} images; expected one each")
        return self.sampler(steps).method.segment(images.to(self.device), keys)
