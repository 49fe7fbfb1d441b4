"""The comparison methods over a codec's latents: trained by the same engine and used by the same commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from meddelinea.cli.main import main
from meddelinea.diffusion.losses import Objective
from meddelinea.diffusion.mask_and_replace import STEPS
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import UsageError, WeightsMissingError
from meddelinea.io.volumes import write_volume
from meddelinea.methods.comparison import ComparisonPipeline
from meddelinea.methods.known import TABLE_4, load_pipeline, pipeline_of
from meddelinea.methods.protocol import Batch, Recipe
from meddelinea.models.codec import KLCodec, SpaceToDepthCodec, paint, palette
from meddelinea.models.codes import Codebook
from meddelinea.models.latent_unet import no_text
from meddelinea.models.mask_head import UNLIKELY
from meddelinea.models.presets import load_any_codec
from meddelinea.segmentation.model import load_model
from meddelinea.training.adapt import AdaptSettings
from meddelinea.volume import Volume
from support.precisions import agreement
from support.tiny_models import CASES, LATENT_SIZES, ORGANS, SIDE, blobs, run_config, write_blobs, write_store
from support.training_runs import adapt, assert_same_weights, train

METHODS = tuple(LATENT_SIZES)
OTHERS = ("liver", "kidney stone", "spleen")
KEYS = [NoiseKey(seed=1, case=2, slice=i, sample=0) for i in range(3)]
#: What stays as it is: the codec but for its decoder, and what is controlled.
FROZEN = {"dit": (), "stable_diffusion": (), "controlnet": ("unet",), "vqdiffusion": ("codebook",)}


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec that starts as a cosine transform, so that masks can be read from its latents; images have 8 channels."""
    folder = tmp_path_factory.mktemp("codec") / "codec"
    torch.manual_seed(0)
    SpaceToDepthCodec(16, 1, 1, image_channels=8, linear_path=True).save_pretrained(folder)
    return folder


def base_of(method: str, codec: Path) -> Path | None:
    """What the method stands on beside the codec: a codebook that knows the tiny store's masks."""
    folder = codec.parent / "codebook"
    if method != "vqdiffusion":
        return None
    if not folder.exists():
        pixels = paint(torch.from_numpy(blobs()["a"][1]), palette(len(ORGANS) + 1))
        latent = load_any_codec(codec).to_latent(pixels).detach()
        torch.manual_seed(0)
        fitted(Codebook(codes=32, latent_channels=latent.shape[1]), latent, steps=150).save_pretrained(folder)
    return folder


def fitted(codebook: Codebook, latent: Tensor, steps: int) -> Codebook:
    optimiser = torch.optim.Adam(codebook.parameters(), 0.05)
    for _ in range(steps):
        codebook.loss(latent).backward()
        optimiser.step()
        optimiser.zero_grad()
    return codebook


def recipe(method: str, codec: Path, **changes: Any) -> Recipe:
    base = base_of(method, codec)
    objective = Objective(prediction_type="sample", segmentation_weighting="none", pixel_loss="cross_entropy")
    common = Recipe(
        organs=ORGANS, neighbours=2, neighbour_pairs=1, side=SIDE, preset="small", sizes=LATENT_SIZES[method],
        codec=codec, dit=base, trainable_decoder="final_layer", base="frozen", objective=objective, steps=3,
        scheduler="euler_ancestral",
    )  # fmt: skip
    return replace(common, **changes)


