"""MedSegDiff: a learnt frequency filter, dynamic conditions, and masks in pixels that depend on their key alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from meddelinea.diffusion.losses import Objective
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.diffusion.sampling import make_scheduler
from meddelinea.diffusion.schedule import NoiseSchedule, Prediction, PredictionType
from meddelinea.errors import UsageError
from meddelinea.methods.known import load_pipeline
from meddelinea.methods.medsegdiff import ABSENT, MedSegDiff, MedSegDiffPipeline
from meddelinea.methods.protocol import Batch, Recipe
from meddelinea.models.mask_head import UNLIKELY
from meddelinea.models.medsegdiff import DynamicCondition, FrequencyParser
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.segmentation.sampling import Sampling
from meddelinea.training.adapt import AdaptSettings
from meddelinea.volume import Volume
from support.precisions import agreement
from support.scans import as_ct
from support.tiny_models import CASES, ORGANS, SIDE, blobs, run_config, write_blobs, write_store
from support.training_runs import adapt, train

SIZES: dict[str, Any] = {"patch": 2, "widths": [8, 8, 16], "units": 1}
OTHERS = ("liver", "kidney stone", "spleen")
KEYS = [NoiseKey(0, 7, index, 0) for index in range(3)]


def recipe(kind: PredictionType = "sample", side: int = SIDE, sizes: dict[str, Any] = SIZES) -> Recipe:
    return Recipe(
        organs=ORGANS, neighbours=2, neighbour_pairs=1, side=side, preset="small", sizes=sizes, codec=None, dit=None,
        trainable_decoder="none", base="frozen", objective=Objective(prediction_type=kind), steps=2, scheduler="ddim",
    )  # fmt: skip


def tiny(kind: PredictionType = "sample") -> MedSegDiffPipeline:
    torch.manual_seed(0)
    return MedSegDiffPipeline.new(recipe(kind))


def batch(method: MedSegDiff, count: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, SIDE, SIDE, generator=generator) * 2 - 1
    masks = torch.randint(0, len(ORGANS) + 1, (count, SIDE, SIDE), generator=generator)
    noise = torch.randn(count, method.noise_channels, SIDE // 8, SIDE // 8, generator=generator)
    return Batch(images, masks, noise, torch.rand(count, generator=generator))


# The networks


@torch.no_grad()
@pytest.mark.parametrize("side", [(8, 8), (16, 16), (6, 10), (7, 9)])
def test_the_frequency_parser_starts_as_the_identity(side: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *side)
    torch.testing.assert_close(FrequencyParser(3, grid=8)(x), x)


@torch.no_grad()
def test_a_filter_of_frequencies_is_a_convolution_around_the_edges() -> None:
    """The convolution theorem: attention that is a kernel's transform blurs as the kernel does."""
    torch.manual_seed(0)
    parser, x = FrequencyParser(2, grid=8), torch.randn(1, 2, 8, 8)
    kernel = torch.zeros(2, 8, 8)
    kernel[:, 0, 0], kernel[:, 0, 1], kernel[:, 2, 0] = 0.5, 0.3, 0.2
    transform = torch.fft.fftshift(torch.fft.rfft2(kernel), dim=1)
    parser.attention.copy_(torch.stack([transform.real, transform.imag]))
    expected = 0.5 * x + 0.3 * x.roll(1, dims=3) + 0.2 * x.roll(2, dims=2)
    torch.testing.assert_close(parser(x), expected)


@torch.no_grad()
def test_a_filter_keeps_its_meaning_at_another_size() -> None:
    """One that keeps the lower half of all frequencies takes the chequerboard away, whatever the size."""
    parser = FrequencyParser(1, grid=16)
    rows, columns = torch.arange(-8, 8).abs() <= 4, torch.arange(9) <= 4
    parser.attention[0, 0] = (rows[:, None] & columns).float()
    for side in (16, 32):
        index = torch.arange(side)
        chequers = (-1.0) ** (index[:, None] + index)[None, None]
        wave = torch.cos(2 * torch.pi * index / side)[None, None, None].expand(1, 1, side, side)
        torch.testing.assert_close(parser(chequers + wave), wave, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_condition_is_the_papers_product_beside_the_image() -> None:
    torch.manual_seed(0)
    condition, image, mask = DynamicCondition(4, grid=8), torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[1:])

    torch.testing.assert_close(condition(image, mask), image + norm(image) * norm(mask) * image)


