"""What a training step costs: CPU seconds of run files' steps on one thread, and what their data would cost besides.

meddelinea prepare --format btcv --size 192 --spacing-mm 2 ../shared/data/btcv stores/btcv-2mm
small=src/meddelinea/weights/small
python benchmarks/step_time.py recipes/small/coarse.yaml --set model.codec=$small/codec --set model.dit=$small/dit
python benchmarks/step_time.py recipes/benchmark/unet-coarse.yaml
With `--set data.resolutions=[]` the slices are as fine as the last stages have them, with `--set compile=true` the
whole network is compiled, and with `--set precision=no` it computes in float32. Beside the mean the step on an
undisturbed core: each operation's least time over all steps, added up.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from meddelinea.data.store import SliceStore
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.run_file import load_config
from meddelinea.training.stages import build_stage

BATCHES, STEPS, LARGEST = 6, 12, 6


def undisturbed_seconds(step: Callable[[], None]) -> Counter[str]:
    """Seconds of a step by operation, of each call the least over the steps: other work delays no call every time."""
    least: dict[tuple[str, str, int], float] = {}
    for _ in range(STEPS):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            step()
        calls: Counter[tuple[str, str]] = Counter()
        for event in sorted(profiled.events() or [], key=lambda event: event.time_range.start):
            kind = (event.name, str(event.input_shapes))
            call = (*kind, calls[kind])
            calls[kind] += 1
            least[call] = min(event.self_cpu_time_total / 1e6, least.get(call, float("inf")))
    seconds: Counter[str] = Counter()
    for (name, _, _), least_seconds in least.items():
        seconds[name] += least_seconds
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_file", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(given.run_file, tuple(given.set))
    store = SliceStore(config.data.store, config.data.train)
    stage = build_stage(config, store.manifest.organs).to(memory_format=torch.channels_last).train()
    parameters = [parameter for parameter in stage.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, config.optimiser.learning_rate, fused=True)
    data = TrainingBatches(
        store,
        config.data,
        batch_size=config.batch_size,
        noise_channels=stage.noise_channels,
        seed=config.seed,
        rank=0,
        processes=1,
    )
    began = time.process_time()
    batches = [data[step] for step in range(BATCHES)]
    print(f"a batch read and augmented: {(time.process_time() - began) / BATCHES:.3f} CPU seconds")

    forward = torch.compile(stage) if config.compile else stage

    def step(number: int) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            loss = forward(batches[number % BATCHES])["total"]
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    began = time.monotonic()
    step(0)  # allocates what later steps use again, and compiles
    print(f"first step: {time.monotonic() - began:.1f} s")
    began = time.process_time()
    for number in range(STEPS):
        step(number)
    print(f"{given.run_file}: {(time.process_time() - began) / STEPS:.3f} CPU seconds a step of {config.batch_size}")
    seconds = undisturbed_seconds(lambda: step(0))
    largest = ", ".join(f"{name} {each:.3f}" for name, each in seconds.most_common(LARGEST))
    print(f"on an undisturbed core: {seconds.total():.3f} s; {largest}")


if __name__ == "__main__":
    main()
