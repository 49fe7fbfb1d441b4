"""The seam between methods and everything else: training, volume inference and evaluation know no more of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from meddelinea.diffusion.noise import NoiseKey


class Batch(NamedTuple):
    """A training batch; the random numbers come with it, so that a loss is a function of its batch."""

    images: Tensor  # (B, slices, H, W) in [-1, 1]
    masks: Tensor  # (B, H, W) organ ids
    noise: Tensor  # (B, 4, h, w) standard normal
    uniform: Tensor  # (B,) in [0, 1), from which the timestep is made


class Method(Protocol):
    """A way to segment slices, and the losses to learn it with; a module of torch."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses; `total` is the one to minimise."""

    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Masks of a batch of slices.

        Parameters
        ----------
        images
            (B, slices, H, W) in [-1, 1]: each slice in the middle of its neighbours. A network in three dimensions
            takes these slices as its slab.
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


class Pipeline(Protocol):
    """A trained model over slices, saved and loaded in the manner of diffusers: what inference asks of it."""

    @property
    def organs(self) -> tuple[str, ...]:
        """Canonical names behind channels 1..L."""

    @property
    def neighbours(self) -> int:
        """Distance in slices of the slices in an image's channels; 0 where the slice is repeated."""

    @property
    def neighbour_pairs(self) -> int:
        """Pairs of neighbours in an image's channels, 2 pairs + 1 in all."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def components(self) -> Mapping[str, Any]:
        """Its parts by name: networks, and a scheduler where it samples."""

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The model as a method, on the pipeline's device and in evaluation mode.

        Parameters
        ----------
        steps, scheduler
            Number of sampling steps, and a name of `SCHEDULERS`; the model's own where None.

        Raises
        ------
        UsageError
            If the scheduler is unknown.
        """


class Stage(nn.Module, ABC):
    """What the engine trains: a network with its losses, and what it leaves behind."""

    #: Names behind the channels 1..L of `predict`.
    organs: tuple[str, ...]

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

    @abstractmethod
    def finish(self, folder: Path, masks: Tensor) -> Path:
        """Write what was trained into a folder of `folder`, in diffusers' form, and return that.

        Parameters
        ----------
        masks
            (n, H, W), some of the masks that it was trained on.
        """
