"""The trained system over 2D slices, in the manner of diffusers: saved, loaded and re-scheduled like its pipelines."""

from __future__ import annotations

from types import MappingProxyType

from diffusers import SchedulerMixin

from meddelinea.diffusion.sampling import SCHEDULER_CLASSES
from meddelinea.methods.controlled import ControlledPipeline
from meddelinea.methods.sampled import SampledPipeline
from meddelinea.models.codec import Codec
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
        self._keep(locals())