def test_every_parameter_is_trained_and_the_loss_is_that_of_the_noise() -> None:
    pipeline = tiny("epsilon")
    method = pipeline.for_training(recipe("epsilon")).train()
    given = batch(method)
    losses = method.loss(given)
    losses["total"].backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name

    # Written out: a mask of -1 and 1, noised; what is asked for is the noise, a number for each pixel and class.
    clean = torch.stack([(given.masks == organ).float() * 2 - 1 for organ in range(4)], dim=1)
    noise = F.pixel_shuffle(given.noise, 8)
    t = (given.uniform * 1000).long()
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].view(-1, 1, 1, 1)
    noisy = (abar.sqrt() * clean + (1 - abar).sqrt() * noise).float()
    expected = (method.network(noisy, t, given.images) - noise).square().mean()
    torch.testing.assert_close(losses["total"], expected)


@torch.no_grad()
def test_the_mask_depends_on_noise_image_and_time() -> None:
    network = tiny().network.eval()
    torch.manual_seed(1)
    noisy, images, t = torch.randn(1, 4, 64, 64), torch.randn(1, 3, 64, 64), torch.tensor([500])
    before = network(noisy, t, images)
    assert before.shape == (1, 4, 64, 64)
    assert not torch.allclose(network(noisy.flip(3), t, images), before, atol=1e-3)
    assert not torch.allclose(network(noisy, t, images.flip(3)), before, atol=1e-3)
    # The embedding of time starts weak, see `TimestepEmbedder`.
    assert not torch.allclose(network(noisy, torch.tensor([10]), images), before, atol=1e-5)


# The method


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_perfect_network_gives_the_true_mask(kind: PredictionType) -> None:
    truth = batch(MedSegDiff(tiny().network, Objective(), make_scheduler("ddim"), steps=1), 2).masks
    clean = 2.0 * F.one_hot(truth, 4).movedim(3, 1).float() - 1.0
    schedule = NoiseSchedule.linear()
    prediction = Prediction(schedule, kind)

    class Perfect(torch.nn.Module):
        config = tiny().network.config

        def forward(self, noisy: Tensor, t: Tensor, images: Tensor) -> Tensor:
            t = t.expand(len(noisy))
            return prediction.target(clean, Prediction(schedule, "sample").epsilon(clean, noisy, t), t)

    perfect: Any = Perfect()
    for scheduler, steps in (("ddim", 1), ("euler_ancestral", 4)):
        method = MedSegDiff(perfect, Objective(prediction_type=kind), make_scheduler(scheduler), steps=steps)
        logits = method.segment(torch.zeros(2, 3, SIDE, SIDE), KEYS[:2])
        assert torch.equal(logits.argmax(dim=1), truth)
        torch.testing.assert_close(logits, -UNLIKELY * clean, rtol=0, atol=0.3)


def test_it_segments_nearly_the_same_in_bfloat16() -> None:
    method = tiny().sampler(3).method
    assert agreement(method, batch(method, 3).images, KEYS) > 0.9  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral"])
