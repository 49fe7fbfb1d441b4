"""MedSAM (Ma et al. 2024): Segment Anything, trained to outline what a box is around, a box for each organ.

Whose boxes is the question of each of its figures: here those around another model's masks, which it keeps with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Self

import torch
from diffusers import ModelMixin
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from meddelinea.diffusion.losses import PixelLoss, segmentation_loss
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import UsageError, WeightsMissingError
from meddelinea.methods.known import load_pipeline
from meddelinea.methods.network import chosen_sizes
from meddelinea.methods.pipeline import MaskSource, SlicePipeline
from meddelinea.methods.protocol import Batch, Recipe, Sampler
from meddelinea.models.component import load_component
from meddelinea.models.presets import CHECKED, Channels, Whole, component_folder
from meddelinea.models.sam import DECODER_HEADS, SAM, Boxes, boxes_of

#: How far a side of a box is outside of its organ, as a share of the slice's; in training up to twice that, at random.
MARGIN = 0.01
#: Logit of an organ without a box.
ABSENT = -20.0


class MedSAM(nn.Module):
    """The network, and where its boxes come from: in training the true mask, at random a little larger.

    Parameters
    ----------
    network
        Outlines what boxes are around.
    organs
        L.
    pixel_loss
        See `diffusion.losses`.
    source
        Masks whose boxes `segment` takes.
    """

    def __init__(self, network: SAM, organs: int, pixel_loss: PixelLoss, source: MaskSource) -> None:
        super().__init__()
        self.network = network
        self.organs = organs
        self.pixel_loss = pixel_loss
        self.source = source

    @property
    def noise_channels(self) -> int:
        """One for each side of each organ's box; one number of it says how far that is moved."""
        return 4 * self.organs

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The same L_seg as MedDelinea's, every slice with weight one."""
        uniform = torch.special.ndtr(batch.noise[:, :, 0, 0]).view(-1, self.organs, 4)  # (B, L, 4) in 0..1
        boxes = boxes_of(batch.masks, self.organs, 2.0 * MARGIN * batch.masks.shape[2] * uniform)
        ones = torch.ones(len(batch.masks), device=batch.masks.device)
        logits = self.joined(batch.images, boxes)  # (B, L + 1, H, W)
        loss = segmentation_loss(logits, batch.masks, ones, pixel_loss=self.pixel_loss)
        return {"segmentation": loss, "total": loss}

    @torch.no_grad()
    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Images (B, slices, H, W) and the keys of what the other model draws -> logits (B, L + 1, H, W)."""
        masks = self.source(images, noise)  # (B, H, W)
        margin = torch.tensor(MARGIN * images.shape[3], device=images.device)
        return self.joined(images, boxes_of(masks, self.organs, margin))

    def joined(self, images: Tensor, boxes: Boxes) -> Tensor:
        """Images (B, slices, H, W) and boxes -> logits (B, L + 1, H, W), of the background zero, of an organ its box's.

        Of a slice with one box the organ's share is the sigmoid of its logit, as MedSAM has it.
        """
        outlined = self.network(images, boxes)  # (n, H, W)
        logits = outlined.new_full((len(images), self.organs + 1, *images.shape[2:]), ABSENT)  # (B, L + 1, H, W)
        logits[:, 0] = 0.0
        return logits.index_put((boxes.slices, 1 + boxes.organs), outlined)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SAMSizes:
    """Sizes of a `SAM`, see there."""

    image_size: Annotated[Whole, Field(ge=16, le=4096)]
    patch_size: Annotated[Whole, Field(ge=1, le=64)]
    width: Channels
    depth: Annotated[Whole, Field(ge=1, le=256)]
    heads: Annotated[Whole, Field(ge=1, le=1024)]
    window: Annotated[Whole, Field(ge=1, le=256)]
    global_blocks: Annotated[tuple[Annotated[Whole, Field(ge=0)], ...], Field(max_length=16)]
    decoder_width: Annotated[Whole, Field(ge=16, le=4096, multiple_of=2 * DECODER_HEADS)]
    decoder_hidden: Channels

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size}; expected a multiple of patch_size, {self.patch_size}")


class MedSAMPipeline(SlicePipeline):
    """Images of slices in, mask logits out, by boxes around the masks of another model.

    Parameters
    ----------
    network
        Outlines what boxes are around.
    prompter
        The other model, of any other method; an organ that it does not know has no box, and is never found.
    organs, neighbours, neighbour_pairs
        As of `NetworkPipeline`.
    """

    known_parts = MappingProxyType({"network": (SAM,), "prompter": (SlicePipeline,)})
    presets: ClassVar[Mapping[str, SAMSizes]] = {
        "small": SAMSizes(
            image_size=192, patch_size=12, width=192, depth=4, heads=4, window=8, global_blocks=(1, 3),
            decoder_width=64, decoder_hidden=256,
        ),
        # SAM's with ViT-B, which MedSAM starts from.
        "paper": SAMSizes(
            image_size=1024, patch_size=16, width=768, depth=12, heads=12, window=14, global_blocks=(2, 5, 8, 11),
            decoder_width=256, decoder_hidden=2048,
        ),
    }  # fmt: skip

    def __init__(
        self,
        network: ModelMixin,
        prompter: SlicePipeline,
        organs: list[str] | None = None,
        neighbours: int = 0,
        neighbour_pairs: int = 1,
    ) -> None:
        super().__init__()
        self._keep(locals())
        self._truth: MaskSource | None = None

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SlicePipeline:
        """The model of a folder; that of diffusers cannot load a model that is part of another."""
        return load_pipeline(Path(folder))

    @classmethod
    def check_sizes(cls, preset: str, sizes: Mapping[str, Any]) -> None:
        """Refuse sizes that the method does not know, or that are out of range, see `SlicePipeline`."""
        chosen_sizes(cls.presets, preset, sizes)

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """A pipeline with imported weights, those of `model.dit`, or random ones, see `SlicePipeline`."""
        if recipe.codec:
            raise UsageError("model.codec: this network stands on none; set it to null")
        if recipe.dit is None:
            network = SAM(**asdict(chosen_sizes(cls.presets, recipe.preset, recipe.sizes)))
        else:
            network = load_component(component_folder(recipe.dit, "dit"), {"SAM": SAM})
        return cls._made(recipe, {"network": network, "prompter": prompter_of(recipe)})

    @classmethod
    def parameter_count(cls, preset: str, organs: int) -> int:
        """Parameters of the network, see `SlicePipeline`; those of the model that gives the boxes come on top."""
        with torch.device("meta"):
            network = SAM(**asdict(chosen_sizes(cls.presets, preset, {})))
        return sum(p.numel() for p in network.parameters())

    @property
    def networks(self) -> list[nn.Module]:
        """Its own, and those that the boxes come from."""
        return [self.network, *self.prompter.networks]

    @property
    def multiple(self) -> int:
        """Rows and columns of an image are multiples of it: those of the other model, as its own scales images."""
        return int(self.prompter.multiple)

    def change_organs(self, organs: tuple[str, ...]) -> None:
        """Take boxes of other organs; the network knows boxes only."""
        self.register_to_config(organs=list(organs))

    def prompted_by(self, masks: MaskSource) -> Self:
        """A copy with boxes around other masks, see `SlicePipeline`."""
        other = copy(self)
        other._truth = masks
        return other

    def for_training(self, recipe: Recipe) -> MedSAM:
        """The network as a method: encoder and mask decoder are trained, the encoder of prompts is not.

        Nor is what says how good a mask is, which nothing here asks for.
        """
        if recipe.boxes is not None:
            self.register_modules(prompter=prompter_of(recipe))
        self.network.requires_grad_(True)
        for part in (self.network.prompt_encoder, self.network.mask_decoder.iou_prediction_head):
            part.requires_grad_(False)
        return MedSAM(self.network, len(self.organs), recipe.objective.pixel_loss, self._source(None, None))

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The network as a method, see `SlicePipeline`; it samples as the other model does, and in itself not."""
        method = MedSAM(self.network, len(self.organs), "bce", self._truth or self._source(steps, scheduler))
        asked = self.prompter.sampler(steps, scheduler)
        return Sampler(method.to(self.device).eval(), asked.steps, asked.scheduler)

    def _source(self, steps: int | None, scheduler: str | None) -> MaskSource:
        """The other model's masks, with the ids of these organs."""
        known, organs = self.prompter.organs, self.organs
        ids = [0, *(1 + organs.index(name) if name in organs else 0 for name in known)]

        def masks(images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
            method = self.prompter.to(images.device).sampler(steps, scheduler).method
            found = method.segment(images, noise).argmax(dim=1)  # (B, H, W) ids of the other model
            return torch.tensor(ids, device=images.device)[found]

        return masks


def prompter_of(recipe: Recipe) -> SlicePipeline:
    """The trained model that `model.boxes` of a run file names.

    Raises
    ------
    WeightsMissingError
        If it names none, or the folder holds none.
    UsageError
        If that one needs boxes itself, or sees other neighbours of a slice.
    """
    if recipe.boxes is None:
        raise WeightsMissingError("model.boxes: null; expected the folder of a trained model that gives the boxes")
    prompter = load_pipeline(recipe.boxes)
    if isinstance(prompter, MedSAMPipeline):
        raise UsageError(f"model.boxes: {recipe.boxes} needs boxes itself; name a model of another method")
    seen, ours = ((each.neighbours, each.neighbour_pairs) for each in (prompter, recipe))
    if seen != ours:
        raise UsageError(
            f"model.boxes: {recipe.boxes} was trained with data.neighbours: {seen[0]} and data.neighbour_pairs: "
            f"{seen[1]}; set that, or name another model"
        )
    return prompter
