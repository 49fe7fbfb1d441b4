"""SynergyNet (Gorade et al. 2024) as a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from meddelinea.methods.network import NetworkPipeline, PixelClassifier, Widths, check_side, chosen_sizes
from meddelinea.methods.protocol import Batch, Recipe
from meddelinea.models.presets import CHECKED, Whole
from meddelinea.models.synergynet import SynergyNet


class QuantisedClassifier(PixelClassifier):
    """A `PixelClassifier` whose network has codes to learn: its second answer is their loss."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """L_seg and the quantiser's loss."""
        logits, quantisation = self.network(batch.images)  # (B, L + 1, H, W), scalar
        segmentation = self.segmentation([logits], batch.masks)
        return {"segmentation": segmentation, "quantisation": quantisation, "total": segmentation + quantisation}


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SynergyNetSizes:
    """Sizes of a `SynergyNet`, see there."""

    widths: Widths
    heads: Annotated[Whole, Field(ge=1, le=1024)]
    codes: Annotated[Whole, Field(ge=2, le=65536)]

    def __post_init__(self) -> None:
        if self.widths[-1] % self.heads:
            raise ValueError(f"widths end at {self.widths[-1]}, which cannot be divided among {self.heads} heads")


class SynergyNetPipeline(NetworkPipeline):
    """SynergyNet over 2D slices."""

    known_parts = MappingProxyType({"network": (SynergyNet,)})
    presets: ClassVar[Mapping[str, SynergyNetSizes]] = {
        "small": SynergyNetSizes(widths=(16, 32, 64, 128, 256), heads=4, codes=256),
        "paper": SynergyNetSizes(widths=(48, 96, 192, 384, 656), heads=8, codes=1024),
    }

    @classmethod
    def build(cls, recipe: Recipe) -> SynergyNet:
        sizes = chosen_sizes(cls.presets, recipe.preset, recipe.sizes)
        check_side(recipe.side, len(sizes.widths) - 1)
        return SynergyNet(organs=len(recipe.organs), slices=recipe.slices, **asdict(sizes))

    def for_training(self, recipe: Recipe) -> QuantisedClassifier:
        """The network as a method, trained as a whole."""
        return QuantisedClassifier(self.network, recipe.objective.pixel_loss)