def new(method: str, codec: Path, **changes: Any) -> ComparisonPipeline:
    torch.manual_seed(0)
    pipeline = pipeline_of(method).new(recipe(method, codec, **changes))
    assert isinstance(pipeline, ComparisonPipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def opened(pipeline: ComparisonPipeline) -> ComparisonPipeline:
    """Without the zeros that hide what is behind them, as after a few steps of training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in pipeline.networks:
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return pipeline


def batch(channels: int, count: int = 3) -> Batch:
    """Slices of the tiny store, with noise."""
    images, masks = blobs()["a"]
    g = torch.Generator().manual_seed(1)
    chosen = torch.from_numpy(images[1 : 1 + count])[:, None].expand(-1, 3, -1, -1)
    return Batch(
        chosen.clone(),
        torch.from_numpy(masks[1 : 1 + count]).long(),
        torch.randn(count, channels, SIDE // 8, SIDE // 8, generator=g),
        torch.rand(count, generator=g),
    )


def images() -> Tensor:
    return batch(1).images


# Each method


@pytest.mark.parametrize("method", METHODS)
def test_it_segments_nearly_the_same_in_bfloat16(method: str, codec: Path) -> None:
    assert agreement(opened(new(method, codec)).sampler().method, images(), KEYS) > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_masks_have_a_channel_an_organ_and_the_images_rows_and_columns(method: str, codec: Path) -> None:
    pipeline = opened(new(method, codec))
    wide = torch.cat([images(), images()], dim=3)  # (3, 3, 64, 128)
    logits = pipeline(wide, keys=KEYS, output_type="logits").logits
    assert logits.shape == (3, len(ORGANS) + 1, SIDE, 2 * SIDE)
    assert logits.isfinite().all()
    assert logits.std() > 0
    assert pipeline.sampler().method.loss(batch(pipeline.sampler().method.noise_channels))["total"].shape == ()


@pytest.mark.parametrize("method", METHODS)
def test_all_that_is_trained_has_a_gradient_and_nothing_else(method: str, codec: Path) -> None:
    trained = opened(new(method, codec)).for_training(recipe(method, codec, trainable_decoder="all")).train()
    trained.loss(batch(trained.noise_channels))["total"].backward()
    decoder = {id(parameter) for parameter in trained.segmenter.codec.feature_parameters()}
    for name, parameter in trained.named_parameters():
        part = name.split(".")[1]
        if part in FROZEN[method] or (part == "codec" and id(parameter) not in decoder):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("method", "steps", "rate"),
    [
        ("dit", 70, 5e-3),
        pytest.param("stable_diffusion", 60, 5e-3, marks=pytest.mark.slow),
        pytest.param("controlnet", 60, 5e-3, marks=pytest.mark.slow),
        pytest.param("vqdiffusion", 160, 3e-3, marks=pytest.mark.slow),
    ],
)
def test_one_slice_is_learnt(method: str, steps: int, rate: float, codec: Path) -> None:
    pipeline = new(method, codec, steps=2)
    trained = pipeline.for_training(recipe(method, codec, trainable_decoder="all", steps=2)).train()
    optimiser = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], rate)
    generator = torch.Generator().manual_seed(0)
    images, masks = (value[1:2] for value in batch(trained.noise_channels)[:2])
    count = 4 if method == "vqdiffusion" else 2
    for _ in range(steps):
        noise = torch.randn(count, trained.noise_channels, SIDE // 8, SIDE // 8, generator=generator)
        uniform = torch.rand(count, generator=generator)
        drawn = Batch(images.expand(count, -1, -1, -1), masks.expand(count, -1, -1), noise, uniform)
        trained.loss(drawn)["total"].backward()
        optimiser.step()
        optimiser.zero_grad()
    found = pipeline(images, keys=KEYS[:1]).masks
    dice = [2 * ((found == o) & (masks == o)).sum() / ((found == o).sum() + (masks == o).sum()) for o in (1, 2)]
    assert min(dice) > 0.8


@pytest.mark.parametrize("method", METHODS)
def test_a_slice_has_the_same_mask_alone_in_a_batch_and_in_any_order(method: str, codec: Path) -> None:
    pipeline = opened(new(method, codec))

    def logits(chosen: list[int], keys: list[NoiseKey]) -> Tensor:
        return pipeline(images()[chosen], keys=keys, output_type="logits").logits

    together = logits([0, 1, 2], KEYS)
    for i in range(3):
        torch.testing.assert_close(logits([i], KEYS[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits([2, 1, 0], KEYS[::-1]).flip(0), together, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits([0], KEYS[1:2]), together[:1], atol=1e-3)
    assert torch.equal(pipeline.sampler().method.segment(images(), KEYS), together)


@pytest.mark.parametrize("method", METHODS)
def test_masks_depend_on_the_image(method: str, codec: Path) -> None:
    method_of_it = opened(new(method, codec)).sampler().method
    one, other = (method_of_it.segment(pictures, KEYS) for pictures in (images(), -images()))
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_gives_the_same_logits_bit_for_bit(method: str, codec: Path, tmp_path: Path) -> None:
    pipeline = opened(new(method, codec))
    pipeline.save_pretrained(tmp_path)
    logits = pipeline.sampler().method.segment(images(), KEYS)
    for loaded in (load_pipeline(tmp_path), type(pipeline).from_pretrained(tmp_path)):
        assert torch.equal(loaded.sampler().method.segment(images(), KEYS), logits)
        assert (loaded.organs, loaded.neighbours, loaded.sampler().steps) == (ORGANS, 2, 3)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


@pytest.mark.parametrize("method", METHODS)
def test_organs_that_stay_keep_colours_and_logits_and_new_ones_are_found_nowhere(method: str, codec: Path) -> None:
    pipeline = opened(new(method, codec))
    before, colours = pipeline.sampler().method.segment(images(), KEYS), pipeline.palette
    pipeline.change_organs(OTHERS)
    after = pipeline.sampler().method.segment(images(), KEYS)
    torch.testing.assert_close(after[:, [0, 1, 3]], before[:, [0, 2, 1]])
    assert torch.equal(after[:, 2], torch.full_like(after[:, 2], UNLIKELY))
    assert torch.equal(pipeline.palette[[0, 1, 3]], colours[[0, 2, 1]])
    assert float(torch.cdist(pipeline.palette[2:3], colours).min()) > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_step_is_one_pass_of_the_network(method: str, codec: Path) -> None:
    pipeline = opened(new(method, codec))
    calls: list[int] = []
    network = pipeline.unet if method == "controlnet" else pipeline.denoiser
    network.register_forward_hook(lambda *_: calls.append(1))
    for steps in (1, 4, None):
        calls.clear()
        pipeline(images(), num_inference_steps=steps, keys=KEYS)
        assert len(calls) == pipeline.num_timesteps == (steps or 3)


@pytest.mark.parametrize("method", METHODS)
def test_sizes_are_checked_before_anything_is_built(method: str, codec: Path) -> None:
    with pytest.raises(UsageError, match=r"layout: Unexpected keyword argument"):
        new(method, codec, sizes={"layout": 3})
    with pytest.raises(UsageError, match="unknown preset 'xl'"):
        new(method, codec, preset="xl")
    with pytest.raises(WeightsMissingError, match=r"model\.codec"):
        pipeline_of(method).new(replace(recipe(method, codec), codec=Path("nowhere")))


@pytest.mark.parametrize("method", METHODS)
def test_parameters_are_counted_as_they_are_built(method: str, codec: Path) -> None:
    """At `small`, on the codec of that preset; at `paper` beside the paper's Table 4."""
    kind = pipeline_of(method)
    assert issubclass(kind, ComparisonPipeline)
    assert 1e6 < kind.parameter_count("small", 13) < 8e6
    sizes = kind.presets["small"]
    networks = kind.build(sizes, SpaceToDepthCodec(48, 2, 3))
    counted = kind.parameter_counts("small", 13)
    for name, network in networks.items():
        assert counted[name] == sum(p.numel() for p in network.parameters())
    if method in ("dit", "vqdiffusion"):
        assert kind.parameter_count("paper", 13) == pytest.approx(TABLE_4[method] * 1e6, rel=0.03)
    else:  # Stable Diffusion 1.5 as published, and its ControlNet
        parts = kind.parameter_counts("paper", 13)
        published = {"unet": 859_520_964, "controlnet": 361_279_120, "denoiser": 859_520_964 + 4 * 320 * 9}
        assert {name: parts[name] for name in parts if name != "mask_head"}.items() <= published.items()


def test_it_works_on_the_latents_of_stable_diffusions_codec(tmp_path: Path) -> None:
    blocks = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    KLCodec(3, 3, *blocks, (8, 8, 8, 8), norm_num_groups=4, latent_channels=4).save_pretrained(tmp_path / "codec")
    for method in METHODS:
        pipeline = opened(new(method, tmp_path / "codec"))
        assert pipeline(images()[:1], keys=KEYS[:1]).masks.shape == (1, SIDE, SIDE)


# One method's own


def test_controlnet_starts_equal_to_its_frozen_unet(codec: Path) -> None:
    pipeline = new("controlnet", codec)
    segmenter = pipeline.segmenter()
    noisy, t = torch.randn(3, 4, 8, 8), torch.tensor([5, 500, 999])
    alone = pipeline.unet(noisy, t, no_text(pipeline.unet, noisy)).sample
    controlled, _ = segmenter(noisy, t, segmenter.encode_image(images()))
    assert torch.equal(controlled, alone)
    opened(pipeline)
    controlled, _ = segmenter(noisy, t, segmenter.encode_image(images()))
    assert not torch.allclose(controlled, alone, atol=1e-3)


def test_controlnet_is_a_copy_of_its_unets_encoder(codec: Path) -> None:
    pipeline = new("controlnet", codec)
    theirs = pipeline.unet.state_dict()
    copied = {key: value for key, value in pipeline.controlnet.state_dict().items() if key in theirs}
    assert {key.split(".")[0] for key in copied} == {"conv_in", "time_embedding", "down_blocks", "mid_block"}
    for key, value in copied.items():
        assert torch.equal(value, theirs[key]), key


def test_controlnet_and_its_unet_are_those_of_diffusers(codec: Path) -> None:
    """Written as diffusers' own pipeline for them passes images and text on."""
    pipeline = opened(new("controlnet", codec))
    assert (type(pipeline.unet), type(pipeline.controlnet)) == (UNet2DConditionModel, ControlNetModel)
    noisy, t, text = (
        torch.randn(3, 4, 8, 8),
        torch.tensor([5, 500, 999]),
        no_text(pipeline.unet, torch.empty(3, 4, 8, 8)),
    )
    down, middle = pipeline.controlnet(
        noisy, t, encoder_hidden_states=text, controlnet_cond=images(), return_dict=False
    )
    expected = pipeline.unet(
        noisy, t, encoder_hidden_states=text, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample
    segmenter = pipeline.segmenter()
    assert torch.equal(segmenter(noisy, t, segmenter.encode_image(images()))[0], expected)


def test_a_text_without_words_is_the_same_for_all_images_and_differs_by_position(codec: Path) -> None:
    unet = new("controlnet", codec).unet
    text = no_text(unet, torch.randn(3, 4, 8, 8))
    assert torch.equal(text[0], text[2])
    assert torch.cdist(text[0], text[0]).add(torch.eye(len(text[0])) * 9).min() > 0.1


def test_the_noisy_latent_comes_first_and_the_image_latent_after_it(codec: Path) -> None:
    for method in ("dit", "stable_diffusion"):
        pipeline = opened(new(method, codec))
        seen: list[Tensor] = []
        pipeline.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # noqa: B023
        segmenter = pipeline.segmenter()
        noisy, image = torch.randn(3, 4, 8, 8), segmenter.encode_image(images())
        segmenter(noisy, torch.tensor([7]), image)
        assert torch.equal(seen[0], torch.cat([noisy, pipeline.codec.to_image_latent(images())], dim=1))


def test_codes_are_used() -> None:
    """Latents of 48 places, and 32 codes: nearly all become the nearest of some, and they stand close to them."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(48, 4, generator=generator)
    chosen = places[torch.randint(48, (2, 16, 16), generator=generator)].permute(0, 3, 1, 2)  # (2, 4, 16, 16)
    latent = chosen + 0.05 * torch.randn(chosen.shape, generator=generator)
    torch.manual_seed(0)
    codebook = fitted(Codebook(codes=32, latent_channels=4), latent, steps=150)
    codes = codebook.codes(latent)
    assert len(codes.unique()) >= 28
    assert (codebook(codes) - latent).square().mean() < 0.1 * latent.var()


def test_a_code_that_is_nobodys_nearest_is_drawn_to_the_latents() -> None:
    latent = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    codebook = Codebook(codes=8, latent_channels=4)
    with torch.no_grad():
        codebook.vectors[3] = 9.0
    assert 3 not in codebook.codes(latent)
    fitted(codebook, latent, steps=300)
    assert 3 in codebook.codes(latent)


def test_a_code_is_the_nearest_of_the_codebook(codec: Path) -> None:
    codebook, latent = new("vqdiffusion", codec).codebook, torch.randn(2, 4, 3, 5)
    codes = codebook.codes(latent)
    assert codes.shape == (2, 3, 5)
    for b, i, j in np.ndindex(2, 3, 5):
        distances = (codebook.vectors - latent[b, :, i, j]).square().sum(1)
        assert int(distances.argmin()) == int(codes[b, i, j])
    assert torch.equal(codebook(codes)[1, :, 2, 4], codebook.vectors[codes[1, 2, 4]])


def test_codes_are_sampled_in_at_most_as_many_steps_as_they_are_diffused_in(codec: Path) -> None:
    for steps in (0, STEPS + 1):
        with pytest.raises(UsageError, match=f"{steps} sampling steps of codes; expected 1..100"):
            new("vqdiffusion", codec).sampler(steps)
    with pytest.raises(UsageError, match="scheduler 'ddim'"):
        new("vqdiffusion", codec).sampler(3, "ddim")
    assert new("vqdiffusion", codec).sampler().scheduler == "mask_and_replace"


# Trained and used


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scans, labelled with an organ that the models do not know in the place of one that they know."""
    return write_store(tmp_path_factory.mktemp("others") / "store", blobs(), organs=OTHERS)


@pytest.fixture(scope="module")
def trained(store: Path, codec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, models = tmp_path_factory.mktemp("trained"), {}
    for method in METHODS:
        model = {"method": method, "codec": codec, "dit": base_of(method, codec)}
        config = run_config("model", store, folder / method, model=model, data={"validation": CASES[2:]})
        models[method] = train(config) / "pipeline"
    return models


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_model_is_validated_and_predicts(
    trained: dict[str, Path], tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (trained[method].parent / "metrics.jsonl").read_text().splitlines()]
    assert 0.0 <= rows[-1]["dice"] <= 1.0
    array = np.random.default_rng(0).normal(0, 100, (40, 32, 5)).astype(np.float32)
    write_volume(Volume(array, np.diag([8.0, 8.0, 5.0, 1.0])), tmp_path / "scan.nii.gz")
    words = ["predict", "-i", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "mask.nii.gz"), "--steps", "2"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--model", str(trained[method])])
    assert ended.value.code == 0
    sidecar = json.loads((tmp_path / "mask.json").read_text())
    scheduler = "mask_and_replace" if method == "vqdiffusion" else "euler_ancestral"
    assert (sidecar["steps"], sidecar["scheduler"]) == (2, scheduler)
    assert sidecar["labels"] == {name: 1 + i for i, name in enumerate(ORGANS)}


@pytest.mark.parametrize("method", METHODS)
def test_it_is_fine_tuned_to_other_organs_and_measured_zero_shot(
    trained: dict[str, Path], others: Path, tmp_path: Path, method: str
) -> None:
    model = {"method": method, "pipeline": trained[method]}
    before = load_pipeline(trained[method])
    tuned = run_config("model", others, tmp_path / "tuned", model=model, optimiser={"learning_rate": 1e-9})
    found = load_model(train(tuned) / "pipeline", "cpu")
    assert tuple(found.files.labels) == found.pipeline.organs == OTHERS
    for ours, theirs in zip(found.pipeline.networks, before.networks, strict=True):
        for (key, value), old in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if value.shape == old.shape and "mask_head" not in key and not key.startswith("conv_out"):
                torch.testing.assert_close(value, old, rtol=0, atol=1e-6, msg=key)

    measured = run_config("model", others, tmp_path / "zero", model=model, steps=0, data={"validation": CASES[2:]})
    zero = load_pipeline(train(measured) / "pipeline")
    assert zero.organs == ORGANS
    for ours, theirs in zip(zero.networks, before.networks, strict=True):
        assert_same_weights(ours, theirs)
    (row,) = [json.loads(line) for line in (measured.output / "metrics.jsonl").read_text().splitlines()]
    assert row["dice/kidney stone"] == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_it_is_adapted(trained: dict[str, Path], others: Path, tmp_path: Path, method: str) -> None:
    result = adapt(trained[method], others, CASES[:1], tmp_path / "adapted", AdaptSettings(steps=1))
    assert result.kept == "adapted"
    assert load_pipeline(tmp_path / "adapted").organs == OTHERS


def test_controlnet_stands_on_a_unet_that_was_trained_on_masks_alone(store: Path, codec: Path, tmp_path: Path) -> None:
    model: dict[str, Any] = {"method": "controlnet", "codec": codec}
    base = train(run_config("base", store, tmp_path / "base", model=model)) / "unet"
    unet = UNet2DConditionModel.from_pretrained(base)
    folder = train(run_config("model", store, tmp_path / "run", model={**model, "dit": base})) / "pipeline"
    pipeline = load_pipeline(folder)
    assert_same_weights(pipeline.unet, unet)
    drawn = new("controlnet", codec, dit=base, base="random").unet
    assert not torch.equal(drawn.conv_in.weight, unet.conv_in.weight)
    moved = (pipeline.controlnet.conv_in.weight - unet.conv_in.weight).detach()
    assert 0 < float(moved.abs().max()) < 0.05


def test_controlnet_stands_on_no_unet_of_other_latents(codec: Path, tmp_path: Path) -> None:
    new("stable_diffusion", codec).denoiser.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"has 12 channels in and 4 out; expected 4 of each"):
        new("controlnet", codec, dit=tmp_path)


def test_the_others_stand_on_the_codec_alone(codec: Path, tmp_path: Path) -> None:
    for method in ("dit", "stable_diffusion"):
        with pytest.raises(UsageError, match=r"model\.dit: this method stands on no trained network but the codec"):
            new(method, codec, dit=tmp_path)


def test_vqdiffusion_stands_on_a_codebook_that_was_trained_on_masks_alone(
    store: Path, codec: Path, tmp_path: Path
) -> None:
    model: dict[str, Any] = {"method": "vqdiffusion", "codec": codec}
    rate = {"learning_rate": 0.05}
    base = run_config("base", store, tmp_path / "base", model=model, steps=60, optimiser=rate)
    rows = [json.loads(line) for line in (train(base) / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["codebook"] < 0.5 * rows[0]["codebook"]
    codebook = base.output / "codebook"
    folder = train(run_config("model", store, tmp_path / "run", model={**model, "dit": codebook})) / "pipeline"
    assert_same_weights(load_pipeline(folder).codebook, Codebook.from_pretrained(codebook))
    with pytest.raises(WeightsMissingError, match=r"model\.dit: None holds no config\.json"):
        new("vqdiffusion", codec, dit=None)
    Codebook(codes=8, latent_channels=3).save_pretrained(tmp_path / "odd")
    with pytest.raises(UsageError, match="codes for latents of 3 channels; expected 4"):
        new("vqdiffusion", codec, dit=tmp_path / "odd")
