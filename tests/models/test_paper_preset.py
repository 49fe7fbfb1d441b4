"""The paper's sizes on a machine without a GPU: one training step and one sampled slice at 256 x 256 within 12 GB.

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

folder = Path(sys.argv[1])
store = folder / "store"
begin_store(store, tuple(BTCV.values()), Preprocessing())
rng = np.random.default_rng(0)
mask = rng.integers(0, 14, (1, 256, 256)).astype(np.uint8)
sha256 = write_slices(store, "noise", rng.uniform(-1, 1, mask.shape).astype(np.float32), mask, 13)
write_record(store, StoredCase("noise", "x", "noise", "CT", "0", "", 1, sha256, ()))
compile_store(store)
preset = find_preset("paper")
build_codec(preset).save_pretrained(folder / "codec")
build_dit(preset).save_pretrained(folder / "dit")
run = {
    "stage": "model", "output": folder / "run", "steps": 1, "batch_size": 1,
    "data": {"store": store, "train": ["noise"]},
    "model": {"preset": "paper", "codec": folder / "codec", "dit": folder / "dit"},
}
for progress in train(RunConfig.model_validate(run)):
    assert np.isfinite(progress.figures["total"]), progress
pipeline = MedDelineaPipeline.from_pretrained(folder / "run" / "pipeline")
keys = [NoiseKey(0, 0, 0, 0)]
(logits,) = pipeline(torch.zeros(1, 3, 256, 256), keys=keys, num_inference_steps=1, output_type="logits").to_tuple()
assert logits.shape == (1, 14, 256, 256) and logits.isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2)
"""


@pytest.mark.slow
def test_one_step_and_one_slice_within_twelve_gigabytes(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 12
