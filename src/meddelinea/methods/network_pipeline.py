"""A trained baseline over 2D slices, saved and loaded in the manner of diffusers."""

from __future__ import annotations

from meddelinea.methods.dynunet import DynUNet
from meddelinea.methods.network import Baseline
from meddelinea.methods.pipeline import SlicePipeline
from meddelinea.methods.protocol import Sampler
from meddelinea.methods.unet import UNet


class BaselinePipeline(SlicePipeline):
    """Images of slices in, mask logits out, in one step and without noise.

    Parameters
    ----------
    network
        Its only component.
    organs
        Canonical names behind channels 1..L.
    neighbours
        Distance in slices of the slices in an image's channels; 0 where the slice is repeated.
    neighbour_pairs
        Pairs of neighbours in an image's channels, 2 pairs + 1 in all.
    default_steps
        Always 1.
    """

    def __init__(
        self,
        network: UNet | DynUNet,
        organs: list[str] | None = None,
        neighbours: int = 0,
        neighbour_pairs: int = 1,
        default_steps: int = 1,
    ) -> None:
        super().__init__()
        self.register_modules(network=network)
        self.register_to_config(
            organs=organs or [],
            neighbours=neighbours,
            neighbour_pairs=neighbour_pairs,
            default_steps=default_steps,
        )

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The network as a method, see `Pipeline`; it takes one step, whatever is asked for."""
        return Sampler(Baseline(self.network, "bce").to(self.device).eval(), None, None)
