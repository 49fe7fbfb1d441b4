"""The stages of training: what each one trains, its loss, and what it leaves behind.

`codec` (the autoencoder on images and painted masks), `base` (the DiT on latents of masks, where no pre-trained one is
supplied), `control` (the paper's pre-training and fine-tuning); and `baseline`, in a file of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meddelinea.diffusion.losses import diffusion_loss, segmentation_loss
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.sampling import make_scheduler
from meddelinea.diffusion.schedule import NoiseSchedule
from meddelinea.errors import UsageError, WeightsMissingError
from meddelinea.methods.meddelinea import MedDelinea, timesteps
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.methods.protocol import Batch
from meddelinea.models.codec import KLCodec, SpaceToDepthCodec, extend_palette, paint, palette, palette_logits
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import MaskHead
from meddelinea.models.presets import (
    Preset,
    build_codec,
    build_control,
    build_dit,
    build_mask_head,
    codec_class,
    find_preset,
)
from meddelinea.models.segmenter import Segmenter
from meddelinea.training.config import RunConfig
from meddelinea.training.network_stage import BaselineStage
from meddelinea.training.start import load_start


class Stage(Protocol):
    """A stage's network and losses; a module, so that accelerate can prepare it."""

    #: Names behind the channels 1..L of `predict`.
    organs: tuple[str, ...]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses; `total` is the one to minimise."""

    def predict(self, images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> Tensor | None:
        """Mask logits for validation, (B, L + 1, H, W); None where the stage makes no masks."""

    def save(self, folder: Path) -> Path:
        """Write the trained component into a folder of `folder`, in diffusers' form, and return that."""


