"""The seam between methods and everything else: training, volume inference and evaluation know no more of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from meddelinea.diffusion.losses import Objective
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.models.segmenter import BaseWeights, TrainableDecoder


class Patch(NamedTuple):
    """What a network in three dimensions sees of a scan at a time."""

    depth: int  # consecutive slices
    side: int  # rows and columns


class Batch(NamedTuple):
    """A training batch; the random numbers come with it, so that a loss is a function of its batch."""

    images: Tensor  # (B, slices, H, W) in [-1, 1]; of patches (B, depth, side, side)
    masks: Tensor  # (B, H, W) organ ids; of patches (B, depth, side, side)
    noise: Tensor  # (B, C, H/8, W/8) standard normal, C the stage's `noise_channels`
    uniform: Tensor  # (B,) in [0, 1), from which the timestep is made


class Method(Protocol):
    """A way to segment slices, and the losses to learn it with; a module of torch."""

    @property
    def noise_channels(self) -> int:
        """Channels of the noise in its loss, those of its latents; 0 where there is none."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses; `total` is the one to minimise."""

    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Masks of a batch of slices.

        Parameters
        ----------
        images
            (B, slices, H, W) in [-1, 1]: each slice in the middle of its neighbours. Where `Sampler.depth` is above 1,
            the B slices are consecutive ones of a scan, from the feet to the head, and segmented as a volume.
        noise
            B keys, all that is random in a mask: the same key gives the same mask.

        Returns
        -------
        Logits (B, L + 1, H, W) of the slice in the middle, channel 0 the background.
        """


class Sampler(NamedTuple):
    """A method that is ready to segment, and how it samples."""

    method: Method
    steps: int | None  # None where the method does not sample: steps, scheduler and samples then change nothing
    scheduler: str | None  # a name of `SCHEDULERS`, or a scheduler's class; None where the method does not sample
    depth: int = 1  # consecutive slices that it segments together


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a run asks of a model; a method takes what concerns it."""

    organs: tuple[str, ...]  # canonical names for channels 1..L
    #: See `methods.pipeline.SlicePipeline`.
    neighbours: int
    neighbour_pairs: int
    side: int  # rows and columns of the smallest slices that it is trained on
    #: Sizes of `models.presets`, and those that the run changes; a method of other sizes has names of its own.
    preset: str
    sizes: Mapping[str, Any]
    #: Folders of trained components to stand on; None for a method that stands on none.
    codec: Path | None
    dit: Path | None
    boxes: Path | None = None  # a trained model that draws the boxes of a method that takes some
    trainable_decoder: TrainableDecoder  # how much of the codec's decoder is trained
    base: BaseWeights  # what becomes of the DiT
    objective: Objective  # what it is trained for
    #: How it samples, in validation and afterwards where nothing else is asked for.
    steps: int
    scheduler: str

    @property
    def slices(self) -> int:
        """Channels of an image: a slice and its neighbours."""
        return 2 * self.neighbour_pairs + 1


class Stage(nn.Module, ABC):
    """What the engine trains: a network with its losses, and what it leaves behind."""

    #: Names behind the channels 1..L of `predict`.
    organs: tuple[str, ...]
    #: Channels of the noise in its loss; 0 where there is none.
    noise_channels: int
    #: What it is trained on; whole slices, each by itself, where None.
    patch: Patch | None = None

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses; `total` is the one to minimise."""

    @abstractmethod
    def predict(self, images: Tensor, masks: Tensor, keys: Sequence[NoiseKey]) -> Tensor | None:
        """Mask logits for validation, (B, L + 1, H, W); None where the stage makes no masks.

        Parameters
        ----------
        images, masks
            (B, slices, H, W) in [-1, 1] and (B, H, W): only a codec, which is measured on masks, may look at these.
        keys
            B keys of the noise.
        """

    def read_back(self, images: Tensor) -> Tensor | None:
        """Images (B, 3, H, W) as they come back from their latents; None of a stage that is no autoencoder."""
        return None

    @abstractmethod
    def finish(self, folder: Path, masks: Tensor) -> None:
        """Write what was trained into `folder`, in diffusers' form; `masks` (n, H, W) are some of its training."""
