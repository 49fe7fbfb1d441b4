"""Training: the stages leave what the next one needs, and a run is the same however it is cut up.

Models here have 32 channels and slices 64 pixels, so a step takes milliseconds; they learn nothing.
"""

import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn

from meddelinea.cli.main import main
from meddelinea.data.store import SliceStore
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.objective import Objective
from meddelinea.diffusion.sampling import make_scheduler
from meddelinea.errors import InputRefusedError, MedDelineaError, UsageError, WeightsMissingError
from meddelinea.methods.known import load_pipeline
from meddelinea.methods.meddelinea import MedDelinea
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.methods.protocol import Batch
from meddelinea.models.codec import SpaceToDepthCodec, paint, palette
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import UNLIKELY
from meddelinea.models.presets import build_codec, build_control, build_dit, build_mask_head, find_preset
from meddelinea.models.segmenter import Segmenter
from meddelinea.models.transformer import DiTBlock
from meddelinea.training import clock, engine
from meddelinea.training.cases import choose_cases, mixed_datasets
from meddelinea.training.checkpoint import Checkpoint, load_checkpoint
from meddelinea.training.config import OptimiserConfig, RunConfig
from meddelinea.training.run import Run, learning_rate_factor
from meddelinea.training.run_file import load_config
from meddelinea.training.stages import BaseStage, build_stage
from meddelinea.training.validation import validation_dice
from support.tiny_models import CASES, ORGANS, SIDE, SIZES, blobs, change_cases, run_config, write_blobs, write_store
from support.training_runs import train
from support.waiting import PATIENCE


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def parts(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A codec and a DiT, trained for a few steps each: what the control stage stands on."""
    folder = tmp_path_factory.mktemp("parts")
    codec = train(run_config("codec", store, folder / "codec", data={"crop": 32})) / "codec"
    dit = train(run_config("base", store, folder / "base", model={"codec": codec})) / "dit"
    return {"codec": codec, "dit": dit}


def control_config(store: Path, parts: dict[str, Path], output: Path, **sections: Any) -> RunConfig:
    model = {"sizes": SIZES, **parts, **sections.pop("model", {})}
    return run_config("model", store, output, model=model, **sections)


CONSTANT = {"schedule": "constant"}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_checkpoint(folder: Path) -> Checkpoint:
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    return checkpoint


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# The three stages


def test_codec_latents_of_masks_have_unit_variance(store: Path, parts: dict[str, Path]) -> None:
    codec = SpaceToDepthCodec.from_pretrained(parts["codec"])
    slices = SliceStore(store, CASES[:2])
    masks = torch.stack([torch.from_numpy(slices.mask(c, s)) for c in range(2) for s in range(6)])
    with torch.no_grad():
        latents = codec.to_latent(paint(masks, palette(len(ORGANS) + 1)))
    assert float(latents.std()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("decoder", ["none", "final_layer", "all"])
def test_control_stage_leaves_the_frozen_parts_alone(
    store: Path, parts: dict[str, Path], tmp_path: Path, decoder: str
) -> None:
    output = train(control_config(store, parts, tmp_path / "run", model={"trainable_decoder": decoder}))
    pipeline = MedDelineaPipeline.from_pretrained(output / "pipeline")
    codec, dit = SpaceToDepthCodec.from_pretrained(parts["codec"]), DiT.from_pretrained(parts["dit"])
    assert_same_weights(pipeline.dit, dit)
    assert_same_weights(pipeline.codec.encoder, codec.encoder)
    assert pipeline.codec.config.scaling_factor == codec.config.scaling_factor
    decoder_moved = any(
        not torch.equal(a, b)
        for a, b in zip(pipeline.codec.decoder.parameters(), codec.decoder.parameters(), strict=True)
    )
    assert decoder_moved == (decoder == "all")
    assert (pipeline.mask_head is None) == (decoder == "none")

    control = pipeline.control
    for layer in (*control.after_attention, *control.after_mlp):
        assert layer.weight.any()  # zero before training
    assert control.zero_conv.weight.any()
    for mine, frozen in zip(control.blocks, dit.blocks, strict=True):
        assert not torch.equal(mine.mlp.fc1.weight, frozen.mlp.fc1.weight)  # equal before training


def test_a_trained_pipeline_folder_says_what_it_is(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    config = control_config(store, parts, tmp_path / "run", data={"validation": CASES[2:]}, validation={"stride": 3})
    folder = train(config) / "pipeline"
    read = {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}
    assert read["labels"]["labels"] == {"spleen": 1, "liver": 2, "gallbladder": 3}
    assert read["preprocessing"]["size"] == 64
    assert read["preprocessing"]["spacing_mm"] == 6.0
    assert read["preprocessing"]["modalities"] == ["CT"]
    cases = {
        role: [(c["name"], c["fingerprint"]) for c in read["training_cases"][role]] for role in ("train", "validation")
    }
    assert cases == {"train": [("a", f"{0:064x}"), ("b", f"{1:064x}")], "validation": [("c", f"{2:064x}")]}
    assert load_config(folder / "run.json") == config

    pipeline = MedDelineaPipeline.from_pretrained(folder)
    keys = [NoiseKey(0, 0, i, 0) for i in range(2)]
    logits = pipeline(torch.zeros(2, 3, 64, 64), keys=keys, num_inference_steps=1, output_type="logits").logits
    assert logits.shape == (2, len(ORGANS) + 1, 64, 64)
    assert torch.isfinite(logits).all()


def test_a_pipeline_is_fine_tuned_even_from_float16(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    first = train(control_config(store, parts, tmp_path / "first", saved_dtype="float16")) / "pipeline"
    stored = load_file(first / "control" / "diffusion_pytorch_model.safetensors")
    assert {p.dtype for p in stored.values()} == {torch.float16}
    before = MedDelineaPipeline.from_pretrained(first)  # in float32
    again = run_config("model", store, tmp_path / "again", model={"pipeline": first})
    after = MedDelineaPipeline.from_pretrained(train(again) / "pipeline")
    assert {p.dtype for p in read_checkpoint(tmp_path / "again").weights.values()} == {torch.float32}
    assert_same_weights(after.dit, before.dit)
    assert not torch.equal(after.control.zero_conv.weight, before.control.zero_conv.weight)


def test_a_pipeline_is_not_fine_tuned_to_predict_something_else(
    store: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    first = train(control_config(store, parts, tmp_path / "first", steps=1)) / "pipeline"
    changed = {"objective": {"prediction_type": "sample"}, "model": {"pipeline": first}}
    with pytest.raises(UsageError, match="epsilon"):
        train(run_config("model", store, tmp_path / "again", **changed))


@pytest.mark.parametrize(("stage", "absent"), [("base", "codec"), ("model", "codec"), ("model", "dit")])
def test_a_missing_part_is_named(store: Path, parts: dict[str, Path], tmp_path: Path, stage: str, absent: str) -> None:
    model = {**parts, absent: tmp_path / "nowhere"}
    with pytest.raises(WeightsMissingError, match=f"model.{absent}: {tmp_path / 'nowhere'}"):
        build_stage(run_config(stage, store, tmp_path / "run", model=model), ORGANS)


def test_only_the_diffusion_loss_leaves_the_mask_head_untrained_and_is_told(
    store: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    objective = {"segmentation": False}
    with pytest.raises(ValidationError, match="trainable_decoder"):
        control_config(store, parts, tmp_path / "run", objective=objective)
    build_stage(
        control_config(store, parts, tmp_path / "run", objective=objective, model={"trainable_decoder": "none"}), ORGANS
    )


# The same run however it is cut up

KILLED = """
import os, signal, sys
from pathlib import Path
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.training import checkpoint
from meddelinea.training.run_file import load_config
from meddelinea.training.engine import train

moment = sys.argv[2]
saved = []

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

whole = checkpoint.torch.save

def save(state, path):
    saved.append(path)
    if moment == "in a checkpoint" and len(saved) == 5:
        path.write_bytes(b"half a checkpoint")
        die()
    whole(state, path)

checkpoint.torch.save = save
if moment == "in the result":
    MedDelineaPipeline.save_pretrained = die
for progress in train(load_config(Path(sys.argv[1]))):
    if (moment, progress.step) in (("between two checkpoints", 5), ("before the first checkpoint", 2)):
        die()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize(
    ("moment", "minutes", "step"),
    [
        ("before the first checkpoint", 60.0, None),
        ("between two checkpoints", 1e-9, 4),  # one after every step
        ("in a checkpoint", 1e-9, 4),
        ("in the result", 1e-9, 8),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    store: Path, parts: dict[str, Path], tmp_path: Path, moment: str, minutes: float, step: int | None
) -> None:
    same = {
        "steps": 8,
        "checkpoint_minutes": minutes,
        "data": {"validation": CASES[2:]},
        "validation": {"every": 3},
        "optimiser": {"learning_rate": 1e-2, "warmup_steps": 3, "ema_decay": 0.9},
    }
    straight = train(control_config(store, parts, tmp_path / "straight", **same))

    config = control_config(store, parts, tmp_path / "killed", **same)
    (tmp_path / "run.yaml").write_text(config.model_dump_json())
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run.yaml"), moment]
    assert subprocess.run(command, check=False, timeout=PATIENCE).returncode == -signal.SIGKILL
    left = load_checkpoint(config.output)
    assert (left and left.step) == step
    assert not (config.output / "pipeline").exists()
    with (config.output / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "tot')  # as a kill within a write would leave it
    train(config, resume=True)

    ours, theirs = read_checkpoint(config.output), read_checkpoint(straight)
    assert ours.step == theirs.step == 8
    for name, value in theirs.weights.items():
        assert torch.equal(ours.weights[name], value), name
    assert any(not torch.equal(a, b) for a, b in zip(theirs.ema["shadow_params"], theirs.weights.values(), strict=True))
    for a, b in zip(ours.ema["shadow_params"], theirs.ema["shadow_params"], strict=True):
        assert torch.equal(a, b)
    one, other = (MedDelineaPipeline.from_pretrained(run / "pipeline") for run in (config.output, straight))
    assert_same_weights(one.control, other.control)
    assert_same_weights(one.mask_head, other.mask_head)

    times = {"seconds": None, "cpu_seconds": None}
    rows = [[{**row, **times} for row in metrics(run)] for run in (config.output, straight)]
    assert [row["step"] for row in rows[1]] == list(range(1, 9))
    assert ["dice" in row for row in rows[1]] == [step in (3, 6, 8) for step in range(1, 9)]
    assert rows[0] == rows[1]


def test_the_result_holds_averaged_weights(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    folder = train(
        run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, optimiser={"ema_decay": 0.5})
    )
    checkpoint = read_checkpoint(folder)
    weights = dict(DiT.from_pretrained(folder / "dit").named_parameters())
    for name, average in zip(checkpoint.weights, checkpoint.ema["shadow_params"], strict=True):
        assert torch.equal(weights[name.removeprefix("dit.")], average), name


def in_two_processes(config: RunConfig, folder: Path) -> None:
    """Run a config as `torchrun` and `accelerate launch` do on one machine."""
    run_file = folder / f"{config.output.name}.json"
    run_file.write_text(config.model_dump_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "meddelinea", "train", "--quiet", "--debug", str(run_file)]
    processes = [
        subprocess.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


@pytest.mark.parametrize("sharding", [False, True])
def test_two_processes_with_half_the_batch_equal_one(
    store: Path, parts: dict[str, Path], tmp_path: Path, sharding: bool
) -> None:
    same = {"steps": 50, "data": {"validation": CASES[2:]}, "validation": {"every": 20}}
    alone = train(control_config(store, parts, tmp_path / "alone", batch_size=4, **same))
    config = control_config(store, parts, tmp_path / "together", batch_size=2, sharding=sharding, **same)
    in_two_processes(config, tmp_path)

    one, two = metrics(alone), metrics(config.output)
    assert len(one) == len(two) == 50
    for mine, theirs in zip(one, two, strict=True):
        for loss in ("total", "diffusion", "segmentation"):
            assert mine[loss] == pytest.approx(theirs[loss], abs=1e-4)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-2, abs=1e-4)
    assert [row["step"] for row in two if "dice" in row] == [20, 40, 50]
    assert two[-1]["dice"] == pytest.approx(one[-1]["dice"], abs=1e-2)
    a, b = (MedDelineaPipeline.from_pretrained(run / "pipeline").control for run in (alone, config.output))
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-3, rtol=1e-2, msg=name)


def test_two_processes_with_half_the_batch_equal_one_in_the_codecs_stage(store: Path, tmp_path: Path) -> None:
    same = {"steps": 50, "data": {"crop": 32}}
    alone = train(run_config("codec", store, tmp_path / "alone", batch_size=8, **same))
    config = run_config("codec", store, tmp_path / "together", batch_size=4, **same)
    in_two_processes(config, tmp_path)
    for mine, theirs in zip(metrics(alone), metrics(config.output), strict=True):
        for loss in ("total", "pixels", "kl", "palette"):
            assert mine[loss] == pytest.approx(theirs[loss], abs=1e-4)


def test_a_sharded_run_is_resumed_by_one_process(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    whole = train(control_config(store, parts, tmp_path / "whole", batch_size=4, steps=10, optimiser=CONSTANT))
    half = control_config(
        store, parts, tmp_path / "half", batch_size=2, steps=5, sharding=True, precision="no", optimiser=CONSTANT
    )
    in_two_processes(half, tmp_path)
    train(control_config(store, parts, tmp_path / "half", batch_size=4, steps=10, optimiser=CONSTANT), resume=True)
    for mine, theirs in zip(metrics(whole), metrics(half.output), strict=True):
        assert mine["total"] == pytest.approx(theirs["total"], abs=1e-4)


def hand_made_batch(size: int) -> Batch:
    g = torch.Generator().manual_seed(3)
    return Batch(
        torch.rand(size, 3, 64, 64, generator=g) * 2 - 1,
        torch.randint(0, 4, (size, 64, 64), generator=g),
        torch.randn(size, 4, 8, 8, generator=g),
        torch.rand(size, generator=g),
    )


def test_accumulating_halves_equals_the_whole_batch(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the mean squared error alone; the Dice of a batch is no mean over its slices."""
    whole = hand_made_batch(4)
    halves = [Batch(*(tensor[i : i + 2] for tensor in whole)) for i in (0, 2)]
    base = {"model": {"codec": parts["codec"]}, "steps": 3}
    monkeypatch.setattr(Run, "load_batches", lambda run: iter([whole] * 3))
    once = train(run_config("base", store, tmp_path / "once", **base))
    monkeypatch.setattr(Run, "load_batches", lambda run: iter(halves * 3))
    twice = train(run_config("base", store, tmp_path / "twice", accumulation=2, batch_size=2, **base))
    for a, b in zip(metrics(once), metrics(twice), strict=True):
        for figure in ("total", "gradient_norm", "learning_rate"):
            assert a[figure] == pytest.approx(b[figure], rel=1e-4), figure
    mine, theirs = read_checkpoint(once).weights, read_checkpoint(twice).weights
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-5, rtol=1e-3, msg=name)


def tiny_method(objective: Objective) -> MedDelinea:
    torch.manual_seed(0)
    preset = find_preset("small", SIZES)
    codec, dit = build_codec(preset), build_dit(preset)
    control, head = build_control(preset, dit), build_mask_head(preset, codec, len(ORGANS))
    return MedDelinea(
        Segmenter(codec, dit, control, head, palette(len(ORGANS) + 1)), objective, make_scheduler("ddim"), steps=1
    )


def test_which_losses_are_means_over_slices() -> None:
    method = tiny_method(Objective())
    whole = hand_made_batch(4)
    halves = [Batch(*(tensor[i : i + 2] for tensor in whole)) for i in (0, 2)]
    with torch.no_grad():
        losses, parts = method.loss(whole), [method.loss(half) for half in halves]
    for name, value in losses.items():
        gap = abs(float(value) - sum(float(part[name]) for part in parts) / 2)
        assert (gap < 1e-5) == (name == "diffusion"), name


# Time, steps and figures


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_learning_rate_without_warmup(share: float) -> None:
    step = 7  # plays no part
    assert learning_rate_factor(OptimiserConfig(schedule="constant"), step, share) == 1.0
    assert learning_rate_factor(OptimiserConfig(schedule="linear"), step, share) == pytest.approx(1 - share)
    half_turn = math.cos(math.pi * share / 2) ** 2  # the half-angle formula
    assert learning_rate_factor(OptimiserConfig(schedule="cosine"), step, share) == pytest.approx(half_turn)


def test_learning_rate_warms_up_linearly() -> None:
    config = OptimiserConfig(schedule="constant", warmup_steps=4)
    assert [learning_rate_factor(config, step, 0.1) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    both = OptimiserConfig(schedule="linear", warmup_steps=4)
    assert learning_rate_factor(both, 1, 0.2) == pytest.approx(0.5 * 0.8)


@pytest.mark.parametrize(("limit", "hand"), [("minutes", "seconds"), ("cpu_minutes", "cpu_seconds")])
def test_a_time_ends_a_run_and_drives_its_learning_rate(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, hand: str
) -> None:
    hands = {"seconds": 100.0, "cpu_seconds": 7.0}
    faked = SimpleNamespace(monotonic=lambda: hands["seconds"], process_time=lambda: hands["cpu_seconds"])
    monkeypatch.setattr(clock, "time", faked)
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, steps=10**6, **{limit: 1.0})
    for _ in engine.train(config):
        hands[hand] += 15.0
    rows = metrics(config.output)
    other = "seconds" if hand == "cpu_seconds" else "cpu_seconds"
    assert [row[hand] for row in rows] == [0, 15, 30, 45, 60]
    assert {row[other] for row in rows} == {0}
    shares = [0.0, 0.0, 0.25, 0.5, 0.75]  # at the start of each step
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * share)) for share in shares]
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)


def test_the_stem_sees_as_many_slices_as_the_model_is_trained_on(
    store: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    wide = control_config(store, parts, tmp_path / "wide", data={"neighbour_pairs": 2})
    pipeline = train(wide) / "pipeline"
    trained = MedDelineaPipeline.from_pretrained(pipeline)
    assert (trained.config.neighbour_pairs, trained.control.config.stem_slices) == (2, 5)
    onwards = {"codec": None, "dit": None, "pipeline": pipeline}
    with pytest.raises(UsageError, match=r"was trained with data\.neighbour_pairs: 2; set that"):
        train(control_config(store, {}, tmp_path / "run", model=onwards))


def test_progress_and_learning_rate_follow_the_steps(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    optimiser = {"schedule": "linear", "warmup_steps": 2}
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, optimiser=optimiser)
    seen = list(engine.train(config))
    assert [(p.step, p.steps, p.share) for p in seen] == [(1, 4, 0.25), (2, 4, 0.5), (3, 4, 0.75), (4, 4, 1.0)]
    assert [p.figures["learning_rate"] for p in seen] == pytest.approx([0.5e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_validation_dice_equals_counting_voxels(store: Path, tmp_path: Path) -> None:
    stride = 2
    config = run_config("base", store, tmp_path / "run", validation={"stride": stride}, data={"neighbours": 1})
    held_out = SliceStore(store, CASES[1:])
    guesses: dict[tuple[int, int], np.ndarray] = {}

    def predict(images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> Tensor:
        rng = np.random.default_rng([keys[0].case, keys[0].slice])
        truth = masks.numpy()
        guess = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, len(ORGANS) + 1, truth.shape))
        for key, image, ids in zip(keys, images.numpy(), guess, strict=True):
            guesses[key.case, key.slice] = ids
            wanted = held_out.image(key.case, key.slice, 1) / np.float32(127.5) - 1
            assert np.allclose(image, wanted, atol=1e-6)
        return nn.functional.one_hot(torch.from_numpy(guess), len(ORGANS) + 1).permute(0, 3, 1, 2).float()

    figures = validation_dice(predict, ORGANS, store=held_out, config=config, device=torch.device("cpu"))

    assert set(guesses) == {(case, index) for case in (0, 1) for index in (0, 2, 4)}
    dice: dict[str, float] = {}
    for organ, name in enumerate(ORGANS, start=1):
        of_cases = []
        for case in (0, 1):
            truth = np.stack([held_out.mask(case, index) for index in (0, 2, 4)]) == organ
            guess = np.stack([guesses[case, index] for index in (0, 2, 4)]) == organ
            if truth.any():
                of_cases.append(2 * (truth & guess).sum() / (truth.sum() + guess.sum()))
        if of_cases:
            dice[name] = float(np.mean(of_cases))
    assert set(dice) == {"spleen", "liver"}  # the gallbladder lies between the slices that are measured
    expected = {f"dice/{name}": value for name, value in dice.items()}
    expected |= {"dice": np.mean(list(dice.values())), "dice_paper": np.mean(list(dice.values()))}
    assert figures == pytest.approx(expected)


def test_validation_without_any_organ_gives_no_figures(store: Path, tmp_path: Path) -> None:
    config = run_config("base", store, tmp_path / "run", validation={"stride": 100})  # the first slices, all empty

    def predict(images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> Tensor:
        return torch.zeros(len(masks), len(ORGANS) + 1, 64, 64)

    assert validation_dice(predict, ORGANS, store=SliceStore(store), config=config, device=torch.device("cpu")) == {}


def test_a_tensorboard_log_appears(parts: dict[str, Path]) -> None:
    pytest.importorskip("tensorboard")
    run = parts["dit"].parent
    assert list(run.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", ["codec", "base", "model"])
def test_half_precision_runs(store: Path, parts: dict[str, Path], tmp_path: Path, stage: str, precision: str) -> None:
    model = {"codec": {}, "base": {"codec": parts["codec"]}, "model": parts}[stage]
    config = run_config(stage, store, tmp_path / "run", model=model, precision=precision, steps=2, batch_size=2)
    train(config)
    assert all(math.isfinite(row["total"]) for row in metrics(config.output))
    assert {p.dtype for p in read_checkpoint(config.output).weights.values()} == {torch.float32}


@pytest.mark.filterwarnings("ignore")  # of torch.compile about itself
@pytest.mark.parametrize("switch", ["gradient_checkpointing", "compile"])
def test_a_switch_changes_the_cost_and_not_the_losses(
    store: Path, parts: dict[str, Path], tmp_path: Path, switch: str
) -> None:
    if switch == "compile" and which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    plain = train(control_config(store, parts, tmp_path / "plain"))
    switched = train(control_config(store, parts, tmp_path / "switched", **{switch: True}))
    for mine, theirs in zip(metrics(plain), metrics(switched), strict=True):
        assert mine["total"] == pytest.approx(theirs["total"], abs=1e-5)


def test_gradient_checkpointing_computes_activations_anew() -> None:
    block, calls = DiTBlock(16, 2), []
    block.attn.register_forward_hook(lambda *_: calls.append(None))
    for on in (False, True):
        block.gradient_checkpointing = on
        x = torch.randn(1, 4, 16, requires_grad=True)
        block(x, torch.randn(1, 16))[1].sum().backward()
    assert len(calls) == 1 + 2


def test_resolutions_take_turns(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    large = write_store(tmp_path / "large", blobs(2 * SIDE), size=2 * SIDE)
    config = control_config(
        large, parts, tmp_path / "run", data={"resolutions": [64, 128], "validation": CASES[2:]}, accumulation=2
    )
    folder = train(config) / "pipeline"
    preprocessing = json.loads((folder / "preprocessing.json").read_text())
    assert (preprocessing["size"], preprocessing["spacing_mm"]) == (64, 12.0)
    assert "dice" in metrics(config.output)[-1]


# Which model a run ends with


def test_patience_ends_a_run_and_keeps_its_best_weights(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = iter([0.2, 0.5, 0.4, 0.3, 0.9, 0.1])
    seen: list[dict[str, Tensor]] = []

    def dice(predict: Any, *_: Any, **__: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in predict.__self__.state_dict().items()})
        return {"dice": next(course)}

    monkeypatch.setattr("meddelinea.training.run.validation_dice", dice)
    config = control_config(
        store, parts, tmp_path / "run", steps=40, data={"validation": CASES[2:]}, validation={"every": 3, "patience": 2}
    )
    folder = train(config)
    train(config, resume=True)  # as after a kill while the result was written: it goes no further
    assert [row["step"] for row in metrics(folder)] == list(range(1, 13))  # after 9 and 12 none better than 0.5
    control = MedDelineaPipeline.from_pretrained(folder / "pipeline").control
    for name, value in control.state_dict().items():
        assert torch.equal(value, seen[1][f"method.segmenter.control.{name}"]), name


def test_no_steps_measure_a_model_and_leave_it_alone(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    first = train(control_config(store, parts, tmp_path / "first")) / "pipeline"
    config = run_config(
        "model", store, tmp_path / "again", steps=0, model={"pipeline": first},
        data={"train": CASES[:1], "validation": CASES[1:2], "test": CASES[2:]},
    )  # fmt: skip
    again = train(config)
    (row,) = metrics(again)
    assert row["step"] == 0
    assert 0.0 <= row["dice"] <= 1.0
    test = json.loads((again / "test.json").read_text())
    assert test["cases"] == ["c"]
    assert set(test) == {"cases", "dice", "dice/spleen", "dice/liver", "dice_paper"}  # the stride misses one organ
    before, after = (MedDelineaPipeline.from_pretrained(folder) for folder in (first, again / "pipeline"))
    for part in ("codec", "dit", "control", "mask_head"):
        assert_same_weights(getattr(before, part), getattr(after, part))


def test_the_command_prints_what_a_run_without_steps_measured(
    store: Path, parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(control_config(store, parts, tmp_path / "first")) / "pipeline"
    config = run_config(
        "model", store, tmp_path / "again", steps=0, model={"pipeline": first},
        data={"train": CASES[:1], "validation": CASES[1:2], "test": CASES[2:]},
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(config.model_dump_json())
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path / "run.yaml")])
    assert not ended.value.code
    (row,), test = metrics(config.output), json.loads((config.output / "test.json").read_text())
    assert capsys.readouterr().out.splitlines() == [
        f"mean Dice on the validation cases {row['dice']:.3f}",
        f"mean Dice on the test cases {test['dice']:.3f}",
    ]


def test_cases_are_drawn_by_share_and_recorded(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    config = control_config(
        store, parts, tmp_path / "run", data={"train": (), "split": {"train": 0.4, "validation": 0.3}}
    )
    cases = json.loads((train(config) / "pipeline" / "training_cases.json").read_text())
    parted = {role: [case["name"] for case in cases[role]] for role in ("train", "validation", "test")}
    del parted["train"][1:]  # those that the codec and the base were trained on
    assert sorted(parted["train"] + parted["validation"] + parted["test"]) == list(CASES)
    assert [len(part) for part in parted.values()] == [1, 1, 1]
    few = choose_cases(config.data.model_copy(update={"train_share": 0.01}))
    assert few.train == tuple(parted["train"])


@pytest.mark.parametrize("method", ["meddelinea", "direct"])
def test_a_model_goes_on_with_other_organs(store: Path, parts: dict[str, Path], tmp_path: Path, method: str) -> None:
    """Organs that it knew keep their channel and colour whatever their new number; a new one starts as unlikely."""
    first = train(control_config(store, parts, tmp_path / "first", model={"method": method})) / "pipeline"
    organs = ("liver", "kidney stone", "spleen")
    config = run_config("model", store, tmp_path / "second", model={"method": method, "pipeline": first})
    stage = build_stage(config, organs)
    before = load_pipeline(first)
    assert torch.equal(stage.method.segmenter.palette[[0, 1, 3]], before.palette[[0, 2, 1]])
    assert float(torch.cdist(stage.method.segmenter.palette[2:3], before.palette).min()) >= 1.0

    images, noisy = torch.rand(2, 3, SIDE, SIDE) * 2 - 1, torch.randn(2, 4, 8, 8)
    latent = torch.randn(2, 4, 8, 8)
    t = torch.tensor([10, 900])
    with torch.no_grad():
        logits = []
        for model in (before.sampler().method.segmenter, stage.method.segmenter):
            image = model.encode_image(images)
            tokens = model(noisy, t, image)[1]
            logits.append(model.decode(latent, image, tokens))
        a, b = logits
        torch.testing.assert_close(b[:, [0, 1, 3]], a[:, [0, 2, 1]])
        assert torch.equal(b[:, 2], torch.full_like(b[:, 2], UNLIKELY))


def test_training_cases_are_inherited(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    """What the base has seen is no test case of a model made from it."""
    first = train(control_config(store, parts, tmp_path / "first")) / "pipeline"
    config = run_config("model", store, tmp_path / "second", model={"pipeline": first}, data={"train": CASES[2:]})
    cases = json.loads((train(config) / "pipeline" / "training_cases.json").read_text())
    assert [case["name"] for case in cases["train"]] == ["c", "a", "b"]


def test_a_run_that_mixes_datasets_which_share_scans_is_told(
    store: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    root = write_store(tmp_path / "mixed", blobs())
    keys = dict(zip(CASES, ("abdomenatlas", "abdomenatlas", "btcv"), strict=True))
    change_cases(root, lambda case: replace(case, dataset=keys[case.name]))
    config = control_config(root, parts, tmp_path / "run", data={"validation": CASES[2:]})
    (warning,) = mixed_datasets(config)
    assert "trained on abdomenatlas, tested on btcv" in warning
    assert mixed_datasets(control_config(root, parts, tmp_path / "run")) == []
    # A model that was pre-trained on the one is not tested unseen on the other either.
    pipeline = train(config) / "pipeline"
    onwards = run_config(
        "model", root, tmp_path / "on", model={"pipeline": pipeline},
        data={"train": (), "split": {"train": 0.5}},
    )  # fmt: skip
    change_cases(root, lambda case: replace(case, dataset="amos"))
    (warning,) = mixed_datasets(onwards)
    assert "trained on abdomenatlas, tested on amos" in warning


# What goes wrong


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = run_config(
        "base", store, tmp_path / "run", model={"codec": parts["codec"]}, steps=9, checkpoint_minutes=1e-9
    )
    sane, calls = BaseStage.forward, []

    def forward(stage: BaseStage, batch: Batch) -> dict[str, Tensor]:
        losses = sane(stage, batch)
        calls.append(None)
        if len(calls) == 4:
            # The derivative of sqrt(0 * x) is not a number, its value is 0.
            poison = {"loss": losses["total"] * math.nan, "gradient": (losses["total"] * 0.0).sqrt()}
            losses["total"] = losses["total"] + poison[where]
        return losses

    monkeypatch.setattr(BaseStage, "forward", forward)
    with pytest.raises(MedDelineaError, match=r"nan at step 4 on the slices [ab] \d, .* resume the run") as caught:
        train(config)
    assert "\n" not in str(caught.value)
    kept = read_checkpoint(config.output)
    assert kept.step == 3
    assert all(torch.isfinite(value).all() for value in kept.weights.values())
    assert len(metrics(config.output)) == 3

    train(config, resume=True)  # the fault was the test's, so the run now ends
    assert [row["step"] for row in metrics(config.output)] == list(range(1, 10))


def test_a_run_is_not_overwritten(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, steps=1)
    train(config)
    files = {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds a run already; resume it"):
        train(config)
    assert files == {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()}


def test_resume_without_a_run_is_refused(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]})
    with pytest.raises(InputRefusedError, match="no run to resume"):
        train(config, resume=True)


@pytest.mark.parametrize("other", [{"width": 64}, {"depth": 3}, {"classes": 5}])
def test_the_checkpoint_of_another_model_is_refused(
    store: Path, parts: dict[str, Path], tmp_path: Path, other: dict[str, int]
) -> None:
    config = run_config("base", store, tmp_path / "run", model={"codec": parts["codec"]}, steps=1)
    train(config)
    wider = run_config("base", store, config.output, model={"codec": parts["codec"], "sizes": {**SIZES, **other}})
    with pytest.raises(InputRefusedError, match="the checkpoint trains other parameters") as caught:
        train(wider, resume=True)
    assert "\n" not in str(caught.value)


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.made,)


@pytest.mark.parametrize("writer", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_checkpoint_is_never_unpickled(tmp_path: Path, writer: Any) -> None:
    writer({"step": Malicious(tmp_path / "made")}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputRefusedError, match="not a training checkpoint") as caught:
        read_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no checkpoint at all"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputRefusedError, match="not a training checkpoint"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("thing", [[1, 2], {"step": 1}, 3])
def test_something_else_saved_by_torch_is_refused(tmp_path: Path, thing: Any) -> None:
    torch.save(thing, tmp_path / "checkpoint.pt")
    with pytest.raises(InputRefusedError, match="not a training checkpoint"):
        read_checkpoint(tmp_path)


def test_cases_that_the_store_lacks_are_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="cases z are not in the store"):
        train(run_config("codec", store, tmp_path / "run", data={"train": ["a", "z"]}))