class CodecStage(nn.Module):
    """The autoencoder: half of a batch as images, half as painted masks.

    L = L1(pixels) + kl * KL(posterior, N(0, 1)) + palette * (cross-entropy and Dice of the nearest palette colour).
    """

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        super().__init__()
        preset = find_preset(config.model.preset, config.model.sizes)
        codec = build_codec(preset) if config.model.codec is None else _load_codec(config, preset)
        if isinstance(codec, KLCodec):
            raise UsageError(
                f"preset '{config.model.preset}' uses the published Stable Diffusion codec; import it instead"
            )
        self.codec: SpaceToDepthCodec = codec
        self.organs = organs
        self.weights = config.codec_loss
        self.colours = nn.Buffer(palette(len(organs) + 1), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        # Every second slice, so that the processes of a run together take the same ones as one process.
        images, masks = batch.images[::2], batch.masks[1::2]
        pixels = torch.cat([images, paint(masks, self.colours)])
        mean, log_variance = self.codec.posterior(pixels)
        latent = mean + (0.5 * log_variance).exp() * torch.cat([batch.noise[::2], batch.noise[1::2]])
        painted = self.codec.pixels(self.codec.features(latent * self.codec.config.scaling_factor))
        logits = 4.0 * palette_logits(painted[len(images) :], self.colours)
        losses = {
            "pixels": F.l1_loss(painted, pixels),
            "kl": self.weights.kl * 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean(),
            "palette": self.weights.palette
            * segmentation_loss(logits, masks, torch.ones(len(masks), device=masks.device), "cross_entropy"),
        }
        losses["total"] = torch.stack(list(losses.values())).sum()
        return losses

    def predict(self, images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> Tensor:
        """The codec's own mask read back: the ceiling of whatever stands on its latents."""
        latent = self.codec.encode(paint(masks, self.colours))
        return palette_logits(self.codec.pixels(self.codec.features(latent)), self.colours)

    @torch.no_grad()
    def measure_scale(self, masks: Tensor) -> None:
        """Set the scaling factor to one over the standard deviation of the masks' latents."""
        latent = self.codec.posterior(paint(masks, self.colours))[0]
        self.codec.register_to_config(scaling_factor=float(1.0 / latent.std()))

    def save(self, folder: Path) -> Path:
        self.codec.save_pretrained(folder / "codec")
        return folder / "codec"


class BaseStage(nn.Module):
    """The DiT on latents of masks, without any image: the prior that is frozen afterwards."""

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        super().__init__()
        preset = find_preset(config.model.preset, config.model.sizes)
        self.codec = _load_codec(config, preset).requires_grad_(False)
        self.organs = organs
        self.dit = build_dit(preset)
        self.dit.open_gates()
        self.dit.y_embedder.requires_grad_(preset.classes > 0)
        self.objective = config.objective
        self.schedule = NoiseSchedule.linear()
        self.colours = nn.Buffer(palette(len(organs) + 1), persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            clean = self.codec.encode(paint(batch.masks, self.colours))
        t = timesteps(batch.uniform, len(self.schedule), self.objective)
        noisy = self.schedule.add_noise(clean, batch.noise, t)
        output = self.dit(noisy, self.dit.condition(t)).sample
        loss = diffusion_loss(output, self.schedule.target(clean, batch.noise, t, self.objective.prediction_type))
        return {"diffusion": loss, "total": loss}

    def predict(self, images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> None:
        """A prior makes no mask of an image."""

    def save(self, folder: Path) -> Path:
        self.dit.save_pretrained(folder / "dit")
        return folder / "dit"


class ControlStage(MedDelinea):
    """The controlled network: DiT and encoder frozen, control branch and mask head trained.

    Its organs are the store's; where a model is only measured (`steps: 0`), they are the model's own.
    """

    def __init__(self, config: RunConfig, organs: tuple[str, ...]) -> None:
        parts = _assemble(config, organs) if config.model.pipeline is None else _from_pipeline(config, organs)
        segmenter = Segmenter(parts.codec, parts.dit, parts.control, parts.mask_head, parts.colours)
        scheduler = make_scheduler(config.validation.scheduler)
        super().__init__(segmenter, config.objective, scheduler, config.validation.sampling_steps)
        segmenter.freeze(config.model.trainable_decoder, config.model.trainable_dit)
        if not config.objective.auxiliary_weight and parts.control.auxiliary is not None:
            parts.control.auxiliary.requires_grad_(False)
        self.organs = parts.organs
        self.halve = config.saved_dtype == "float16"
        self.neighbours, self.neighbour_pairs = config.data.neighbours, config.data.neighbour_pairs
        seen, given = parts.control.config.stem_slices, 2 * self.neighbour_pairs + 1
        if seen != given:
            raise UsageError(
                f"data.neighbour_pairs: {self.neighbour_pairs} makes {given} slices an image, the model sees {seen}; "
                f"set it to {(seen - 1) // 2}"
            )

    def predict(self, images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> Tensor:
        """Sampled masks."""
        return self.segment(images, keys)

    def save(self, folder: Path) -> Path:
        parts = self.segmenter.half() if self.halve else self.segmenter
        pipeline = MedDelineaPipeline(
            codec=cast(KLCodec | SpaceToDepthCodec, parts.codec),
            dit=parts.dit,
            control=parts.control,
            mask_head=parts.mask_head,
            scheduler=self.scheduler,
            organs=list(self.organs),
            prediction_type=self.objective.prediction_type,
            default_steps=self.steps,
            neighbours=self.neighbours,
            neighbour_pairs=self.neighbour_pairs,
            colours=parts.palette.tolist(),
            diffusion=self.objective.diffusion,
        )
        pipeline.save_pretrained(folder / "pipeline")
        return folder / "pipeline"


def build_stage(config: RunConfig, organs: tuple[str, ...]) -> CodecStage | BaseStage | ControlStage | BaselineStage:
    """The stage that a run file asks for, with the weights that it starts from.

    Raises
    ------
    WeightsMissingError
        If components that it stands on are absent.
    """
    if config.stage == "baseline":
        return BaselineStage(config, organs)
    if config.stage == "codec":
        return CodecStage(config, organs)
    if config.stage == "base":
        return BaseStage(config, organs)
    return ControlStage(config, organs)


def _load_codec(config: RunConfig, preset: Preset) -> KLCodec | SpaceToDepthCodec:
    return cast(KLCodec | SpaceToDepthCodec, _load(codec_class(preset), config.model.codec, "codec"))


class _Parts(NamedTuple):
    codec: KLCodec | SpaceToDepthCodec
    dit: DiT
    control: ControlDiT
    mask_head: MaskHead | None
    colours: Tensor
    organs: tuple[str, ...]


def _assemble(config: RunConfig, organs: tuple[str, ...]) -> _Parts:
    """A codec and a DiT that were trained or imported, with a new control branch and mask head."""
    model, preset = config.model, find_preset(config.model.preset, config.model.sizes)
    codec = _load_codec(config, preset)
    dit = cast(DiT, _load(DiT, model.dit, "dit"))
    head = None if model.trainable_decoder == "none" else build_mask_head(preset, codec, len(organs))
    control = build_control(preset, dit, len(organs), 2 * config.data.neighbour_pairs + 1)
    return _Parts(codec, dit, control, head, palette(len(organs) + 1), organs)


def _from_pipeline(config: RunConfig, organs: tuple[str, ...]) -> _Parts:
    """A whole model to go on with, its channels and colours carried over to the store's organs by their names."""
    folder = config.model.pipeline
    pipeline = load_start(folder, MedDelineaPipeline)
    kind = pipeline.config.prediction_type
    if kind != config.objective.prediction_type:
        raise UsageError(f"{folder}: it predicts '{kind}'; set objective.prediction_type to that")
    if pipeline.config.neighbours != config.data.neighbours:
        raise UsageError(f"{folder}: it was trained with data.neighbours: {pipeline.config.neighbours}; set that")
    known, colours = tuple(pipeline.config.organs), pipeline.palette
    if config.steps == 0 or known == organs:
        return _Parts(pipeline.codec, pipeline.dit, pipeline.control, pipeline.mask_head, colours, known)
    fresh = iter(extend_palette(colours, len(colours) + len(organs))[len(colours) :])
    rows = [colours[0], *(colours[1 + known.index(name)] if name in known else next(fresh) for name in organs)]
    head = pipeline.mask_head and pipeline.mask_head.for_organs(known, organs)
    control = pipeline.control.for_organs(known, organs)
    return _Parts(pipeline.codec, pipeline.dit, control, head, torch.stack(rows), organs)


def _load(kind: type[KLCodec | SpaceToDepthCodec | DiT], folder: Path | None, role: str) -> nn.Module:
    if folder is None or not (folder / "config.json").is_file():
        raise WeightsMissingError(f"model.{role}: {folder} holds no config.json; train it first or import its weights")
    return cast(nn.Module, kind.from_pretrained(folder, use_safetensors=True))
