"""Run files: everything that a training run is, checked before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meddelinea.data.augment import Augmentation
from meddelinea.diffusion.method import Objective
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.models.segmenter import TrainableDecoder

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    """A section of a run file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Strict):
    """What is read.

    Attributes
    ----------
    store
        Slice store, from `meddelinea prepare`.
    train, validation
        Names of cases; no case may be in both.
    neighbours
        Distance in slices of the two neighbours in the outer image channels; 0 repeats the slice, as the paper does.
    rare_organ_share
        Share of a batch whose slices are drawn by organ, each organ equally often, and not uniformly.
    empty_share
        Share of the slices without any organ that stays in the uniform draw.
    crop
        Side of a random crop in pixels; 0 for whole slices. For the `codec` stage, whose view is local.
    augmentation
        Ranges of random changes.
    """

    store: Path
    train: Annotated[tuple[str, ...], Field(min_length=1)]
    validation: tuple[str, ...] = ()
    neighbours: Annotated[int, Field(ge=0)] = 0
    rare_organ_share: Share = 0.0
    empty_share: Share = 1.0
    crop: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    augmentation: Augmentation = Augmentation()
    workers: Annotated[int, Field(ge=0)] = 0


class ModelConfig(Strict):
    """What is trained.

    Attributes
    ----------
    preset
        Sizes, see `models.presets`.
    sizes
        Fields of the preset to change, such as `{width: 128, depth: 4}`.
    codec, dit
        Folders of trained components that the `base` and `control` stages stand on; the `codec` stage goes on from
        `codec` where it is given.
    pipeline
        Folder of a whole model to fine-tune, in place of `codec` and `dit`.
    trainable_decoder
        How much of the decoder the `control` stage trains.
    """

    preset: str = "small"
    sizes: dict[str, Any] = {}
    codec: Path | None = None
    dit: Path | None = None
    pipeline: Path | None = None
    trainable_decoder: TrainableDecoder = "final_layer"


class OptimiserConfig(Strict):
    """AdamW, its learning rate over the steps, and the moving average of the weights."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999


class ValidationConfig(Strict):
    """When and how the mean Dice on the validation cases is measured during training.

    Attributes
    ----------
    every
        Steps between measurements; 0 for one at the end only.
    stride
        Every how many slices of a case.
    sampling_steps, scheduler
        How masks are sampled.
    """

    every: Annotated[int, Field(ge=0)] = 0
    stride: Positive = 4
    sampling_steps: Positive = 1
    scheduler: str = "euler_ancestral"


class CodecLossConfig(Strict):
    """Weights of the codec's losses: mean absolute error of pixels is 1, and these are added."""

    kl: Annotated[float, Field(ge=0)] = 1e-3
    palette: Annotated[float, Field(ge=0)] = 0.5


class RunConfig(Strict):
    """A training run.

    Attributes
    ----------
    stage
        `codec`: the autoencoder; `base`: the DiT on mask latents, where no pre-trained one is supplied; `control`: the
        paper's pre-training and fine-tuning, base and encoder frozen.
    output
        Folder of checkpoints, logs and the result.
    steps, batch_size, accumulation
        Optimiser steps; slices a process and micro-step; micro-steps an optimiser step.
    minutes
        Where given, training time after which the run ends early; the learning rate follows the clock instead of the
        steps then, so that runs of different speed can be compared at equal time.
    precision
        `no` (float32), `bf16` or `fp16`.
    checkpoint_minutes
        Time between checkpoints.
    saved_dtype
        Type of the weights in the resulting model's folder; checkpoints keep float32.
    """

    stage: Literal["codec", "base", "control"]
    output: Path
    data: DataConfig
    model: ModelConfig = ModelConfig()
    objective: Objective = Objective()
    codec_loss: CodecLossConfig = CodecLossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    validation: ValidationConfig = ValidationConfig()
    steps: Positive
    batch_size: Positive = 32
    accumulation: Positive = 1
    minutes: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["no", "bf16", "fp16"] = "no"
    seed: Annotated[int, Field(ge=0)] = 0
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    saved_dtype: Literal["float32", "float16"] = "float32"


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a run file and apply `key=value` overrides; dots reach into sections, values are YAML.

    Raises
    ------
    InputRefusedError
        If the file cannot be read.
    UsageError
        If a key is unknown, a value out of range, or a case both trained on and validated on.
    """
    try:
        content: Any = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputRefusedError(f"{path}: not a readable YAML file ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise InputRefusedError(f"{path}: expected a mapping of settings, got {type(content).__name__}")
    for override in overrides:
        _override(content, override)
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        met = "" if first["type"] == "missing" else f" (got {first['input']!r})"
        raise UsageError(f"{path}: {where}: {first['msg']}{met}") from error
    both = set(config.data.train) & set(config.data.validation)
    if both:
        raise UsageError(f"{path}: cases {', '.join(sorted(both))} are in both train and validation; split by patient")
    return config


def _override(content: dict[str, Any], override: str) -> None:
    """Apply one `key=value`; sections that the file leaves out or empty are made."""
    key, equals, value = override.partition("=")
    if not key or not equals:
        raise UsageError(f"--set {override}: expected key=value")
    *outer, last = key.split(".")
    section = content
    for name in outer:
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise UsageError(f"--set {override}: {name} is a single value ({section!r}), not a section")
    try:
        section[last] = yaml.safe_load(value)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"--set {override}: the value is not YAML") from error
