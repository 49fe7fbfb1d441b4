"""The stages of training: what each one trains, its loss, and what it leaves behind.

`codec` (the autoencoder on images and painted masks), `base` (what a method stands on that is trained on latents of
masks: the DiT or ControlNet's UNet, where no pre-trained one is supplied, and VQDiffusion's codebook), `model` (a whole
model of any method; of MedDelinea the paper's pre-training and fine-tuning).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddelinea.data.store import read_settings
from meddelinea.diffusion.losses import Objective, segmentation_loss, timesteps
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.schedule import NoiseSchedule, Prediction
from meddelinea.errors import UsageError
from meddelinea.methods.known import load_pipeline, method_of, pipeline_of
from meddelinea.methods.network import chosen_sizes
from meddelinea.methods.pipeline import SlicePipeline
from meddelinea.methods.protocol import Batch, Recipe, Stage
from meddelinea.models.codec import Codec, SpaceToDepthCodec, paint, palette, palette_logits
from meddelinea.models.codes import VQDIFFUSION_SIZES, Codebook
from meddelinea.models.convolutions import set_channels_last
from meddelinea.models.latent_unet import UNETS, build_unet, no_text
from meddelinea.models.presets import build_dit, codec_class, find_preset, load_any_codec, load_codec
from meddelinea.models.transformer import DiTBlock
from meddelinea.segmentation.model import read_model_files
from meddelinea.training.config import RunConfig


class CodecStage(Stage):
    """The autoencoder: half of a batch as images, half as painted masks.

    L = L1(pixels) + kl * KL(posterior, N(0, 1)) + palette * (cross-entropy and Dice of the nearest palette colour).
    """

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        super().__init__()
        preset = find_preset(config.model.preset, config.model.sizes)
        if codec_class(preset) is not SpaceToDepthCodec:
            raise UsageError(
                f"preset '{config.model.preset}' uses the published Stable Diffusion codec; import it instead"
            )
        self.codec: SpaceToDepthCodec
        if config.model.codec is None:
            self.codec = SpaceToDepthCodec(**asdict(preset.codec))
        else:
            self.codec = load_codec(preset, config.model.codec)
        self.organs, self.noise_channels = organs, self.codec.image_channels
        self.weights = config.codec_loss
        self.colours = nn.Buffer(palette(len(organs) + 1), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # Every second slice, so that the processes of a run together take the same ones as one process.
        images, masks = batch.images[::2], batch.masks[1::2]
        pixels = torch.cat([images, paint(masks, self.colours)])  # (B, 3, H, W)

        # Through a latent of the posterior, (B, C, h, w), and back.
        mean, log_variance = self.codec.posterior(pixels)
        latent = mean + (0.5 * log_variance).exp() * torch.cat([batch.noise[::2], batch.noise[1::2]])  # (B, C_o, h, w)
        beyond = torch.arange(latent.shape[1], device=latent.device) >= self.codec.latent_channels  # (C_o,)
        latent = torch.cat([latent[: len(images)], latent[len(images) :] * ~beyond.view(-1, 1, 1)])  # (B, C_o, h, w)
        features = self.codec.to_features(latent * self.codec.config.scaling_factor)  # (B, feature_channels, H/f, W/f)
        painted = self.codec.to_pixels(features)  # (B, 3, H, W)

        logits = palette_logits(painted[len(images) :], self.colours)  # (B/2, L + 1, H, W)
        ones = torch.ones(len(masks), device=masks.device)
        losses = {
            "pixels": F.l1_loss(painted, pixels),
            "kl": self.weights.kl * 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean(),
            "palette": self.weights.palette * segmentation_loss(logits, masks, ones, pixel_loss="cross_entropy"),
        }
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    def predict(self, images: Tensor, masks: Tensor, keys: Sequence[NoiseKey]) -> Tensor:
        """The codec's own mask read back: the ceiling of whatever stands on its latents."""
        latent = self.codec.to_latent(paint(masks, self.colours))  # (B, C, h, w)
        return palette_logits(self.codec.to_pixels(self.codec.to_features(latent)), self.colours)  # (B, L + 1, H, W)

    def read_back(self, images: Tensor) -> Tensor:
        """The codec's own images."""
        painted: Tensor = self.codec(images, return_dict=False)[0]
        return painted

    @torch.no_grad()
    def finish(self, folder: Path, masks: Tensor) -> None:
        """Write the codec, its scaling factor one over the standard deviation of the masks' latents."""
        mean, _ = self.codec.posterior(paint(masks, self.colours))  # (n, C_o, h, w)
        latent = mean[:, : self.codec.latent_channels]  # (n, C, h, w)
        self.codec.register_to_config(scaling_factor=float(1.0 / latent.std()))
        self.codec.save_pretrained(folder)


