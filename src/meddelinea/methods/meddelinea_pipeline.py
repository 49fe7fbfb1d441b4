"""The trained system over 2D slices, in the manner of diffusers: saved, loaded and re-scheduled like its pipelines."""

from __future__ import annotations

from types import MappingProxyType
from typing import Self

from diffusers import SchedulerMixin

from meddelinea.diffusion.sampling import SCHEDULER_CLASSES, make_scheduler
from meddelinea.methods.controlled import ControlledPipeline, build_parts
from meddelinea.methods.protocol import Recipe
from meddelinea.methods.sampled import SampledPipeline
from meddelinea.models.codec import Codec, palette
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import MaskHead


class MedDelineaPipeline(ControlledPipeline, SampledPipeline):
    """Images of slices in, masks out: a `DiffusionPipeline` that samples them.

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

    known_parts = MappingProxyType({**ControlledPipeline.known_parts, "scheduler": SCHEDULER_CLASSES})

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
        """A codec and a DiT that are there, with a new control branch and mask head, see `SlicePipeline`."""
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
