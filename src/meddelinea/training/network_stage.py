"""The stage that trains a baseline: a network from images to masks, with the same engine and data as MedDelinea."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from meddelinea.data.store import read_settings
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import UsageError
from meddelinea.methods.dynunet import DynUNet
from meddelinea.methods.network import Baseline
from meddelinea.methods.network_pipeline import BaselinePipeline
from meddelinea.methods.networks import build_network
from meddelinea.methods.unet import UNet
from meddelinea.training.config import RunConfig
from meddelinea.training.start import load_start


class BaselineStage(Baseline):
    """A network with random weights, or one that is trained on, such as on finer slices than before."""

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        network = _new(config, organs) if config.model.pipeline is None else _trained(config, organs)
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


def _new(config: RunConfig, organs: tuple[str, ...]) -> UNet | DynUNet:
    assert config.model.network is not None  # the run file was checked
    side = min(config.data.resolutions or (read_settings(config.data.store).preprocessing.size,))
    slices = 2 * config.data.neighbour_pairs + 1
    return build_network(config.model.network, len(organs), slices, side, config.model.sizes)


def _trained(config: RunConfig, organs: tuple[str, ...]) -> UNet | DynUNet:
    folder = config.model.pipeline
    pipeline = load_start(folder, BaselinePipeline)
    there = {
        "model.network": type(pipeline.network).__name__.lower(),
        "organs": tuple(pipeline.config.organs),
        "data.neighbours": pipeline.config.neighbours,
        "data.neighbour_pairs": pipeline.config.neighbour_pairs,
    }
    asked = (config.model.network, organs, config.data.neighbours, config.data.neighbour_pairs)
    odd = [f"{name}: {value}" for (name, value), want in zip(there.items(), asked, strict=True) if value != want]
    if odd:
        raise UsageError(f"{folder}: it was trained with {', '.join(odd)}; set that, or train anew")
    network: UNet | DynUNet = pipeline.network
    return network
