"""Everything that a training run is, checked before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import to_json

from meddelinea.data.augment import Augmentation
from meddelinea.diffusion.losses import Objective
from meddelinea.diffusion.sampling import SchedulerName, make_scheduler, prepared
from meddelinea.diffusion.schedule import TIMESTEPS
from meddelinea.errors import UsageError, first_fault
from meddelinea.methods.known import METHODS, pipeline_of
from meddelinea.models.precision import bfloat16_is_fast
from meddelinea.models.presets import PresetName
from meddelinea.models.segmenter import BaseWeights, TrainableDecoder

#: More steps than any run takes; a clock ends one that has so many.
ENDLESS = 10**9

#: What the `base` stage trains for a method that stands on it, and its folder in the run's.
BASES = {"meddelinea": "dit", "controlnet": "unet", "vqdiffusion": "codebook"}

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Steps = Annotated[int, Field(ge=0, le=ENDLESS)]
Minutes = Annotated[float, Field(gt=0.0, le=1e7)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=2**16)]


def _of_this_machine(value: Any) -> Any:
    """The precision that a run file's value means here; what is none is left to pydantic."""
    if value is False:  # YAML takes a bare `no` for false
        return "no"
    if value != "auto":
        return value
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return "bf16" if bfloat16_is_fast(device, training=True) else "no"


#: `no` is float32. `auto` becomes `bf16` on a GPU or a processor with AMX that multiplies in it, and `no` elsewhere.
Precision = Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_of_this_machine)]


