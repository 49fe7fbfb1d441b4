"""The three stages: each leaves what the next one needs, and says what it is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from meddelinea.data.store import SliceStore
from meddelinea.diffusion.losses import Objective, segmentation_loss
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.sampling import make_scheduler
from meddelinea.errors import UsageError, WeightsMissingError
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
from meddelinea.training.run_file import load_config
from meddelinea.training.stages import build_stage
from support.tiny_models import CASES, ORGANS, SIDE, SIZES, run_config
from support.training_runs import assert_same_weights, control_config, hand_made_batch, read_checkpoint, train


def test_codec_latents_of_masks_have_unit_variance(store: Path, parts: dict[str, Path]) -> None:
    codec = SpaceToDepthCodec.from_pretrained(parts["codec"])
    slices = SliceStore(store, CASES[:2])
    masks = torch.stack([torch.from_numpy(slices.mask(c, s)) for c in range(2) for s in range(6)])
    with torch.no_grad():
        latents = codec.to_latent(paint(masks, palette(len(ORGANS) + 1)))
    assert float(latents.std()) == pytest.approx(1.0, abs=1e-3)


def test_a_model_is_trained_on_a_codec_that_gives_images_more_channels_than_masks(store: Path, tmp_path: Path) -> None:
    channels = {"channels": 16, "image_channels": 8, "linear_path": True}
    sizes = {"codec": channels, "stem_channels": [], "head_hidden": []}
    codec = train(run_config("codec", store, tmp_path / "codec", model={"sizes": sizes})) / "codec"
    model: dict[str, Any] = {"sizes": sizes, "codec": codec}
    dit = train(run_config("base", store, tmp_path / "base", model=model)) / "dit"
    folder = train(run_config("model", store, tmp_path / "run", model={**model, "dit": dit})) / "pipeline"
    pipeline = MedDelineaPipeline.from_pretrained(folder)
    assert (pipeline.codec.image_channels, pipeline.dit.latent_channels) == (8, 4)
    assert pipeline.control.zero_conv.weight.any()
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    assert pipeline(images, generator=torch.Generator().manual_seed(0)).masks.shape == (2, SIDE, SIDE)


@pytest.mark.parametrize("decoder", ["none", "final_layer", "all"])
def test_control_stage_leaves_the_frozen_parts_alone(
    store: Path, parts: dict[str, Path], tmp_path: Path, decoder: str
) -> None:
    model, objective = {"trainable_decoder": decoder}, {"pixel_loss": "cross_entropy"}
    output = train(control_config(store, parts, tmp_path / "run", model=model, objective=objective))
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


@pytest.mark.parametrize("base", ["frozen", "trained", "random"])
def test_what_becomes_of_the_base_is_what_the_run_says(
    store: Path, parts: dict[str, Path], tmp_path: Path, base: str
) -> None:
    output = train(control_config(store, parts, tmp_path / "run", model={"base": base}))
    trained = MedDelineaPipeline.from_pretrained(output / "pipeline").dit
    given = DiT.from_pretrained(parts["dit"])
    same = all(torch.equal(a, b) for a, b in zip(trained.parameters(), given.parameters(), strict=True))
    assert same == (base == "frozen")
    if base == "random":  # it is not trained: only the run's seed says which weights it has
        again = train(control_config(store, parts, tmp_path / "again", steps=1, model={"base": base}))
        assert_same_weights(MedDelineaPipeline.from_pretrained(again / "pipeline").dit, trained)
        assert trained.final_layer.linear.weight.any()


def test_without_the_segmentation_loss_the_decoder_alone_learns_to_segment() -> None:
    """Table 5, "only L_diff": the control branch has the gradient of L_diff, the final layer that of true latents."""
    method, batch = tiny_method(Objective(segmentation=False), head_hidden=(), stem_channels=()), hand_made_batch(4)
    method.segmenter.freeze("final_layer")
    torch.nn.init.normal_(method.segmenter.dit.final_layer.linear.weight)  # zeros let no gradient through
    losses = method.loss(batch)
    control, head = method.segmenter.control, method.segmenter.mask_head
    of_total = torch.autograd.grad(losses["total"], list(control.after_mlp.parameters()), retain_graph=True)
    of_diffusion = torch.autograd.grad(losses["diffusion"], list(control.after_mlp.parameters()), retain_graph=True)
    assert any(bool(gradient.any()) for gradient in of_total)
    for one, other in zip(of_total, of_diffusion, strict=True):
        torch.testing.assert_close(one, other)
    segmenter = method.segmenter
    image = segmenter.encode_image(batch.images)
    logits = segmenter.decode(segmenter.encode_mask(batch.masks), image, torch.zeros(()))
    expected = segmentation_loss(logits, batch.masks, torch.ones(4), pixel_loss="bce")
    torch.testing.assert_close(losses["segmentation"], expected)
    gradients = torch.autograd.grad(losses["total"], list(head.parameters()))
    assert all(bool(gradient.any()) for gradient in gradients)


def test_in_half_precision_an_exact_noise_gives_the_exact_latent_at_every_timestep() -> None:
    """Eq. (1) multiplies what a product in bfloat16 rounds by up to 157; so none of its factors may be rounded."""
    method, batch = tiny_method(Objective(segmentation_weighting="none")), hand_made_batch(4)
    segmenter = method.segmenter
    torch.nn.init.normal_(segmenter.dit.final_layer.linear.weight)  # which starts at zero
    for t in (0, 500, 900, 999):
        steps = torch.full((4,), t)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            rounded = segmenter.encode_mask(batch.masks)
            noisy = method.schedule.add_noise(rounded, batch.noise, steps)
            condition = segmenter.dit.condition(steps)
            tokens = segmenter.dit.x_embedder(noisy)
            output = segmenter.dit.final_layer(tokens, condition)
            estimate = method.prediction.clean(batch.noise, noisy, steps)
        assert rounded.dtype == noisy.dtype == output.dtype == torch.float32
        assert float((estimate - rounded).abs().max()) < 1e-3
        with torch.no_grad():  # and the noise that the network answers is not rounded either
            torch.testing.assert_close(output, segmenter.dit.final_layer(tokens.float(), condition.float()))


def tiny_method(objective: Objective, **sizes: Any) -> MedDelinea:
    torch.manual_seed(0)
    preset = find_preset("small", {**SIZES, **sizes})
    codec, dit = build_codec(preset), build_dit(preset)
    control, head = build_control(preset, dit, codec), build_mask_head(preset, codec, len(ORGANS))
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


def test_gradient_checkpointing_computes_activations_anew() -> None:
    block, calls = DiTBlock(16, 2), []
    block.attn.register_forward_hook(lambda *_: calls.append(None))
    for on in (False, True):
        block.gradient_checkpointing = on
        x = torch.randn(1, 4, 16, requires_grad=True)
        block(x, torch.randn(1, 16))[1].sum().backward()
    assert len(calls) == 1 + 2


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
