"""What the methods share whose one network sees the noisy mask latent and the image latent side by side."""

from __future__ import annotations

from abc import abstractmethod

import torch
from diffusers import ModelMixin, SchedulerMixin
from torch import Tensor

from meddelinea.methods.comparison import ComparisonPipeline
from meddelinea.models.codec import Codec
from meddelinea.models.mask_head import PlainMaskHead
from meddelinea.models.segmenter import BaseWeights, ImageFeatures, LatentSegmenter


class Concatenated(LatentSegmenter):
    """eps_theta(concat(Z_mt, Z_o), t), trained as a whole.

    Parameters
    ----------
    codec, denoiser, mask_head
        Its parts.
    colours
        See `LatentSegmenter`.
    """

    def __init__(self, codec: Codec, denoiser: ModelMixin, mask_head: PlainMaskHead, colours: Tensor) -> None:
        super().__init__(colours)
        self.codec = codec
        self.denoiser = denoiser
        self.mask_head = mask_head

    @abstractmethod
    def denoise(self, both: Tensor, t: Tensor) -> Tensor:
        """Z_mt and Z_o (B, C + C_o, h, w) at timesteps (B,), or one for all -> the network's output (B, C, h, w)."""

    def train_networks(self, base: BaseWeights) -> None:
        """The whole network: it stands on no base."""
        self.denoiser.requires_grad_(True)

    def forward(self, noisy: Tensor, t: Tensor, image: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Z_mt (B, C, h, w) at timesteps (B,) -> the network's output (B, C, h, w); it has no tokens."""
        both = torch.cat([noisy.to(self.dtype), image.latent], dim=1)  # (B, C + C_o, h, w)
        return self.denoise(both, t), noisy.new_empty(0)


class ConcatenatedPipeline(ComparisonPipeline):
    """A pipeline over such a network, its component `denoiser`; the other parameters as of `MedDelineaPipeline`."""

    def __init__(
        self,
        codec: Codec,
        denoiser: ModelMixin,
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