class PriorStage(Stage):
    """A network that denoises latents of masks, without any image: the prior that is frozen afterwards."""

    def __init__(self, codec: Codec, objective: Objective, organs: tuple[str, ...]) -> None:
        super().__init__()
        self.codec = codec.requires_grad_(False)
        self.organs, self.noise_channels = organs, codec.latent_channels
        self.objective = objective
        self.schedule = NoiseSchedule.linear()
        self.prediction = Prediction(self.schedule, objective.prediction_type)
        self.colours = nn.Buffer(palette(len(organs) + 1), persistent=False)

    @abstractmethod
    def denoise(self, noisy: Tensor, t: Tensor) -> Tensor:
        """Z_mt (B, C, h, w) at timesteps (B,) -> the network's output (B, C, h, w)."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            clean = self.codec.to_latent(paint(batch.masks, self.colours))  # (B, C, h, w)
        t = timesteps(batch.uniform, len(self.schedule), self.objective)  # (B,)
        noisy = self.schedule.add_noise(clean, batch.noise, t)  # (B, C, h, w)
        loss = F.mse_loss(self.denoise(noisy, t), self.prediction.target(clean, batch.noise, t))
        return {"diffusion": loss, "total": loss}

    def predict(self, images: Tensor, masks: Tensor, keys: Sequence[NoiseKey]) -> None:
        """A prior makes no mask of an image."""


class BaseStage(PriorStage):
    """The DiT that MedDelinea controls."""

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        preset = find_preset(config.model.preset, config.model.sizes)
        super().__init__(load_codec(preset, config.model.codec), config.objective, organs)
        self.dit = build_dit(preset)
        self.dit.open_gates()
        self.dit.y_embedder.requires_grad_(preset.classes > 0)

    def denoise(self, noisy: Tensor, t: Tensor) -> Tensor:
        return self.dit(noisy, self.dit.condition(t)).sample  # (B, C, h, w)

    def finish(self, folder: Path, masks: Tensor) -> None:
        """Write the DiT."""
        self.dit.save_pretrained(folder)


class UNetBaseStage(PriorStage):
    """The UNet that ControlNet controls."""

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        super().__init__(load_any_codec(config.model.codec), config.objective, organs)
        sizes = chosen_sizes(UNETS, config.model.preset, config.model.sizes)
        self.unet = build_unet(sizes, self.noise_channels, self.noise_channels)

    def denoise(self, noisy: Tensor, t: Tensor) -> Tensor:
        return self.unet(noisy, t, no_text(self.unet, noisy)).sample  # (B, C, h, w)

    def finish(self, folder: Path, masks: Tensor) -> None:
        """Write the UNet."""
        self.unet.save_pretrained(folder)


class CodebookStage(Stage):
    """The codebook whose codes VQDiffusion diffuses, over latents of masks."""

    noise_channels = 0

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        super().__init__()
        self.codec = load_any_codec(config.model.codec).requires_grad_(False)
        sizes = chosen_sizes(VQDIFFUSION_SIZES, config.model.preset, config.model.sizes)
        self.codebook = Codebook(codes=sizes.codes, latent_channels=self.codec.latent_channels)
        self.organs = organs
        self.colours = nn.Buffer(palette(len(organs) + 1), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        loss = self.codebook.loss(self._latent(batch.masks))
        return {"codebook": loss, "total": loss}

    def predict(self, images: Tensor, masks: Tensor, keys: Sequence[NoiseKey]) -> Tensor:
        """The masks as their codes have them, read by the codec: what the codes leave out is missing."""
        latent = self.codebook(self.codebook.codes(self._latent(masks)))  # (B, C, h, w)
        return palette_logits(self.codec.to_pixels(self.codec.to_features(latent)), self.colours)  # (B, L + 1, H, W)

    def finish(self, folder: Path, masks: Tensor) -> None:
        """Write the codebook."""
        self.codebook.save_pretrained(folder)

    @torch.no_grad()
    def _latent(self, masks: Tensor) -> Tensor:
        return self.codec.to_latent(paint(masks, self.colours)).float()  # (B, C, h, w)


class ModelStage(Stage):
    """A whole model of `model.method`, new or continued from `model.pipeline`.

    Its organs are the store's; where a model is only measured (`steps: 0`), they are the model's own.
    """

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        super().__init__()
        recipe = _recipe(config, organs)
        if config.model.pipeline is None:
            self.pipeline = pipeline_of(config.model.method).new(recipe)
        else:
            self.pipeline = _continued(config.model.pipeline, config)
            if config.steps and self.pipeline.organs != organs:
                self.pipeline.change_organs(organs)
        self.organs, self.patch = self.pipeline.organs, self.pipeline.patch
        self.method = self.pipeline.for_training(recipe)
        self.noise_channels = self.method.noise_channels
        self.halve = config.saved_dtype == "float16"

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.loss(batch)

    def predict(self, images: Tensor, masks: Tensor, keys: Sequence[NoiseKey]) -> Tensor:
        """Masks as the method makes them."""
        return self.method.segment(images, keys)

    def finish(self, folder: Path, masks: Tensor) -> None:
        """Write the pipeline."""
        if self.halve:
            self.half()
        self.pipeline.save_pretrained(folder)


def build_stage(config: RunConfig, organs: tuple[str, ...]) -> Stage:
    """The stage that a run file asks for, with the weights that it starts from.

    Raises
    ------
    WeightsMissingError
        If components that it stands on are absent.
    UsageError
        If the run file asks for what its method, or the model that it continues from, is not.
    """
    bases: dict[str, Callable[[RunConfig, tuple[str, ...]], Stage]] = {
        "meddelinea": BaseStage,
        "controlnet": UNetBaseStage,
        "vqdiffusion": CodebookStage,
    }
    match config.stage:
        case "codec":
            return CodecStage(config, organs)
        case "base":
            return bases[config.model.method](config, organs)
        case "model":
            return ModelStage(config, organs)


def prepare(stage: Stage, config: RunConfig) -> None:
    """Set a stage's switches for training, in place."""
    if not config.sharding:  # which takes contiguous parameters only
        set_channels_last(stage)
    for block in (module for module in stage.modules() if isinstance(module, DiTBlock)):
        block.gradient_checkpointing = config.gradient_checkpointing
        if config.compile:
            block.compile()


