"""The stage that trains a baseline: a network from images to masks, with the same engine and data as MedDelinea."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from meddelinea.baselines.method import Baseline
from meddelinea.baselines.networks import build_network
from meddelinea.baselines.pipeline import BaselinePipeline
from meddelinea.data.store import read_settings
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.training.config import RunConfig


class BaselineStage(Baseline):
    """A network that stands on nothing trained before."""

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        assert config.model.network is not None  # the run file was checked
        side = min(config.data.resolutions or (read_settings(config.data.store).preprocessing.size,))
        slices = 2 * config.data.neighbour_pairs + 1
        network = build_network(config.model.network, len(organs), slices, side, config.model.sizes)
        super().__init__(network, config.objective.pixel_loss)
        self.organs = organs
        self.halve = config.saved_dtype == "float16"
        self.neighbours, self.neighbour_pairs = config.data.neighbours, config.data.neighbour_pairs

    def predict(self, images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> Tensor:
        """Masks, of the images alone."""
        return self.segment(images, keys)

    def save(self, folder: Path) -> Path:
        network = self.network.half() if self.halve else self.network
        pipeline = BaselinePipeline(network, list(self.organs), self.neighbours, self.neighbour_pairs)
        pipeline.save_pretrained(folder / "pipeline")
        return folder / "pipeline"
