"""What the pipelines of all methods share: how they are called, what they answer, and their configuration."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked
from torch import Tensor, nn

from meddelinea.diffusion.losses import Objective
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.sampling import make_scheduler
from meddelinea.diffusion.schedule import TIMESTEPS, PredictionType
from meddelinea.errors import UsageError
from meddelinea.labels import canonical_name
from meddelinea.methods.protocol import Method, Patch, Recipe, Sampler
from meddelinea.models.codec import palette

MaskType = Literal["mask", "probabilities", "logits"]
#: Images (B, slices, H, W) and the B keys of their noise -> organ ids (B, H, W).
MaskSource = Callable[[Tensor, Sequence[NoiseKey]], Tensor]
Whole = Annotated[int, Field(strict=True)]
Level = Annotated[float, Field(strict=True, ge=-1.0, le=1.0)]


@checked(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Settings:
    """Settings of a saved pipeline, checked; a pipeline has those that its `__init__` describes."""

    organs: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=255)]
    neighbours: Annotated[Whole, Field(ge=0, le=64)] = 0
    neighbour_pairs: Annotated[Whole, Field(ge=1, le=16)] = 1
    colours: list[tuple[Level, Level, Level]] | None = None
    prediction_type: PredictionType = "epsilon"
    default_steps: Annotated[Whole, Field(ge=1, le=TIMESTEPS)] = 1

    def __post_init__(self) -> None:
        names = [canonical_name(name) for name in self.organs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"organs: {twice[0]!r} occurs twice; expected each once")
        if not all(map(str.isprintable, names)):
            raise ValueError("organs: a name that cannot be printed")
        if self.colours is not None and len(self.colours) != len(names) + 1:
            raise ValueError(f"colours: {len(self.colours)} for {len(names)} organs and the background")


@dataclass
class SegmentationOutput(BaseOutput):
    """The answer of a pipeline: the one field that `output_type` asks for, as in diffusers also by index 0.

    Parameters
    ----------
    masks
        (B, H, W) uint8: 0 the background, 1..L the pipeline's `organs`.
    probabilities
        (B, L + 1, H, W) float32, which sum to 1 in each pixel.
    logits
        (B, L + 1, H, W) float32.
    latents
        (B, C, H/8, W/8) float32, or of pixels (B, L + 1, H, W): the mask before it is decoded, where it is sampled.
    """

    masks: Tensor | None = None
    probabilities: Tensor | None = None
    logits: Tensor | None = None
    latents: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, output_type: MaskType) -> SegmentationOutput:
        """Logits (B, L + 1, H, W) in the form that is asked for."""
        logits = logits.float()
        match output_type:
            case "mask":
                return cls(masks=logits.argmax(dim=1).to(torch.uint8))
            case "probabilities":
                return cls(probabilities=logits.softmax(dim=1))
            case "logits":
                return cls(logits=logits)


class SlicePipeline(DiffusionPipeline, ABC):
    """A trained model over slices, saved and loaded in the manner of diffusers; organs and neighbours are configured.

    Parameters of its `__init__` without a default are its components, those with one its settings: so diffusers has it.
    """

    #: Its components, and the classes that each may be of; None where it may be left out.
    known_parts: ClassVar[Mapping[str, tuple[type[Any] | None, ...]]]

    def _keep(self, given: Mapping[str, Any]) -> None:
        """Register what `__init__` was given, its `locals()`: its components, and all else as settings."""
        self.register_modules(**{name: given[name] for name in self.known_parts})
        known = inspect.signature(type(self).__init__).parameters
        settings = {name: given[name] for name in known if name != "self" and name not in self.known_parts}
        self.register_to_config(**{**settings, "organs": list(given["organs"] or [])})

    @classmethod
    def _made(cls, recipe: Recipe, parts: Mapping[str, Any]) -> Self:
        """A new pipeline of these components, with a scheduler and those settings of a recipe that it has."""
        asked = {
            "scheduler": make_scheduler(recipe.scheduler),
            "organs": list(recipe.organs),
            "prediction_type": recipe.objective.prediction_type,
            "default_steps": recipe.steps,
            "neighbours": recipe.neighbours,
            "neighbour_pairs": recipe.neighbour_pairs,
        }
        known = inspect.signature(cls.__init__).parameters
        if "colours" in known:  # which cannot be listed where networks are built without memory
            asked["colours"] = palette(len(recipe.organs) + 1).tolist()
        return cls(**parts, **{name: value for name, value in asked.items() if name in known})

    @property
    def organs(self) -> tuple[str, ...]:
        """Canonical names behind channels 1..L."""
        return tuple(self.config.organs)

    @property
    def neighbours(self) -> int:
        """Distance in slices of the slices in an image's channels; 0 where the slice is repeated."""
        return int(self.config.neighbours)

    @property
    def neighbour_pairs(self) -> int:
        """Pairs of neighbours in an image's channels, 2 pairs + 1 in all."""
        return int(self.config.neighbour_pairs)

    @property
    def patch(self) -> Patch | None:
        """What it sees of a scan at a time; None where it segments slice by slice."""
        return None

    @property
    def networks(self) -> list[nn.Module]:
        """Those of its parts that have weights."""
        return [part for part in self.components.values() if isinstance(part, nn.Module)]

    @property
    @abstractmethod
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it."""

    @abstractmethod
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

    @classmethod
    @abstractmethod
    def check_sizes(cls, preset: str, sizes: Mapping[str, Any]) -> None:
        """Whether networks of these sizes can be built, see `Recipe`; before anything is read or built.

        Raises
        ------
        UsageError
            If the method does not know a size, or sizes are out of range or do not fit each other.
        """

    @classmethod
    @abstractmethod
    def new(cls, recipe: Recipe) -> Self:
        """A model to train, with random weights where the recipe gives no trained components.

        Raises
        ------
        UsageError
            If the recipe has sizes that the method does not know, or that do not fit each other.
        WeightsMissingError
            If a component is absent.
        """

    @classmethod
    def parameter_count(cls, preset: str, organs: int) -> int:
        """True number of parameters of a preset for so many organs, counted on networks that hold no memory.

        All are counted that make a mask, trained or frozen, but an autoencoder, which Table 4 leaves out too; for
        slices of 256 pixels with two neighbours. A method that stands on trained components counts its own way.

        Raises
        ------
        UsageError
            If there is no such preset, or the method needs a package that is not installed.
        """
        recipe = Recipe(
            organs=tuple(f"organ {number}" for number in range(1, organs + 1)),
            neighbours=0,
            neighbour_pairs=1,
            side=256,
            preset=preset,
            sizes={},
            codec=None,
            dit=None,
            trainable_decoder="final_layer",
            base="frozen",
            objective=Objective(),
            steps=1,
            scheduler="euler_ancestral",
        )
        with torch.device("meta"):
            networks = cls.new(recipe).networks
        return sum(p.numel() for network in networks for p in network.parameters())

    @abstractmethod
    def change_organs(self, organs: tuple[str, ...]) -> None:
        """Carry the model over to other organs: what it knows of those that it has already, by name, stays."""

    def prompted_by(self, masks: MaskSource) -> Self:
        """A copy whose boxes are those around masks that it is given: with the true ones, what it reaches at best.

        No model is saved so, and nothing but a benchmark asks for it.

        Raises
        ------
        UsageError
            If the method takes no boxes.
        """
        raise UsageError("this method takes no boxes; leave boxes: truth out")

    @abstractmethod
    def for_training(self, recipe: Recipe) -> Method:
        """The model as a method whose trained parameters alone require gradients.

        Raises
        ------
        UsageError
            If the model cannot be trained for the recipe's objective.
        """

    @torch.no_grad()
    def __call__(
        self, images: Tensor, *, output_type: MaskType = "mask", return_dict: bool = True
    ) -> SegmentationOutput | tuple[Tensor, ...]:
        """Segment a batch of slices in one pass; there is no noise in it, and there are no steps.

        Parameters
        ----------
        images
            (B, slices, H, W) in [-1, 1], H and W multiples of `multiple`; moved to the pipeline's device.
        output_type
            Which field of the answer is wanted: `mask`, `probabilities` or `logits`.
        return_dict
            As everywhere in diffusers: an object with a named field, or a tuple of its value.

        Raises
        ------
        UsageError
            If the images do not have that shape, or there is no such output type.
        """
        self._require_images(images)
        self._require_choice(output_type, get_args(MaskType))
        logits = self.sampler().method.segment(images.to(self.device), ())
        output = SegmentationOutput.of(logits, output_type)
        return output if return_dict else output.to_tuple()

    def _require_images(self, images: Tensor) -> None:
        slices, multiple = 2 * self.neighbour_pairs + 1, self.multiple
        if images.ndim != 4 or images.shape[1] != slices or images.shape[2] % multiple or images.shape[3] % multiple:
            raise UsageError(
                f"images of shape {tuple(images.shape)}; expected (B, {slices}, H, W), H and W multiples of {multiple}",
                parameter="images",
            )

    @staticmethod
    def _require_choice(output_type: str, known: tuple[str, ...]) -> None:
        if output_type not in known:
            raise UsageError(
                f"output type {output_type!r}; expected one of {', '.join(known)}", parameter="output_type"
            )
