"""A slice store, run files and a model so small that a step takes milliseconds; shared by several test files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from meddelinea.data.preprocess import Preprocessing
from meddelinea.data.store import StoredCase, read_manifest
from meddelinea.data.store_writer import begin_store, compile_store, write_record, write_slices
from meddelinea.diffusion.sampling import make_scheduler
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.models.presets import build_codec, build_control, build_dit, build_mask_head, find_preset
from meddelinea.training.cases import open_cases
from meddelinea.training.config import RunConfig
from meddelinea.training.result import training_cases, write_model_files

ORGANS = ("spleen", "liver", "gallbladder")
SIDE = 64
CASES = ("a", "b", "c")

#: The preset `small`, shrunk.
SIZES: dict[str, Any] = {
    "width": 32,
    "heads": 2,
    "depth": 2,
    "control_depth": 2,
    "stem_channels": [8, 8, 8, 16],
    "head_hidden": [8, 8, 8],
    "resolution": SIDE,
    "codec": {"channels": 8, "encoder_blocks": 1, "decoder_blocks": 1},
}

#: Sizes of the methods that sample over a codec's latents, shrunk.
LATENT_SIZES: dict[str, dict[str, Any]] = {
    "dit": {"width": 32, "heads": 2, "depth": 2, "resolution": SIDE},
    "stable_diffusion": {"widths": [8, 16], "layers": 1, "heads": 2, "groups": 4, "text_width": 8},
    "controlnet": {
        "widths": [8, 16], "layers": 1, "heads": 2, "groups": 4, "text_width": 8, "image_widths": [4, 8, 8, 8],
    },
    "vqdiffusion": {"codes": 32, "width": 32, "heads": 2, "depth": 2, "resolution": SIDE},
}  # fmt: skip

Slices = dict[str, tuple[NDArray[np.float32], NDArray[np.uint8]]]


def write_store(root: Path, cases: Slices, size: int = SIDE, organs: tuple[str, ...] = ORGANS) -> Path:
    """Write a store of images in [-1, 1] and masks with ids of `organs`, (S, size, size) each; returns `root`."""
    begin_store(root, organs, Preprocessing(size=size, spacing_mm=6.0))
    for number, (name, (image, mask)) in enumerate(cases.items()):
        sha256 = write_slices(root, name, image, mask, len(ORGANS))
        write_record(
            root,
            StoredCase(
                name=name,
                dataset="synthetic",
                patient=name,
                modality="CT",
                fingerprint=f"{number:064x}",
                sketch="",
                slices=len(mask),
                sha256=sha256,
                remarks=(),
            ),
        )
    compile_store(root)
    return root


def change_cases(root: Path, change: Callable[[StoredCase], StoredCase]) -> Path:
    """Rewrite what a store says of its cases; returns `root`."""
    for case in read_manifest(root).cases:
        write_record(root, change(case))
    compile_store(root)
    return root


def blobs(size: int = SIDE) -> Slices:
    """Three cases of six slices: the first slice empty, discs in the others, the gallbladder in one slice only."""
    rng = np.random.default_rng(0)
    unit = size / SIDE
    rows, columns = np.mgrid[:size, :size] / unit
    cases = {}
    for name in CASES:
        mask = np.zeros((6, size, size), np.uint8)
        for index in range(1, 6):
            for organ in (1, 2, 3) if index == 3 else (1, 2):
                row, column = 16 * organ + rng.uniform(-4, 4, 2)
                mask[index][(rows - row) ** 2 + (columns - column) ** 2 < (12 - 2 * organ) ** 2] = organ
        image = np.clip(0.5 * mask - 0.8 + rng.normal(0, 0.05, mask.shape), -1, 1).astype(np.float32)
        cases[name] = (image, mask)
    return cases


def write_blobs(root: Path) -> Path:
    """A store of `blobs`."""
    return write_store(root, blobs())


def run_config(stage: str, store: Path, output: Path, **sections: Any) -> RunConfig:
    """A run of four steps on cases a and b; `sections` adds to a section of the run file or replaces a plain value."""
    content: dict[str, Any] = {
        "stage": stage,
        "output": output,
        "steps": 4,
        "batch_size": 4,
        "data": {"store": store, "train": CASES[:2], "neighbours": 1},
        "model": {"sizes": SIZES},
        "optimiser": {"learning_rate": 1e-3},
        "validation": {"stride": 2},
    }
    method = sections.get("model", {}).get("method", "meddelinea")
    if method not in ("meddelinea", "direct"):
        content["model"] = {"sizes": LATENT_SIZES.get(method, {})}  # which has other sizes
    for name, value in sections.items():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    return RunConfig.model_validate(content)


def write_model(root: Path) -> Path:
    """The folder of a complete model with random weights: its masks depend on the image and mean nothing."""
    store = write_blobs(root / "store")
    write_pipeline(root / "model", ORGANS)
    objective = {"prediction_type": "sample"}  # as the pipeline's
    config = run_config("model", store, root / "run", data={"validation": CASES[2:]}, objective=objective)
    cases = open_cases(config.data)
    write_model_files(root / "model", ORGANS, cases, config=config)
    training_cases(config, cases).write(root / "model")
    return root / "model"


def write_pipeline(folder: Path, organs: tuple[str, ...]) -> None:
    """The pipeline of such a model alone."""
    torch.manual_seed(0)
    preset = find_preset("small", SIZES)
    codec, dit = build_codec(preset), build_dit(preset)
    control, head = build_control(preset, dit, codec), build_mask_head(preset, codec, len(organs))
    with torch.no_grad():
        for module in (codec, dit, control, head):
            for parameter in module.parameters():
                if not parameter.any():  # a zero layer hides what is behind it
                    parameter.normal_(0.0, 0.2)
    pipeline = MedDelineaPipeline(
        codec, dit, control, head, make_scheduler("euler_ancestral"), organs, "sample", default_steps=2, neighbours=1
    )
    pipeline.save_pretrained(folder)
