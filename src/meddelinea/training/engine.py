"""The training loop, for every stage and on any number of processes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader

from meddelinea.data.store import SliceStore
from meddelinea.diffusion.method import Batch
from meddelinea.errors import MedDelineaError, UsageError
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    restore_weights,
    save_checkpoint,
    trainable_state,
)
from meddelinea.training.config import OptimiserConfig, RunConfig
from meddelinea.training.model_folder import write_model_files
from meddelinea.training.stages import CodecStage, ControlStage, build_stage
from meddelinea.training.validation import validation_dice

#: Slices whose latents set a codec's scaling factor.
SCALE_SLICES = 256


@dataclass(frozen=True)
class Progress:
    """What a caller may show after a step: steps done and in all, share done (0 to 1), seconds spent, and figures."""

    step: int
    steps: int
    share: float
    seconds: float
    figures: dict[str, float]


def learning_rate_factor(optimiser: OptimiserConfig, step: int, share: float) -> float:
    """Learning rate over its largest value: linear warm-up, then cosine or linear to zero, or constant.

    Parameters
    ----------
    step
        Optimiser steps done.
    share
        Share of the run that is done, 0 to 1.
    """
    warmup = min(1.0, (step + 1) / optimiser.warmup_steps) if optimiser.warmup_steps else 1.0
    decay = {"cosine": 0.5 * (1.0 + math.cos(math.pi * share)), "linear": 1.0 - share, "constant": 1.0}
    return warmup * decay[optimiser.schedule]


def train(config: RunConfig, *, resume: bool = False, report: Callable[[Progress], None] | None = None) -> Path:
    """Run a training stage to its end.

    Under `accelerate launch` each process takes its share of every batch; alone it takes all.

    Parameters
    ----------
    config
        The run.
    resume
        Go on from the last checkpoint in `config.output`; the result equals that of an uninterrupted run.
    report
        Called after each step, on the main process.

    Returns
    -------
    The folder with the result: `codec`, `dit` or `pipeline`, beside `metrics.jsonl`.

    Raises
    ------
    UsageError
        If the output folder holds a run and `resume` is off.
    MedDelineaError
        If the loss stops being finite; the last checkpoint remains.
    """
    output = config.output
    if not resume and (output / "metrics.jsonl").exists():
        raise UsageError(f"{output}: holds a run already; add --resume to go on with it, or choose another output")
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulation,
        log_with="tensorboard" if find_spec("tensorboard") else None,
        project_dir=output,
    )
    set_seed(config.seed)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / "run.json").write_text(config.model_dump_json(indent=2))
    accelerator.wait_for_everyone()
    if accelerator.log_with:
        accelerator.init_trackers("tensorboard")

    store = SliceStore(config.data.store, config.data.train)
    held_out = SliceStore(config.data.store, config.data.validation)
    # Convolutions over few channels run up to twice as fast on a CPU with channels last.
    stage = build_stage(config, store.manifest.organs)
    stage.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [p for p in stage.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters, config.optimiser.learning_rate, weight_decay=config.optimiser.weight_decay
    )
    ema = EMAModel(parameters, decay=config.optimiser.ema_decay, use_ema_warmup=True, power=0.75)
    start, spent = 0, 0.0
    if resume:
        checkpoint = load_checkpoint(output)
        start, spent = checkpoint.step, checkpoint.seconds
        restore_weights(checkpoint, stage)
        optimiser.load_state_dict(checkpoint.optimiser)
        ema.load_state_dict(checkpoint.ema)
    wrapped, optimiser = accelerator.prepare(stage, optimiser)
    ema.to(accelerator.device)
    if resume and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(checkpoint.scaler)

    batches = _batches(config, store, accelerator, start)
    began = saved = time.monotonic()
    seconds = spent
    step = start
    share = _share(config, step, seconds)
    wrapped.train()
    with _metrics(output, start, accelerator.is_main_process) as log:
        while share < 1.0:
            for group in optimiser.param_groups:
                group["lr"] = config.optimiser.learning_rate * learning_rate_factor(config.optimiser, step, share)
            figures = _optimise(wrapped, batches, optimiser, parameters, config, accelerator)
            loss, norm = figures["total"], figures["gradient_norm"]
            # Under fp16 an infinite gradient is no fault, the scaler skips its step; elsewhere it spoils the weights.
            if not math.isfinite(loss if accelerator.scaler is not None else loss + norm):
                raise MedDelineaError(
                    f"{output}: loss {loss:g}, gradient norm {norm:g} at step {step + 1}; "
                    "lower optimiser.learning_rate and --resume"
                )
            ema.step(parameters)
            step += 1
            seconds = spent + time.monotonic() - began
            share = _agreed(_share(config, step, seconds), accelerator)
            figures["learning_rate"] = optimiser.param_groups[0]["lr"]
            due = config.validation.every and step % config.validation.every == 0
            if held_out.cases and (due or share >= 1.0):
                figures |= _validate(stage, held_out, config, ema, parameters, accelerator)
            if accelerator.is_main_process:
                log({"step": step, "seconds": round(seconds, 2), **figures})
                if report is not None:
                    report(Progress(step, config.steps, share, seconds, figures))
            accelerator.log(figures, step=step)
            if time.monotonic() - saved > 60.0 * config.checkpoint_minutes or share >= 1.0:
                _save(stage, optimiser, ema, step, seconds, accelerator, output)
                saved = time.monotonic()

    if accelerator.is_main_process:
        ema.copy_to(parameters)
        stage.eval()
        if isinstance(stage, CodecStage):
            stage.measure_scale(_masks(store, SCALE_SLICES))
        stage.save(output)
        if isinstance(stage, ControlStage):
            write_model_files(output / "pipeline", store, held_out, config)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output


@contextmanager
def _metrics(output: Path, start: int, writes: bool) -> Iterator[Callable[[dict[str, float]], None]]:
    """A function that adds a line to `metrics.jsonl`; lines after step `start`, which a resume repeats, are dropped."""
    if not writes:
        yield lambda row: None
        return
    path = output / "metrics.jsonl"
    kept = path.read_text().splitlines() if path.exists() else []
    with path.open("w") as file:
        file.writelines(line + "\n" for line in kept if json.loads(line)["step"] <= start)

        def log(row: dict[str, float]) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        yield log


def _share(config: RunConfig, step: int, seconds: float) -> float:
    """Share of the run that is done, by steps, or by the clock where the run has a time."""
    by_steps = step / config.steps
    return min(1.0, by_steps if config.minutes is None else max(by_steps, seconds / (60.0 * config.minutes)))


def _agreed(share: float, accelerator: Accelerator) -> float:
    """The main process's clock for all, so that all stop at the same step."""
    if accelerator.num_processes == 1:
        return share
    value = torch.tensor(share, dtype=torch.float64, device=accelerator.device)
    torch.distributed.broadcast(value, src=0)
    return float(value)