class Strict(BaseModel):
    """A section of a run file: unknown keys are errors, and so is a number that is not one or out of its range."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SplitConfig(Strict):
    """Shares of the patients that are drawn for training and for validation; the others are the test cases."""

    train: Annotated[float, Field(gt=0.0, le=1.0)]
    validation: Share = 0.0
    seed: Seed = 0

    @model_validator(mode="after")
    def _fits(self) -> SplitConfig:
        if self.train + self.validation > 1.0 + 1e-9:
            raise ValueError(f"shares {self.train:g} and {self.validation:g} add up to more than 1")
        return self


class DataConfig(Strict):
    """What is read."""

    store: Path  # slice store, from `meddelinea prepare`
    #: Names of cases; no case may be in two of them. Dice on the test cases is measured once, at the end.
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    split: SplitConfig | None = None  # in place of names: shares of the store's patients
    #: Share of the training volumes that is used, at least one volume: few-shot learning (Table 3).
    train_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    #: Sides of the slices in pixels, taken in turn by batch (App. A: 256 and 512); each the store's size over a whole
    #: number. The store's own size where empty. Validation, and inference with the result, use the first.
    resolutions: Annotated[tuple[Annotated[int, Field(ge=32, le=4096, multiple_of=32)], ...], Field(max_length=16)] = ()
    #: Distance in slices of the two neighbours in the outer image channels; 0 repeats the slice, as the paper does.
    neighbours: Annotated[int, Field(ge=0, le=64)] = 0
    #: Pairs of neighbours in an image's channels. The codec sees the inner pair; only an image stem sees more.
    neighbour_pairs: Annotated[int, Field(ge=1, le=16)] = 1
    #: Largest number of a scan's slices that are averaged into one, 1 to `thickest` with equal chances; the neighbours
    #: are then as many slices further away. Thick slices, from a store of thinner ones.
    thickest: Annotated[int, Field(ge=1, le=64)] = 1
    #: Share of a batch whose slices are drawn by organ, each organ equally often, and not uniformly.
    rare_organ_share: Share = 0.0
    empty_share: Share = 1.0  # share of the slices without any organ that stays in the uniform draw
    #: Side of a random crop in pixels; 0 for whole slices. For the `codec` stage, whose view is local.
    crop: Annotated[int, Field(ge=0, le=4096, multiple_of=8)] = 0
    augmentation: Augmentation = Augmentation()  # ranges of random changes
    workers: Annotated[int, Field(ge=0, le=1024)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if bool(self.train) == (self.split is not None):
            raise ValueError("expected either the names of training cases in data.train, or data.split")
        if self.split is not None and (self.validation or self.test):
            raise ValueError("data.split draws the validation and test cases; leave their names out")
        names = (*self.train, *self.validation, *self.test)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"cases {', '.join(twice)} are named twice; split by patient")
        if self.crop and self.resolutions:
            raise ValueError("crop is for the codec stage, resolutions for whole slices; set one of them")
        if self.neighbour_pairs > 1 and not self.neighbours:
            raise ValueError("neighbour_pairs counts neighbours; set neighbours to their distance in slices")
        return self


class ModelConfig(Strict):
    """What is trained."""

    preset: PresetName = "small"  # sizes, see `models.presets`
    #: Fields of the preset to change, such as `{width: 128, depth: 4}`; other methods have sizes of their own.
    sizes: dict[str, Any] = {}
    #: What the `model` stage trains, a name of `methods.known`; a method without a preset takes none.
    method: Annotated[str, Field(json_schema_extra={"enum": list(METHODS)})] = "meddelinea"
    #: Folders of trained components that the `base` stage and a model over latents stand on: the codec, and what the
    #: `base` stage leaves, a DiT (of `controlnet` a UNet, random where null; of `vqdiffusion` a codebook). The `codec`
    #: stage continues from `codec` where it is given.
    codec: Path | None = None
    dit: Path | None = None
    #: Folder of a whole model of the same method to fine-tune, in place of `codec` and `dit`.
    pipeline: Path | None = None
    #: Folder of a trained model of another method, whose masks `medsam` draws its boxes around.
    boxes: Path | None = None
    #: How much of the codec's decoder a model trains, where it has one.
    trainable_decoder: TrainableDecoder = "final_layer"
    #: `frozen`, the paper's; `trained` with the control branch; or `random` weights that stay as they are drawn.
    base: BaseWeights = "frozen"

    @model_validator(mode="after")
    def _built(self) -> ModelConfig:
        try:
            pipeline_of(self.method).check_sizes(self.preset, self.sizes)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return self


class OptimiserConfig(Strict):
    """What trains the weights, its learning rate over the steps, and the moving average of the weights."""

    #: `muon` trains the matrices of hidden layers by Muon and all else by AdamW; see `training.optimisers`.
    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 2e-5
    weight_decay: Annotated[float, Field(ge=0.0, le=10.0)] = 0.01
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Steps = 0
    clip_norm: Annotated[float, Field(gt=0.0, le=1e6)] = 1.0
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999


class ValidationConfig(Strict):
    """When and how the mean Dice on the validation cases is measured during training."""

    every: Steps = 0  # steps between measurements; 0 for one at the end only
    #: Where above 0: the result is the best measured model and not the last, and the run ends after so many
    #: measurements without a better one.
    patience: Steps = 0
    stride: Count = 4  # every how many slices of a case
    #: How masks are sampled.
    sampling_steps: Annotated[int, Field(ge=1, le=TIMESTEPS)] = 1
    scheduler: SchedulerName = "euler_ancestral"

    @model_validator(mode="after")
    def _samples(self) -> ValidationConfig:
        try:
            prepared(make_scheduler(self.scheduler), self.sampling_steps)
        except UsageError as error:
            raise ValueError(f"sampling_steps, scheduler: {error}") from error
        return self


class CodecLossConfig(Strict):
    """Weights of the codec's losses: mean absolute error of pixels is 1, and these are added."""

    kl: Weight = 1e-3
    palette: Weight = 0.5


