"""A network in three dimensions that is trained on patches to name each voxel: its method and its pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor

from meddelinea.diffusion.losses import PixelLoss
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import UsageError
from meddelinea.methods.network import Network, NetworkPipeline, PixelClassifier
from meddelinea.methods.protocol import Batch, Patch, Recipe, Sampler
from meddelinea.methods.windows import window_shares
from meddelinea.models.presets import Whole

#: Slices, and rows and columns, of a patch.
PatchSize = tuple[Annotated[Whole, Field(ge=1, le=512)], Annotated[Whole, Field(ge=1, le=1024)]]
#: A class whose share of a voxel is smaller has this one, whose logarithm is a number.
LEAST_SHARE = 1e-30


def check_patch(patch: tuple[int, int], along: int, across: int) -> None:
    """Refuse a patch whose depth is no multiple of `along`, or its side none of `across`, with ValueError."""
    if patch[0] % along or patch[1] % across:
        raise ValueError(f"patch {patch[0]} x {patch[1]}; expected multiples of {along} and {across}")


class VoxelClassifier(PixelClassifier):
    """A `PixelClassifier` of a network (B, 1, depth, side, side) -> (B, L + 1, depth, side, side), the finest first.

    A patch has so many slices, however thick they are: in a store about its `slice_mm`, or what thicker scans have.
    """

    def __init__(self, network: Network, pixel_loss: PixelLoss, patch: Patch) -> None:
        super().__init__(network, pixel_loss)
        self.patch = patch

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The same L_seg as that of slices, over the voxels of patches."""
        loss = self.segmentation(self.network(batch.images[:, None]), batch.masks)
        return {"segmentation": loss, "total": loss}

    @torch.no_grad()
    def segment(self, images: Tensor, noise: Sequence[NoiseKey]) -> Tensor:
        """Consecutive slices (D, slices, H, W) -> logits (D, L + 1, H, W), blended of the windows that hold them."""
        volume = images[:, images.shape[1] // 2][None, None]  # (1, 1, D, H, W)
        shares = window_shares(lambda window: self.network(window)[0].softmax(dim=1), volume, self.patch)
        return shares[0].transpose(0, 1).clamp_(min=LEAST_SHARE).log_()  # (D, L + 1, H, W)


class VolumePipeline(NetworkPipeline):
    """Patches of scans in, mask logits out; its network has the `patch` in its configuration."""

    #: Windows lie anywhere in a slice.
    multiple = 1

    @property
    def patch(self) -> Patch:
        """Slices, and rows and columns, that the network sees at a time."""
        return Patch(*self.network.config.patch)

    @classmethod
    def new(cls, recipe: Recipe) -> Self:
        """A pipeline with random weights, see `SlicePipeline`."""
        if recipe.neighbours:
            raise UsageError(
                f"data.neighbours: {recipe.neighbours}; a slice's neighbours are in this network's patch; set it to 0"
            )
        return super().new(recipe)

    def for_training(self, recipe: Recipe) -> VoxelClassifier:
        """The network as a method, trained as a whole."""
        return VoxelClassifier(self.network, recipe.objective.pixel_loss, self.patch)

    def sampler(self, steps: int | None = None, scheduler: str | None = None) -> Sampler:
        """The network as a method, see `SlicePipeline`; it takes one step, whatever is asked for."""
        method = VoxelClassifier(self.network, "bce", self.patch).to(self.device).eval()
        return Sampler(method, None, None, depth=self.patch.depth)