def test_a_slice_has_the_same_mask_alone_in_a_batch_and_in_any_order(scheduler: str) -> None:
    method = tiny().sampler(3, scheduler).method
    images = batch(method, 3).images  # type: ignore[arg-type]
    together = method.segment(images, KEYS)
    assert together.shape == (3, 4, SIDE, SIDE)
    for index in range(3):
        alone = method.segment(images[index : index + 1], KEYS[index : index + 1])
        torch.testing.assert_close(alone, together[index : index + 1], rtol=1e-4, atol=1e-4)
    backwards = method.segment(images.flip(0), KEYS[::-1])
    torch.testing.assert_close(backwards.flip(0), together, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(method.segment(images[:1], KEYS[1:2]), together[:1], atol=1e-2)


@pytest.mark.slow
def test_one_slice_is_learnt_by_heart() -> None:
    images, masks = (torch.from_numpy(array[3:4]) for array in blobs(32)["a"])  # with all organs
    images, masks = images[:, None].repeat(1, 3, 1, 1), masks.long()
    asked = recipe("sample", side=32, sizes={"patch": 2, "widths": [16, 16, 32], "units": 1})
    torch.manual_seed(0)
    pipeline = MedSegDiffPipeline.new(asked)
    method = pipeline.for_training(asked).train()
    optimiser = torch.optim.AdamW(method.parameters(), 1e-2)
    for _ in range(80):
        noise, uniform = torch.randn(2, method.noise_channels, 4, 4), (torch.arange(2) + torch.rand(2)) / 2
        given = Batch(images.expand(2, -1, -1, -1), masks.expand(2, -1, -1), noise, uniform)
        optimiser.zero_grad()
        method.loss(given)["total"].backward()
        optimiser.step()
    found = pipeline.sampler(4).method.segment(images, KEYS[:1]).argmax(dim=1)
    for organ in (1, 2, 3):
        ours, theirs = found == organ, masks == organ
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.9, organ


@torch.no_grad()
def test_organs_that_stay_keep_their_channels_and_new_ones_are_absent() -> None:
    network = tiny().network.eval()
    torch.manual_seed(1)
    noisy, images, t = torch.randn(1, 5, 64, 64), torch.randn(1, 3, 64, 64), torch.tensor([999])
    wider = network.for_organs(ORGANS, ("liver", "kidney stone", "gallbladder", "spleen"), new=ABSENT["sample"])
    same = [0, 4, 1, 3]  # background, and the three organs in the order of ORGANS
    ours, theirs = wider(noisy, t, images), network(noisy[:, same], t, images)
    torch.testing.assert_close(ours[:, same], theirs, rtol=1e-4, atol=1e-5)
    assert (ours[:, 2] == -1.0).all()
    back = wider.for_organs(("liver", "kidney stone", "gallbladder", "spleen"), ORGANS, new=0.0)
    for name, value in network.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_v_of_an_absent_organ_is_that_of_no_mask_where_sampling_starts() -> None:
    t, none = torch.tensor([999]), torch.full((1, 1, 2, 2), -1.0)
    target = Prediction(NoiseSchedule.linear(), "v_prediction").target(none, torch.randn(1, 1, 2, 2), t)
    torch.testing.assert_close(target, torch.full_like(none, ABSENT["v_prediction"]), rtol=0, atol=0.05)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="slices of 36 pixels cannot be halved 3 times"):
        MedSegDiffPipeline.new(recipe(side=36))
    with pytest.raises(UsageError, match=r"patch 3; expected a power of 2.*; known: patch, widths, units"):
        MedSegDiffPipeline.check_sizes("small", {"patch": 3})
    with pytest.raises(UsageError, match=r"it predicts 'sample'; set objective\.prediction_type"):
        tiny().for_training(recipe("epsilon"))


# The pipeline


