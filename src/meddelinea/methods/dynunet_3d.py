"""nnU-Net's architecture in 3D, see `methods.dynunet`."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import ClassVar

from diffusers import ModelMixin  # noqa: F401  where diffusers looks for what a component is
from diffusers.configuration_utils import register_to_config
from pydantic.dataclasses import dataclass

from meddelinea.methods.dynunet import COARSEST, DynUNetBase
from meddelinea.methods.network import Widths, chosen_sizes
from meddelinea.methods.protocol import Recipe
from meddelinea.methods.volume import PatchSize, VolumePipeline, check_patch
from meddelinea.models.presets import CHECKED


def nnunet_strides(depth: int, side: int, resolutions: int) -> list[tuple[int, int, int]]:
    """nnU-Net's steps between the resolutions of a patch: an axis is halved as long as 4 voxels are left of it."""
    strides: list[tuple[int, int, int]] = []
    for _ in range(resolutions - 1):
        along, across = (2 if edge >= 2 * COARSEST else 1 for edge in (depth, side))
        strides.append((along, across, across))
        depth, side = depth // along, side // across
    return strides


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DynUNet3DSizes:
    """Sizes of a `DynUNet3D`, see there."""

    patch: PatchSize
    widths: Widths

    def __post_init__(self) -> None:
        depths, sides, _ = zip(*nnunet_strides(*self.patch, resolutions=len(self.widths)), strict=True)
        check_patch(self.patch, prod(depths), prod(sides))


class DynUNet3D(DynUNetBase):
    """nnU-Net's architecture in 3D: patches (B, 1, depth, side, side) -> logits (B, L + 1, depth, side, side).

    Parameters
    ----------
    organs
        L.
    patch
        Slices, and rows and columns, that it is trained on.
    widths
        Channels of each resolution, the scan's own first; at least two.
    """

    @register_to_config
    def __init__(self, organs: int, patch: list[int], widths: list[int]) -> None:
        super().__init__()
        self.assemble(1, organs, widths, strides=nnunet_strides(patch[0], patch[1], resolutions=len(widths)))


class DynUNet3DPipeline(VolumePipeline):
    """nnU-Net's architecture over 3D patches."""

    known_parts = MappingProxyType({"network": (DynUNet3D,)})
    presets: ClassVar[Mapping[str, DynUNet3DSizes]] = {
        "small": DynUNet3DSizes(patch=(16, 96), widths=(16, 32, 64, 128, 160)),
        # nnU-Net's 32 to 320 channels, and a patch that it takes where there are 8 GB.
        "paper": DynUNet3DSizes(patch=(64, 160), widths=(32, 64, 128, 256, 320, 320)),
    }

    @classmethod
    def build(cls, recipe: Recipe) -> DynUNet3D:
        sizes = chosen_sizes(cls.presets, recipe.preset, recipe.sizes)
        return DynUNet3D(organs=len(recipe.organs), patch=list(sizes.patch), widths=list(sizes.widths))
