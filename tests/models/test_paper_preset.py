"""The paper's sizes, and those of the published DiT-XL/2, on a machine without a GPU: one training step and one slice.

Weights are random: this is about shapes, gradients and memory.
"""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from pathlib import Path

import numpy as np
import torch

from meddelinea.data.preprocess import Preprocessing
from meddelinea.data.store import StoredCase
from meddelinea.data.store_writer import begin_store, compile_store, write_record, write_slices
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.labels import BTCV
from meddelinea.models.presets import build_codec, build_dit, find_preset
from meddelinea.training.config import RunConfig
from meddelinea.training.engine import train

folder, name, side = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = folder / "store"
begin_store(store, tuple(BTCV.values()), Preprocessing(size=side))
rng = np.random.default_rng(0)
mask = rng.integers(0, 14, (1, side, side)).astype(np.uint8)
sha256 = write_slices(store, "noise", rng.uniform(-1, 1, mask.shape).astype(np.float32), mask, 13)
known = {"dataset": "x", "patient": "noise", "modality": "CT", "fingerprint": "0", "sketch": "", "remarks": ()}
write_record(store, StoredCase(name="noise", slices=1, sha256=sha256, **known))
compile_store(store)
preset = find_preset(name)
build_codec(preset).save_pretrained(folder / "codec")
build_dit(preset).save_pretrained(folder / "dit")
run = {
    "stage": "model", "output": folder / "run", "steps": 1, "batch_size": 1, "gradient_checkpointing": True,
    "data": {"store": store, "train": ["noise"]},
    "model": {"preset": name, "codec": folder / "codec", "dit": folder / "dit"},
}
for progress in train(RunConfig.model_validate(run)):
    assert np.isfinite(progress.figures["total"]) and progress.figures["gradient_norm"] > 0, progress
pipeline = MedDelineaPipeline.from_pretrained(folder / "run" / "pipeline")
keys = [NoiseKey(0, 0, 0, 0)]
(logits,) = pipeline(torch.zeros(1, 3, side, side), keys=keys, num_inference_steps=1, output_type="logits").to_tuple()
assert logits.shape == (1, 14, side, side) and logits.isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("preset", "side", "gigabytes"), [("paper", 256, 12), ("xl", 64, 20)])
def test_one_step_and_one_slice_fit_into_memory(tmp_path: Path, preset: str, side: int, gigabytes: int) -> None:
    arguments = [str(tmp_path), preset, str(side)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < gigabytes