def test_the_pipeline_is_called_and_saved_as_diffusers_are(tmp_path: Path) -> None:
    pipeline = tiny()
    images = torch.rand(3, 3, SIDE, SIDE) * 2 - 1
    logits = pipeline(images, keys=KEYS, output_type="logits").logits
    assert torch.equal(logits, pipeline.sampler().method.segment(images, KEYS))
    assert torch.equal(pipeline(images, keys=KEYS).masks.long(), logits.argmax(dim=1))
    (three_steps,) = pipeline(images, keys=KEYS, num_inference_steps=3, output_type="logits", return_dict=False)
    assert not torch.allclose(three_steps, logits, atol=1e-3)
    torch.manual_seed(3)
    first = pipeline(images, output_type="logits").logits
    torch.manual_seed(3)
    assert torch.equal(pipeline(images, output_type="logits").logits, first)
    assert not torch.equal(pipeline(images, output_type="logits").logits, first)
    with pytest.raises(UsageError, match="2 noise keys for 3 images"):
        pipeline(images, keys=KEYS[:2])

    pipeline.save_pretrained(tmp_path)
    for loaded in (load_pipeline(tmp_path), MedSegDiffPipeline.from_pretrained(tmp_path)):
        assert torch.equal(loaded(images, keys=KEYS, output_type="logits").logits, logits)
        assert (loaded.organs, loaded.neighbours, loaded.neighbour_pairs) == (ORGANS, 2, 1)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


# Trained and used


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = run_config(
        "model",
        write_blobs(folder / "store"),
        folder / "run",
        model={"method": "medsegdiff", "sizes": SIZES},
        data={"validation": CASES[2:], "resolutions": (SIDE, SIDE // 2)},
        objective={"prediction_type": "v_prediction"},
    )
    return train(config) / "pipeline"


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scans, one of whose organs the model does not know."""
    return write_store(tmp_path_factory.mktemp("others") / "store", blobs(), organs=OTHERS)


def test_an_ensemble_of_samples_is_predicted(trained: Path) -> None:
    array = np.random.default_rng(0).normal(0, 100, (40, 32, 5)).astype(np.float32)
    scan = as_ct(Volume(array, np.diag([8.0, 8.0, 5.0, 1.0])))
    model = load_model(trained, "cpu")
    found = [segment(model, scan, Sampling(steps=2, samples=samples, batch_size=3)) for samples in (1, 3)]
    assert [(one.steps, one.scheduler, one.samples) for one in found] == [
        (2, "euler_ancestral", 1),
        (2, "euler_ancestral", 3),
    ]
    again = segment(model, scan, Sampling(steps=2, samples=3, batch_size=2))
    assert np.array_equal(again.mask.array, found[1].mask.array)
    assert found[0].uncertainty is not None
    assert found[1].uncertainty is not None
    assert not np.array_equal(found[0].uncertainty.array, found[1].uncertainty.array)


def test_it_is_fine_tuned_adapted_and_measured_on_other_organs(trained: Path, others: Path, tmp_path: Path) -> None:
    before = load_pipeline(trained).network.state_dict()
    model = {"method": "medsegdiff", "pipeline": trained}
    v = {"prediction_type": "v_prediction"}
    tuned = run_config("model", others, tmp_path / "tuned", model=model, objective=v, optimiser={"learning_rate": 1e-9})
    after = load_pipeline(train(tuned) / "pipeline")
    assert after.organs == OTHERS
    for name, value in after.network.state_dict().items():
        if not name.startswith(("x_embedder.weight", "conv_out")):
            torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6, msg=name)
    bias = after.network.conv_out.bias.detach().view(4, 4)
    torch.testing.assert_close(bias[2], torch.full((4,), ABSENT["v_prediction"]))

    measured = run_config(
        "model", others, tmp_path / "zero", model=model, objective=v, steps=0, data={"validation": CASES[2:]}
    )
    assert load_pipeline(train(measured) / "pipeline").organs == ORGANS
    (row,) = [json.loads(line) for line in (measured.output / "metrics.jsonl").read_text().splitlines()]
    assert row["dice/kidney stone"] == 0.0

    assert adapt(trained, others, CASES[:1], tmp_path / "adapted", AdaptSettings(steps=1)).kept == "adapted"
    assert load_pipeline(tmp_path / "adapted").organs == OTHERS


def test_the_papers_size_has_the_papers_parameters() -> None:
    assert MedSegDiffPipeline.parameter_count("paper", 13) == pytest.approx(372e6, rel=0.002)