class RunConfig(Strict):
    """A training run."""

    #: `codec`: the autoencoder; `base`: the DiT on mask latents, where no pre-trained one is supplied, or what else
    #: `model.method` stands on; `model`: a whole model of `model.method`; of `meddelinea`, the paper's pre-training and
    #: fine-tuning.
    stage: Literal["codec", "base", "model"]
    output: Path  # folder of checkpoints, logs and the result
    data: DataConfig
    model: ModelConfig = ModelConfig()
    objective: Objective = Objective()
    codec_loss: CodecLossConfig = CodecLossConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    validation: ValidationConfig = ValidationConfig()
    #: Optimiser steps, 0 to measure a model without training it (zero-shot); slices a process and micro-step;
    #: micro-steps an optimiser step.
    steps: Steps
    batch_size: Count = 32
    accumulation: Count = 1
    #: Where given, training time after which the run ends early; the learning rate follows the clock instead of the
    #: steps then, so that runs of different speed can be compared at equal time.
    minutes: Minutes | None = None
    #: The same by the processor's time, summed over its cores: what else the machine does then costs the run nothing.
    #: Processes of `data.workers` are not counted.
    cpu_minutes: Minutes | None = None
    #: `no` (float32), `bf16`, `fp16` (on a CPU float32, which is faster there), or `auto`, which becomes `bf16` where
    #: the GPU or the processor is made for it and `no` elsewhere; the run's record holds what it became.
    precision: Precision = "no"
    #: Whether the blocks' activations are computed anew in the backward pass: less memory, a third more time.
    gradient_checkpointing: bool = False
    compile: bool = False  # whether the blocks are compiled by `torch.compile`
    #: Whether weights, gradients and optimiser state are spread over the processes (FSDP): for models that do not fit
    #: one device.
    sharding: bool = False
    seed: Seed = 0
    checkpoint_minutes: Minutes = 5.0  # time between checkpoints
    #: Type of the weights in the resulting model's folder; checkpoints keep float32.
    saved_dtype: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        method, decoder = self.model.method, self.model.trainable_decoder
        if self.stage == "model" and not self.objective.segmentation and method != "meddelinea":
            raise ValueError(f"{method} has no other loss; leave objective.segmentation: true")
        if self.model.boxes is not None and method != "medsam":
            raise ValueError(f"{method} takes no boxes; leave model.boxes out")
        read_from_colours = self.stage == "model" and method == "meddelinea" and decoder == "none"
        if read_from_colours and self.objective.pixel_loss == "bce":
            raise ValueError(
                "a mask that is read from colours has one softmax; set objective.pixel_loss: cross_entropy "
                "with model.trainable_decoder: none"
            )
        if self.stage == "codec" and self.data.neighbour_pairs > 1:
            raise ValueError("the codec sees three slices; set data.neighbour_pairs: 1 for its stage")
        stands_on_it = method == "meddelinea" or (self.stage == "base" and method in BASES)
        if self.stage != "model" and not stands_on_it:
            raise ValueError(f"model.method is what the stage 'model' trains; leave it out of stage '{self.stage}'")
        if self.sharding and self.precision == "fp16":
            raise ValueError("the loss scaler of fp16 does not know sharded gradients; set precision: bf16")
        if self.sharding and self.optimiser.kind == "muon":
            raise ValueError("Muon takes whole matrices, not shards; set optimiser.kind: adamw")
        if self.validation.patience and not self.validation.every:
            raise ValueError("validation.patience counts measurements; set validation.every")
        return self

    @property
    def result(self) -> Path:
        """Folder of what the run trains."""
        names = {"codec": "codec", "base": BASES.get(self.model.method, ""), "model": "pipeline"}
        return self.output / names[self.stage]

    def changed(self, **settings: Any) -> RunConfig:
        """The run with other settings: of a section that is given as a mapping those that it names, else all of it.

        Raises
        ------
        UsageError
            If the settings are unknown, out of range, or contradict each other.
        """
        return check(laid_over(self.model_dump(), settings), "changed settings")


def check(content: dict[str, Any], place: str) -> RunConfig:
    """The run of plain settings; `place` is named where they are refused, by UsageError."""
    # As JSON, so that a list may be a tuple and a text a path, but `true` no number and "3" none either.
    document = to_json(content, inf_nan_mode="constants", fallback=str)
    try:
        return RunConfig.model_validate_json(document, strict=True)
    except ValidationError as error:
        raise UsageError(f"{place}: {first_fault(error)}") from error


def laid_over(ground: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings over others: a section changes those that it names, any other value replaces the one before."""
    merged = dict(ground)
    for key, value in settings.items():
        below = merged.get(key)
        merged[key] = laid_over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
