"""A training run under way: all that changes from step to step, and what an interrupted run has to find again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader

from meddelinea.data.store import SliceStore
from meddelinea.errors import MedDelineaError
from meddelinea.files import write_json, write_text
from meddelinea.methods.protocol import Batch
from meddelinea.training import checkpoint
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.cases import open_cases
from meddelinea.training.clock import Clock
from meddelinea.training.config import OptimiserConfig, RunConfig
from meddelinea.training.metrics_log import MetricsLog
from meddelinea.training.optimisers import build_optimisers
from meddelinea.training.result import write_result
from meddelinea.training.sharding import gather, scatter, shard
from meddelinea.training.stages import build_stage, prepare
from meddelinea.training.validation import image_psnr, validation_dice

#: What the networks' products are computed in; the weights, and all else, are float32.
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def learning_rate_factor(optimiser: OptimiserConfig, step: int, share: float) -> float:
    """Learning rate over its largest value: linear warm-up, then cosine or linear to zero, or constant.

    After `step` optimiser steps, and the `share` of the run, 0 to 1.
    """
    warmup = min(1.0, (step + 1) / optimiser.warmup_steps) if optimiser.warmup_steps else 1.0
    decay = {"cosine": 0.5 * (1.0 + math.cos(math.pi * share)), "linear": 1.0 - share, "constant": 1.0}
    return warmup * decay[optimiser.schedule]


@dataclass(frozen=True)
class Best:
    """The averaged weights with the largest validation Dice so far, and after which step."""

    step: int
    dice: float
    weights: list[Tensor]


class Run:
    """A training run under way.

    The processes of a run call its methods together, except for `clock` and `log`, which are the main process's.

    Attributes
    ----------
    config
        The run.
    accelerator, device, main
        Its processes, this one's device, and whether this is the one that writes.
    cases, dataset, batches
        Slices of the training, validation and test cases, what is drawn of the first, and the batches still to come.
    stage, wrapped, parameters
        What is trained, what is called for its gradients to be averaged, and its parameters that are trained.
    half, scaler
        What its products are computed in where that is not float32, and the scale of the loss under float16.
    optimisers, ema
        AdamW or Muon and AdamW, and the moving average of the parameters, which is the result.
    best
        The averages that validated best.
    done, share, due
        Optimiser steps done, the share of the run that is, 0 to 1, and whether a checkpoint is due.
    clock, log
        The time that it has taken, and its figures.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.accelerator = Accelerator(
            mixed_precision="no",  # a process has one for good, but its runs may differ: see `half`
            gradient_accumulation_steps=config.accumulation,
            log_with="tensorboard" if find_spec("tensorboard") else None,
            project_dir=config.output,
        )
        self.main = self.accelerator.is_main_process
        self.device = self.accelerator.device
        set_seed(config.seed)

        # The cases, what is trained on them, and how batches are drawn.
        self.cases = open_cases(config.data)
        self.stage = build_stage(config, self.cases.train.manifest.organs)
        self.dataset = TrainingBatches(
            self.cases.train,
            config.data,
            batch_size=config.batch_size,
            noise_channels=self.stage.noise_channels,
            seed=config.seed,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            patch=self.stage.patch,
        )
        self.batches: Iterator[Batch] = iter(())

        # Shards need no wrapper: their gradients are averaged as they are spread.
        prepare(self.stage, config)
        if config.sharding:
            shard(self.stage.to(self.device), self.device, self.accelerator.num_processes)
        self.wrapped: nn.Module = self.stage if config.sharding else self.accelerator.prepare(self.stage)
        self.wrapped.train()
        self.parameters = [p for p in self.stage.parameters() if p.requires_grad]
        on_cpu = self.device.type == "cpu"  # where float16 is slower than float32, which is used in its place
        self.half = None if on_cpu and config.precision == "fp16" else HALF.get(config.precision)
        self.optimisers = build_optimisers(config.optimiser, self.stage, self.half, fused=not config.sharding)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half == torch.float16)
        self.ema = EMAModel(self.parameters, decay=config.optimiser.ema_decay, use_ema_warmup=True, power=0.75)

        # How far it is.
        self.best = Best(0, -1.0, [])
        self.done, self.share = 0, 0.0
        self.clock, self.saved, self.due = Clock(), time.monotonic(), False
        self.log = MetricsLog(config.output)

    def resume(self) -> None:
        """Continue from the last checkpoint, or from the start where the run was stopped before its first.

        Raises
        ------
        InputRefusedError
            If no run was begun in the output folder, or its checkpoint is not one of this run.
        """
        left = checkpoint.load_checkpoint(self.config.output)
        if left is None:
            return
        checkpoint.restore_weights(left, self.stage)
        for state, optimiser in zip(left.optimisers, self.optimisers, strict=True):
            checkpoint.restore_optimiser(state, optimiser)
        self.ema.load_state_dict(left.ema)
        self.ema.shadow_params = self._scattered(self.ema.shadow_params)
        self.best = Best(**{**left.best, "weights": self._scattered(left.best["weights"])})
        if left.scaler:
            self.scaler.load_state_dict(left.scaler)
        self.done = left.step
        self.clock = Clock(left.seconds, left.cpu_seconds)

    def _scattered(self, values: list[Tensor]) -> list[Tensor]:
        """Whole tensors placed as the parameters are, which they belong to in this order; none stay none."""
        return [scatter(value, like) for value, like in zip(values, self.parameters, strict=False)]

    def open(self) -> None:
        """Open the output folder for what the run writes, and begin to make its batches."""
        if self.main:
            self.config.output.mkdir(parents=True, exist_ok=True)
            write_text(self.config.model_dump_json(indent=2) + "\n", self.config.output / "run.json")
            self.log.begin(self.done)
        self.accelerator.wait_for_everyone()
        if self.accelerator.log_with:
            self.accelerator.init_trackers("tensorboard")
        self.batches = self.load_batches()
        (self.share,) = self._agreed(self._share())

    def load_batches(self) -> Iterator[Batch]:
        """The batches of the steps that are left, on this process's device."""
        accumulation = self.config.accumulation
        micro_steps = range(self.done * accumulation, self.config.steps * accumulation)
        loader = DataLoader(self.dataset, batch_size=None, sampler=micro_steps, num_workers=self.config.data.workers)
        for batch in loader:
            yield Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))

    def step(self) -> dict[str, float]:
        """Take an optimiser step over `accumulation` batches.

        Returns
        -------
        The losses' means over all processes, `gradient_norm` and `learning_rate`.

        Raises
        ------
        MedDelineaError
            If the loss or the gradient is not finite.
        """
        settings, losses = self.config.optimiser, dict[str, Tensor]()

        # Gradients, averaged over micro-steps and processes, and clipped.
        for _ in range(self.config.accumulation):
            with self.accelerator.accumulate(self.wrapped):
                batch = next(self.batches)  # made by this process: outside of autocast, which would round its pixels
                with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
                    parts = self.wrapped(batch)
                self.accelerator.backward(self.scaler.scale(parts["total"]))
            for name, value in parts.items():
                losses[name] = losses.get(name, torch.zeros_like(value)) + value.detach() / self.config.accumulation
        for optimiser in self.optimisers:
            self.scaler.unscale_(optimiser)
        norm = nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm)
        figures = {name: float(cast(Tensor, self.accelerator.reduce(value, "mean"))) for name, value in losses.items()}
        figures["gradient_norm"] = float(gather(norm))
        self._require_finite(figures)

        # The weights and their average.
        rate = settings.learning_rate * learning_rate_factor(settings, self.done, self.share)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            self.scaler.step(optimiser)
            optimiser.zero_grad()
        self.scaler.update()
        self.ema.step(self.parameters)

        # How far the run is, by the main process's clock.
        self.done += 1
        minutes = (time.monotonic() - self.saved) / 60.0
        self.share, due = self._agreed(self._share(), minutes > self.config.checkpoint_minutes)
        self.due = bool(due)
        return {**figures, "learning_rate": rate}

    def _share(self) -> float:
        """Share of the run that is done: by steps, by a clock where it has a time, or all where patience ended."""
        config = self.config
        shares = [self.done / config.steps if config.steps else 1.0]
        if config.minutes is not None:
            shares.append(self.clock.seconds / (60.0 * config.minutes))
        if config.cpu_minutes is not None:
            shares.append(self.clock.cpu_seconds / (60.0 * config.cpu_minutes))
        return 1.0 if self._out_of_patience() else min(1.0, max(shares))

    def _out_of_patience(self) -> bool:
        validation = self.config.validation
        return bool(validation.patience) and (self.done - self.best.step) // validation.every >= validation.patience

    def _agreed(self, *values: float) -> list[float]:
        """The main process's values for all, so that its clock and its figures decide for every process."""
        if self.accelerator.num_processes == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return [float(value) for value in shared]

    def _require_finite(self, figures: dict[str, float]) -> None:
        """Refuse a step on a loss or a gradient that is not finite; its slices are named in `not_finite.json`."""
        loss, norm = figures["total"], figures["gradient_norm"]
        # Under fp16 an infinite gradient is no fault, the scaler skips its step; elsewhere it spoils the weights.
        if math.isfinite(loss if self.scaler.is_enabled() else loss + norm):
            return
        step, accumulation, path = self.done + 1, self.config.accumulation, self.config.output / "not_finite.json"
        drawn = [self.dataset.slices(micro) for micro in range(self.done * accumulation, step * accumulation)]
        slices = [(self.cases.train.cases[case].name, index) for places in drawn for case, index in places]
        if self.main:
            write_json({"step": step, "loss": str(loss), "gradient_norm": str(norm), "slices": slices}, path)
        named = ", ".join(f"{name} {index}" for name, index in slices[:4])
        raise MedDelineaError(
            f"{self.config.output}: loss {loss:g}, gradient norm {norm:g} at step {step} on the slices {named}, ... "
            f"(all {len(slices)} in {path}); look at them, or lower optimiser.learning_rate, and resume the run",
            parameter="resume",
        )

    def measure(self, cases: SliceStore) -> dict[str, float]:
        """Figures of the averaged weights; every process measures, since each holds a part of a sharded model."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.stage.eval()
        figures = validation_dice(
            self.stage.predict,
            self.stage.organs,
            store=cases,
            config=self.config,
            device=self.device,
            depth=1 if self.stage.patch is None else self.stage.patch.depth,
        )
        figures |= image_psnr(self.stage.read_back, store=cases, config=self.config, device=self.device)
        self.stage.train()
        self.ema.restore(self.parameters)
        return figures

    def validates(self) -> bool:
        """Whether the validation cases are to be measured after this step."""
        every = self.config.validation.every
        return bool(self.cases.validation.cases) and (self.share >= 1.0 or (bool(every) and self.done % every == 0))

    def validate(self) -> dict[str, float]:
        """Dice on the validation cases; the best weights are kept, and the run ends where patience does."""
        figures = self.measure(self.cases.validation)
        (dice,) = self._agreed(figures.get("dice", -1.0))
        if dice > self.best.dice:
            self.best = Best(self.done, dice, [p.detach().clone() for p in self.ema.shadow_params])
        if self._out_of_patience():
            self.share = 1.0
        return figures

    def record(self, figures: dict[str, float]) -> None:
        """Write the figures of a step to the logs."""
        times = {"seconds": round(self.clock.seconds, 2), "cpu_seconds": round(self.clock.cpu_seconds, 2)}
        if self.main:
            self.log.add({"step": self.done, **times, **figures})
        self.accelerator.log(figures, step=self.done)

    def save(self) -> None:
        """Write the checkpoint; all processes take part, the main one writes."""
        state = gather(
            {
                "weights": checkpoint.trainable_state(self.stage),
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
                "ema": self.ema.state_dict(),
                "best": vars(self.best),
            }
        )
        if self.main:
            whole = checkpoint.Checkpoint(
                step=self.done,
                seconds=self.clock.seconds,
                cpu_seconds=self.clock.cpu_seconds,
                scaler=self.scaler.state_dict(),
                **state,
            )
            checkpoint.save_checkpoint(whole, self.config.output)
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Write the result: the averaged weights, the best of them where patience chose, measured on the test cases."""
        if self.config.validation.patience and self.best.weights:
            self.ema.shadow_params = self.best.weights
        test = self.cases.test
        figures = self.measure(test) if test.cases else {}
        self.ema.copy_to(self.parameters)
        weights = gather(self.stage.state_dict())
        if self.main:
            if test.cases:
                names = [case.name for case in test.cases]
                write_json({"cases": names, **figures}, self.config.output / "test.json")
            write_result(self.config, weights, self.cases)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