def _recipe(config: RunConfig, organs: tuple[str, ...]) -> Recipe:
    return Recipe(
        organs=organs,
        neighbours=config.data.neighbours,
        neighbour_pairs=config.data.neighbour_pairs,
        side=min(config.data.resolutions or (read_settings(config.data.store).preprocessing.size,)),
        preset=config.model.preset,
        sizes=config.model.sizes,
        codec=config.model.codec,
        dit=config.model.dit,
        boxes=config.model.boxes,
        trainable_decoder=config.model.trainable_decoder,
        base=config.model.base,
        objective=config.objective,
        steps=config.validation.sampling_steps,
        scheduler=config.validation.scheduler,
    )


def _continued(folder: Path, config: RunConfig) -> SlicePipeline:
    """The trained model of a folder, once it is sure that the run trains the same method on the same slices."""
    pipeline = load_pipeline(folder)
    read_model_files(folder)  # its labels too are of this network
    settings = {
        "model.method": (method_of(type(pipeline).__name__), config.model.method),
        "data.neighbours": (pipeline.neighbours, config.data.neighbours),
        "data.neighbour_pairs": (pipeline.neighbour_pairs, config.data.neighbour_pairs),
    }
    odd = [f"{name}: {trained}" for name, (trained, asked) in settings.items() if trained != asked]
    if odd:
        raise UsageError(f"{folder}: it was trained with {', '.join(odd)}; set that, or train anew")
    return pipeline
