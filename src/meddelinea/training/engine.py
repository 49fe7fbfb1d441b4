"""The training loop, for every stage and on any number of processes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader

from meddelinea.data.store import SliceStore
from meddelinea.errors import MedDelineaError, UsageError
from meddelinea.methods.protocol import Batch
from meddelinea.models.transformer import DiTBlock
from meddelinea.training.averaging import Best, copy_into, in_place
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.cases import choose_cases
from meddelinea.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    restore_optimiser,
    restore_weights,
    save_checkpoint,
    trainable_state,
)
from meddelinea.training.clock import Clock
from meddelinea.training.config import OptimiserConfig, RunConfig
from meddelinea.training.metrics_log import metrics_log
from meddelinea.training.result import write_result
from meddelinea.training.sharding import shard, spread, whole
from meddelinea.training.stages import build_stage
from meddelinea.training.validation import validation_dice


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
        Go on from the last checkpoint in `config.output`, or from the start where the run was stopped before its
        first; the result equals that of an uninterrupted run.
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
    AcceleratorState._reset_state()  # what trained before in this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulation,
        log_with="tensorboard" if find_spec("tensorboard") else None,
        project_dir=output,
    )
    set_seed(config.seed)
    cases = choose_cases(config.data)
    store, held_out, test = (
        SliceStore(config.data.store, names) for names in (cases.train, cases.validation, cases.test)
    )
    stage = _build(config, store.manifest.organs, accelerator)
    parameters = [p for p in stage.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        parameters,
        config.optimiser.learning_rate,
        weight_decay=config.optimiser.weight_decay,
        fused=not config.sharding,  # one pass over the weights in place of ten
    )
    ema = EMAModel(parameters, decay=config.optimiser.ema_decay, use_ema_warmup=True, power=0.75)
    start, best = 0, Best(0, -1.0, [])
    checkpoint = load_checkpoint(output) if resume else None
    if checkpoint is not None:
        start, best = checkpoint.step, Best(**checkpoint.best)
        restore_weights(checkpoint, stage)
        restore_optimiser(checkpoint.optimiser, optimiser)
        ema.load_state_dict(checkpoint.ema)
        for kept in (ema.shadow_params, best.weights):
            kept[:] = [spread(value, like) for value, like in zip(kept, parameters, strict=False)]
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        (output / "run.json").write_text(config.model_dump_json(indent=2))
    accelerator.wait_for_everyone()
    if accelerator.log_with:
        accelerator.init_trackers("tensorboard")
    # What is sharded needs no wrapper: its gradients are averaged as they are spread.
    wrapped = stage if config.sharding else accelerator.prepare(stage)
    optimiser = accelerator.prepare(optimiser)
    ema.to(accelerator.device)
    if checkpoint is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(checkpoint.scaler)

    dataset = TrainingBatches(
        store, config.data, config.batch_size, config.seed, accelerator.process_index, accelerator.num_processes
    )
    batches = _batches(config, dataset, accelerator, start)
    clock = Clock() if checkpoint is None else Clock(checkpoint.seconds, checkpoint.cpu_seconds)
    saved = time.monotonic()
    step = start
    share = 1.0 if best.out_of_patience(config.validation, step) else _share(config, step, clock)
    wrapped.train()

    def measure(cases: SliceStore) -> dict[str, float]:
        """Dice of the averaged weights; every process measures, since each holds a part of a sharded model."""
        with in_place(ema.shadow_params, parameters):
            stage.eval()
            figures = validation_dice(stage.predict, stage.organs, cases, config, accelerator.device)
            stage.train()
        return figures

    with metrics_log(output, start, accelerator.is_main_process) as log:
        if share >= 1.0 and step == 0 and held_out.cases:
            log({"step": 0, "seconds": 0.0, "cpu_seconds": 0.0, **measure(held_out)})
        while share < 1.0:
            for group in optimiser.param_groups:
                group["lr"] = config.optimiser.learning_rate * learning_rate_factor(config.optimiser, step, share)
            figures = _optimise(wrapped, batches, optimiser, parameters, config, accelerator)
            loss, norm = figures["total"], figures["gradient_norm"]
            # Under fp16 an infinite gradient is no fault, the scaler skips its step; elsewhere it spoils the weights.
            if not math.isfinite(loss if accelerator.scaler is not None else loss + norm):
                raise MedDelineaError(_not_finite(config, dataset, step, loss, norm, accelerator.is_main_process))
            ema.step(parameters)
            step += 1
            share, due = _agreed(
                [_share(config, step, clock), time.monotonic() - saved > 60.0 * config.checkpoint_minutes],
                accelerator,
            )
            figures["learning_rate"] = optimiser.param_groups[0]["lr"]
            validates = config.validation.every and step % config.validation.every == 0
            if held_out.cases and (validates or share >= 1.0):
                figures |= measure(held_out)
                (dice,) = _agreed([figures.get("dice", -1.0)], accelerator)
                if dice > best.dice:
                    best = Best(step, dice, [p.detach().clone() for p in ema.shadow_params])
                if best.out_of_patience(config.validation, step):
                    share = 1.0
            if accelerator.is_main_process:
                times = {"seconds": round(clock.seconds, 2), "cpu_seconds": round(clock.cpu_seconds, 2)}
                log({"step": step, **times, **figures})
                if report is not None:
                    report(Progress(step, config.steps, share, clock.seconds, figures))
            accelerator.log(figures, step=step)
            if due or share >= 1.0:
                _save(stage, optimiser, ema, best, step, clock, accelerator, output)
                saved = time.monotonic()

    if config.validation.patience and best.weights:
        ema.shadow_params = best.weights
    figures = measure(test) if test.cases else {}
    copy_into(ema.shadow_params, parameters)
    weights = whole(stage.state_dict())
    if accelerator.is_main_process:
        if test.cases:
            (output / "test.json").write_text(json.dumps({"cases": cases.test, **figures}, indent=2) + "\n")
        write_result(config, weights, store, held_out, test)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output


def _build(config: RunConfig, organs: tuple[str, ...], accelerator: Accelerator) -> Any:
    """The stage with its switches set, on this process's device where it is sharded."""
    stage: Any = build_stage(config, organs)
    if not config.sharding:  # which takes contiguous parameters only
        # Convolutions over few channels run up to twice as fast on a CPU with channels last.
        stage.to(memory_format=torch.channels_last)
    for block in (module for module in stage.modules() if isinstance(module, DiTBlock)):
        block.gradient_checkpointing = config.gradient_checkpointing
        if config.compile:
            block.compile()
    if config.sharding:
        shard(stage.to(accelerator.device), accelerator.device, accelerator.num_processes)
    return stage