def _batches(config: RunConfig, store: SliceStore, accelerator: Accelerator, start: int) -> Iterator[Batch]:
    side = (config.data.crop or store.manifest.preprocessing.size) // 8
    dataset = TrainingBatches(
        store,
        config.data,
        config.batch_size,
        config.seed,
        accelerator.process_index,
        accelerator.num_processes,
        (4, side, side),
    )
    micro_steps = range(start * config.accumulation, config.steps * config.accumulation)
    loader = DataLoader(dataset, batch_size=None, sampler=micro_steps, num_workers=config.data.workers)
    for batch in loader:
        yield Batch(*(tensor.to(accelerator.device, non_blocking=True) for tensor in batch))


def _optimise(
    wrapped: Any,
    batches: Iterator[Batch],
    optimiser: Any,
    parameters: list[torch.nn.Parameter],
    config: RunConfig,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimiser step over `accumulation` batches; returns the losses' means over all processes."""
    sums: dict[str, Tensor] = {}
    for _ in range(config.accumulation):
        with accelerator.accumulate(wrapped):
            losses = wrapped(next(batches))
            accelerator.backward(losses["total"])
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(parameters, config.optimiser.clip_norm)
            optimiser.step()
            optimiser.zero_grad()
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / config.accumulation
    figures = {name: float(cast(Tensor, accelerator.reduce(value, "mean"))) for name, value in sums.items()}
    return {**figures, "gradient_norm": float(norm)}


def _validate(
    stage: Any,
    held_out: SliceStore,
    config: RunConfig,
    ema: EMAModel,
    parameters: list[torch.nn.Parameter],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Dice of the averaged weights on the validation cases, measured by the main process."""
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        return {}
    ema.store(parameters)
    ema.copy_to(parameters)
    stage.eval()
    figures = validation_dice(stage.predict, held_out, config, accelerator.device)
    stage.train()
    ema.restore(parameters)
    accelerator.wait_for_everyone()
    return figures


def _save(
    stage: torch.nn.Module,
    optimiser: Any,
    ema: EMAModel,
    step: int,
    seconds: float,
    accelerator: Accelerator,
    output: Path,
) -> None:
    # The main process alone, and no barrier: each process has its own clock, and another may find nothing due yet.
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        state = Checkpoint(step, seconds, trainable_state(stage), optimiser.state_dict(), ema.state_dict(), scaler)
        save_checkpoint(state, output)


def _masks(store: SliceStore, count: int) -> Tensor:
    """Masks (count, H, W) spread evenly over the store."""
    chosen = range(0, len(store), max(1, len(store) // count))[:count]
    return torch.stack([torch.from_numpy(store.mask(*store.place(number))).long() for number in chosen])
