"""A network that is trained to name each pixel: method and pipeline of all that map images to logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Protocol, Self, TypeVar

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from pydantic import Field, ValidationError
from torch import Tensor, nn

from meddelinea.diffusion.losses import PixelLoss, segmentation_loss
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import UsageError, first_fault
from meddelinea.methods.pipeline import SlicePipeline
from meddelinea.methods.protocol import Batch, Recipe, Sampler

Sizes = TypeVar("Sizes")
#: Channels of each resolution from the slice's own to the coarsest, each half as fine as the one before.
Widths = Annotated[tuple[Annotated[int, Field(strict=True, ge=1, le=4096)], ...], Field(min_length=2, max_length=12)]


class Network(Protocol):
    """Images to mask logits: a `ModelMixin` with `ConfigMixin`, so that it is saved as diffusers saves.

    Its module has to import `ModelMixin` by that name: diffusers looks there for what a component is.
    """

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, slices, H, W) -> logits (B, L + 1, H, W); coarser ones after them are trained too."""

    def for_organs(self, known: Sequence[str], wanted: Sequence[str]) -> Self:
        """A copy for the `wanted` organs, where the `known` ones among them keep their weights."""


class PixelClassifier(nn.Module):
    """The `Method` of a network that maps images to logits.

    Parameters
    ----------
    network
        Gives logits, the finest first; coarser ones after it are trained too (deep supervision).
    pixel_loss
        See `diffusion.losses`.
    """

    noise_channels = 0

    def __init__(self, network: Network, pixel_loss: PixelLoss) -> None:
        super().__init__()
        self.network = network
        self.pixel_loss = pixel_loss

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The same L_seg as MedDelinea's, every slice with weight one, summed over the resolutions of the logits."""
        loss = self.segmentation(self.network(batch.images), batch.masks)
        return {"segmentation": loss, "total": loss}

    def segmentation(self, outputs: Sequence[Tensor], masks: Tensor) -> Tensor:
        """L_seg of logits (B, L + 1, H, W), (B, L + 1, H/2, W/2), ... against masks (B, H, W), scalar.

        Both may have a depth before H.
        """
        ones = torch.ones(len(masks), device=masks.device)
        total = torch.zeros((), device=masks.device)
        for logits, weight in zip(outputs, supervision_weights(len(outputs)), strict=True):
            mask = F.interpolate(masks[:, None].float(), logits.shape[2:], mode="nearest-exact")  # (B, 1, H, W), ...
            rows, ids = (
                logits.flatten(2, -2),
                mask[:, 0].long().flatten(1, -2),
            )  # with all rows of a depth
            total = total + weight * segmentation_loss(rows, ids, ones, pixel_loss=self.pixel_loss)
        return total

    @torch.no_grad()
    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Images (B, slices, H, W) -> logits (B, L + 1, H, W); there is no noise in it."""
        logits: Tensor = self.network(images)[0]  # (B, L + 1, H, W)
        return logits


def supervision_weights(resolutions: int) -> list[float]:
    """nnU-Net's weights of the losses at full, half, quarter, ... size: each half of the one before, together 1."""
    halves = [0.5**level for level in range(resolutions)]
    return [half / sum(halves) for half in halves]


class NetworkPipeline(SlicePipeline):
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
    """

    #: The method's sizes by preset: instances of one checked dataclass.
    presets: ClassVar[Mapping[str, Any]]

    def __init__(
        self,
        network: ModelMixin,
        organs: list[str] | None = None,
        neighbours: int = 0,
        neighbour_pairs: int = 1,
    ) -> None:
        super().__init__()
        self._keep(locals())

    @classmethod
    @abstractmethod
    def build(cls, recipe: Recipe) -> Network:
        """A network with random weights."""

    @classmethod
    def check_sizes(cls, preset: str, sizes: Mapping[str, Any]) -> None:
        """Refuse sizes that the method does not know, or that are out of range, see `SlicePipeline`."""
        chosen_sizes(cls.presets, preset, sizes)

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """A pipeline with random weights, see `SlicePipeline`."""
        if recipe.codec or recipe.dit:
            raise UsageError("model.codec, model.dit: this network stands on neither; set both to null")
        return cls._made(recipe, {"network": cls.build(recipe)})

    def change_organs(self, organs: tuple[str, ...]) -> None:
        """Carry the network's output over to other organs, by their names."""
        self.register_modules(network=self.network.for_organs(self.organs, organs))
        self.register_to_config(organs=list(organs))

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""
        return int(self.network.multiple)

    def for_training(self, recipe: Recipe) -> PixelClassifier:
        """The network as a method, trained as a whole."""
        return PixelClassifier(self.network, recipe.objective.pixel_loss)

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The network as a method, see `SlicePipeline`; it takes one step, whatever is asked for."""
        return Sampler(PixelClassifier(self.network, "bce").to(self.device).eval(), None, None)


def chosen_sizes(presets: Mapping[str, Sizes], preset: str, changed: Mapping[str, Any]) -> Sizes:
    """The sizes of a preset, some of them changed.

    Parameters
    ----------
    presets
        Sizes by the preset's name: instances of one pydantic dataclass.
    preset, changed
        What `model.preset` and `model.sizes` of a run file say.

    Raises
    ------
    UsageError
        If there is no such preset or size, or sizes are out of range or do not fit each other.
    """
    if preset not in presets:
        raise UsageError(f"unknown preset {preset!r}; expected {' or '.join(presets)}")
    sizes: Any = presets[preset]
    known = {size.name: getattr(sizes, size.name) for size in fields(sizes)}
    try:
        return type(sizes)(**{**known, **changed})
    except ValidationError as error:
        raise UsageError(f"sizes: {first_fault(error)}; known: {', '.join(known)}") from error


def check_side(side: int, halvings: int) -> None:
    """Refuse slices whose side in pixels a network cannot halve as often as its sizes ask for.

    Raises
    ------
    UsageError
        If it is no multiple of 2^halvings.
    """
    if side % 2**halvings:
        raise UsageError(f"model.sizes: slices of {side} pixels cannot be halved {halvings} times")


def monai_networks() -> Any:
    """The module `monai.networks`, with its `nets` and `blocks`: an extra, imported where a network is built.

    Raises
    ------
    UsageError
        If MONAI is not installed.
    """
    try:
        import monai.networks.blocks
        import monai.networks.nets
    except ImportError as error:
        raise UsageError(f"this network is MONAI's ({error}); pip install 'meddelinea[baselines]'") from error
    return monai.networks