def _not_finite(config: RunConfig, dataset: TrainingBatches, step: int, loss: float, norm: float, writes: bool) -> str:
    """The message for a step that cannot be taken; its slices are named in `not_finite.json`."""
    micro_steps = range(step * config.accumulation, (step + 1) * config.accumulation)
    slices = [(dataset.store.cases[c].name, index) for micro in micro_steps for c, index in dataset.slices(micro)]
    path = config.output / "not_finite.json"
    if writes:
        path.write_text(json.dumps({"step": step + 1, "loss": str(loss), "gradient_norm": str(norm), "slices": slices}))
    named = ", ".join(f"{name} {index}" for name, index in slices[:4])
    return (
        f"{config.output}: loss {loss:g}, gradient norm {norm:g} at step {step + 1} on the slices {named}, ... "
        f"(all {len(slices)} in {path}); look at them, or lower optimiser.learning_rate, and --resume"
    )


def _share(config: RunConfig, step: int, clock: Clock) -> float:
    """Share of the run that is done, by steps, or by a clock where the run has a time."""
    shares = [step / config.steps if config.steps else 1.0]
    if config.minutes is not None:
        shares.append(clock.seconds / (60.0 * config.minutes))
    if config.cpu_minutes is not None:
        shares.append(clock.cpu_seconds / (60.0 * config.cpu_minutes))
    return min(1.0, max(shares))


def _agreed(values: list[float], accelerator: Accelerator) -> list[float]:
    """The main process's values for all, so that its clock and its figures decide for every process."""
    if accelerator.num_processes == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    torch.distributed.broadcast(shared, src=0)
    return [float(value) for value in shared]


def _batches(config: RunConfig, dataset: TrainingBatches, accelerator: Accelerator, start: int) -> Iterator[Batch]:
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
            with accelerator.autocast():
                losses = wrapped(next(batches))
            accelerator.backward(losses["total"])
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(parameters, config.optimiser.clip_norm)
            optimiser.step()
            optimiser.zero_grad()
        for name, value in losses.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / config.accumulation
    figures = {name: float(cast(Tensor, accelerator.reduce(value, "mean"))) for name, value in sums.items()}
    return {**figures, "gradient_norm": float(whole(norm))}


def _save(
    stage: torch.nn.Module,
    optimiser: Any,
    ema: EMAModel,
    best: Best,
    step: int,
    clock: Clock,
    accelerator: Accelerator,
    output: Path,
) -> None:
    """Write the checkpoint; all processes take part, the main one writes."""
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
    weights, moments, average, kept = (
        whole(state) for state in (trainable_state(stage), optimiser.state_dict(), ema.state_dict(), vars(best))
    )
    if accelerator.is_main_process:
        save_checkpoint(
            Checkpoint(step, clock.seconds, clock.cpu_seconds, weights, moments, average, scaler, kept), output
        )
