"""Networks in three dimensions as methods: trained on patches by the same engine, used by the same commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks import nets
from torch import Tensor

from meddelinea.data.augment import Augmentation
from meddelinea.data.store import SliceStore
from meddelinea.diffusion.losses import Objective
from meddelinea.errors import UsageError
from meddelinea.methods.dynunet_3d import DynUNet3DPipeline, nnunet_strides
from meddelinea.methods.known import load_pipeline
from meddelinea.methods.nnformer import NNFormerPipeline
from meddelinea.methods.protocol import Batch, Patch, Recipe
from meddelinea.methods.unetr_pp import UNETRPlusPlusPipeline
from meddelinea.methods.volume import VolumePipeline
from meddelinea.models.mask_head import UNLIKELY
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.segmentation.sampling import Sampling
from meddelinea.training.adapt import AdaptSettings
from meddelinea.training.batches import TrainingBatches
from meddelinea.training.config import DataConfig
from meddelinea.volume import Volume
from support.precisions import agreement
from support.scans import as_ct
from support.tiny_models import CASES, ORGANS, SIDE, blobs, run_config, write_blobs, write_store
from support.training_runs import adapt, train

PIPELINES: dict[str, type[VolumePipeline]] = {
    "dynunet_3d": DynUNet3DPipeline,
    "nnformer": NNFormerPipeline,
    "unetr++": UNETRPlusPlusPipeline,
}
METHODS = tuple(PIPELINES)
#: One of them in every run of the tests, where the others would take seconds more.
SLOWLY_ALL = ("dynunet_3d", *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS[1:]))
#: The stored scans have six slices: more than one patch, and fewer than the others.
SIZES: dict[str, dict[str, Any]] = {
    "dynunet_3d": {"patch": [4, 32], "widths": [4, 8, 8, 8]},
    "nnformer": {"patch": [16, 32], "width": 8, "heads": [2, 2, 2, 2], "blocks": 2, "window": 4},
    "unetr++": {"patch": [32, 32], "widths": [8, 8, 8, 16], "heads": 2, "blocks": 1, "mixtures": 8},
}
OTHERS = ("liver", "kidney stone", "spleen")


def recipe(name: str, **changed: Any) -> Recipe:
    plain = Recipe(
        organs=ORGANS, neighbours=0, neighbour_pairs=1, side=SIDE, preset="small", sizes=SIZES[name], codec=None,
        dit=None, trainable_decoder="none", base="frozen", objective=Objective(pixel_loss="cross_entropy"), steps=1,
        scheduler="ddim",
    )  # fmt: skip
    return replace(plain, **changed)


def new(name: str) -> VolumePipeline:
    torch.manual_seed(0)
    return PIPELINES[name].new(recipe(name))


def patch_of_boxes(name: str) -> Batch:
    """A patch with a bright box of one organ, and a brighter one of another, that reach over half of its slices."""
    depth, side = SIZES[name]["patch"]
    masks = torch.zeros(1, depth, side, side, dtype=torch.long)
    for organ, row in ((1, 2), (3, side // 2 + 2)):
        masks[:, depth // 4 : -depth // 4, row : row + side // 3, side // 4 : -side // 4] = organ
    grain = torch.randn(masks.shape, generator=torch.Generator().manual_seed(0))
    return Batch(0.5 * masks - 0.8 + 0.05 * grain, masks, torch.zeros(1, 0, 8, 8), torch.zeros(1))


# The networks


def test_nnunet_halves_each_axis_down_to_4_voxels() -> None:
    assert nnunet_strides(64, 160, 6) == [(2, 2, 2)] * 4 + [(1, 2, 2)]
    assert nnunet_strides(16, 96, 5) == [(2, 2, 2)] * 2 + [(1, 2, 2)] * 2


@torch.no_grad()
def test_the_dynunet_is_monais() -> None:
    ours, widths = new("dynunet_3d").network.train(), SIZES["dynunet_3d"]["widths"]
    strides = [1, (1, 2, 2), (1, 2, 2), (1, 2, 2)]
    theirs = nets.DynUNet(
        3, 1, 4, [3] * 4, strides, strides[1:], widths, deep_supervision=True, deep_supr_num=1
    ).train()  # fmt: skip
    weights = theirs.state_dict()
    renamed = {name: name.replace("coarse.", "deep_supervision_heads.") for name in ours.state_dict()}
    ours.load_state_dict({name: weights[theirs_name] for name, theirs_name in renamed.items()})
    patch = torch.randn(2, 1, 4, 32, 32)
    finest, coarser = ours(patch)
    expected = theirs(patch)
    assert torch.equal(finest, expected[:, 0])
    assert coarser.shape == (2, 4, 4, 16, 16)
    assert torch.equal(F.interpolate(coarser, (4, 32, 32)), expected[:, 1])


def test_the_published_sizes_have_the_published_parameters() -> None:
    published = {"dynunet_3d": 30.8e6, "nnformer": 150.1e6, "unetr++": 42.96e6}
    for name, count in published.items():
        assert PIPELINES[name].parameter_count("paper", 13) == pytest.approx(count, rel=2e-3)
        assert PIPELINES[name].parameter_count("small", 13) < 10e6


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("dynunet_3d", {"patch": [4, 36]}, r"patch 4 x 36; expected multiples of 1 and 8"),
        ("nnformer", {"patch": [8, 32]}, r"patch 8 x 32; expected multiples of 16 and 32"),
        ("nnformer", {"window": 3}, r"window 3 does not divide a level of 8 x 8 x 8"),
        ("nnformer", {"heads": [3, 2, 2, 2]}, r"width 8 cannot be divided among 3 heads"),
        ("unetr++", {"patch": [16, 32]}, r"is one token at the coarsest level"),
        ("unetr++", {"widths": [8, 12, 16, 32]}, r"expected multiples of 2, of heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PIPELINES[name].check_sizes("small", {**SIZES[name], **sizes})


def test_neighbours_beside_a_patch_are_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.neighbours: 1; .* set it to 0"):
        DynUNet3DPipeline.new(recipe("dynunet_3d", neighbours=1))


# The method


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_is_trained(name: str) -> None:
    method = new(name).for_training(recipe(name)).train()
    method.loss(patch_of_boxes(name))["total"].backward()
    for parameter_name, parameter in method.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", METHODS)
def test_it_segments_nearly_the_same_in_bfloat16(name: str) -> None:
    slices = patch_of_boxes(name).images[0, :, None].repeat(1, 3, 1, 1)  # (depth, 3, side, side)
    assert agreement(new(name).sampler().method, slices, []) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_one_patch_is_learnt_by_heart(name: str) -> None:
    pipeline, given = new(name), patch_of_boxes(name)
    method = pipeline.for_training(recipe(name)).train()
    optimiser = torch.optim.AdamW(method.parameters(), 5e-3)
    for _ in range(80):
        optimiser.zero_grad()
        method.loss(given)["total"].backward()
        optimiser.step()
    slices = given.images[0, :, None].repeat(1, 3, 1, 1)  # (depth, 3, side, side)
    found = pipeline.sampler().method.segment(slices, []).argmax(dim=1)
    for organ in given.masks.unique().tolist():
        ours, theirs = found == organ, given.masks[0] == organ
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.8, organ


@pytest.mark.parametrize("name", METHODS)
def test_organs_that_stay_keep_their_logits_and_new_ones_are_found_nowhere(name: str) -> None:
    network, patch = new(name).network.train(), patch_of_boxes(name).images[:, None]
    wider = network.for_organs(ORGANS, ("liver", "kidney stone", "gallbladder", "spleen")).train()
    for ours, theirs in zip(wider(patch), network(patch), strict=True):
        torch.testing.assert_close(ours[:, [0, 4, 1, 3]], theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[:, 2], torch.full_like(ours[:, 2], UNLIKELY))


# Patches of a store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("store") / "store")


def patches(store: Path, patch: Patch | None, **data: Any) -> TrainingBatches:
    still = Augmentation(
        rotation_deg=0, scale=0, shear=0, translation=0, elastic=0, contrast=0, brightness=0, noise=0
    )  # fmt: skip
    config = DataConfig(store=store, train=CASES[:2], augmentation=still, **data)
    slices = SliceStore(store, CASES[:2])
    return TrainingBatches(
        slices, config, batch_size=4, noise_channels=0, seed=0, rank=0, processes=1, patch=patch
    )  # fmt: skip


@pytest.mark.parametrize(("depth", "thickest"), [(4, 1), (16, 1), (2, 3)])
def test_a_patch_is_consecutive_slices_of_one_scan(store: Path, depth: int, thickest: int) -> None:
    batches = patches(store, Patch(depth, 32), rare_organ_share=0.5, thickest=thickest)
    slices = batches.store
    whole = {
        case: (
            np.stack([slices.image(case, i, 0, 0)[0] for i in range(6)]) / np.float32(127.5) - 1,
            np.stack([slices.mask(case, i) for i in range(6)]),
        )
        for case in range(2)
    }
    for step in range(1):
        batch = batches[step]
        assert batch.images.shape == batch.masks.shape == (4, depth, 32, 32)
        for (case, index), image, mask in zip(batches.slices(step), batch.images, batch.masks, strict=True):
            images, masks = whole[case]
            found = [
                (thickness, first)
                for thickness in range(1, thickest + 1)
                for first in range(-5, 6)
                if _holds(images, masks, image=image.numpy(), mask=mask.numpy(), first=first, thickness=thickness)
            ]
            assert found
            assert any(first <= index < first + thickness * depth for thickness, first in found)
            if depth > 6:
                assert found == [(1, -5)]  # five times the first slice before the scan, five times the last behind it


def _holds(
    images: np.ndarray, masks: np.ndarray, *, image: np.ndarray, mask: np.ndarray, first: int, thickness: int
) -> bool:
    """Whether a patch lies somewhere in the slices from `first` on, so many of them averaged at a time."""
    levels = np.clip(first + np.arange(len(image) * thickness), 0, len(images) - 1).reshape(len(image), thickness)
    thick, middle = images[levels].mean(axis=1), masks[levels[:, (thickness - 1) // 2]]
    places = [(row, column) for row in range(33) for column in range(33)]
    return any(
        np.array_equal(middle[:, r : r + 32, c : c + 32], mask)
        and np.allclose(thick[:, r : r + 32, c : c + 32], image, atol=1e-5)
        for r, c in places
    )


def test_patches_larger_than_slices_are_refused(store: Path) -> None:
    with pytest.raises(UsageError, match=r"patches of 64 pixels in slices of 32"):
        patches(store, Patch(4, 64), resolutions=(64, 32))


# Trained and used


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, models = tmp_path_factory.mktemp("trained"), {}
    for name in METHODS:
        config = run_config(
            "model", store, folder / name.replace("+", "p"), model={"method": name, "sizes": SIZES[name]}, batch_size=1,
            steps=2, data={"validation": CASES[2:], "neighbours": 0},
        )  # fmt: skip
        models[name] = train(config) / "pipeline"
    return models


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scans, labelled with an organ that the models do not know in the place of one that they know."""
    return write_store(tmp_path_factory.mktemp("others") / "store", blobs(), organs=OTHERS)


@pytest.mark.parametrize("name", SLOWLY_ALL)
def test_it_segments_scans_of_any_length_and_in_batches_of_any_size(trained: dict[str, Path], name: str) -> None:
    model = load_model(trained[name], "cpu")
    for slices in (1, 9):
        array = np.random.default_rng(0).normal(0, 100, (40, 32, slices)).astype(np.float32)
        found = segment(model, as_ct(Volume(array, np.diag([8.0, 8.0, 5.0, 1.0]))), Sampling(batch_size=1))
        again = segment(model, as_ct(Volume(array, np.diag([8.0, 8.0, 5.0, 1.0]))), Sampling(batch_size=16))
        assert found.mask.array.shape == array.shape
        assert np.array_equal(found.mask.array, again.mask.array)
        assert (found.steps, found.scheduler, found.samples) == (None, None, None)


def test_the_dice_of_slabs_is_that_of_the_whole_scans_mask(trained: dict[str, Path], store: Path) -> None:
    pipeline, slices = load_pipeline(trained["dynunet_3d"]), SliceStore(store, CASES[2:])
    images = torch.from_numpy(np.stack([slices.image(0, i, 0) for i in range(6)])).float() / 127.5 - 1.0
    found = pipeline(images).masks.numpy()[::2]  # the run's stride
    truth = np.stack([slices.mask(0, i) for i in range(0, 6, 2)])
    rows = [json.loads(line) for line in (trained["dynunet_3d"].parent / "metrics.jsonl").read_text().splitlines()]
    for organ, name in enumerate(ORGANS, start=1):
        if (truth == organ).any():
            dice = 2 * ((found == organ) & (truth == organ)).sum() / ((found == organ).sum() + (truth == organ).sum())
            assert rows[-1][f"dice/{name}"] == pytest.approx(dice, abs=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_gives_the_same_logits_bit_for_bit(
    trained: dict[str, Path], name: str, tmp_path: Path
) -> None:
    pipeline, images = load_pipeline(trained[name]), torch.rand(3, 3, SIDE, SIDE)
    logits: Tensor = pipeline.sampler().method.segment(images, [])
    assert logits.shape == (3, len(ORGANS) + 1, SIDE, SIDE)
    pipeline.save_pretrained(tmp_path)
    assert torch.equal(load_pipeline(tmp_path).sampler().method.segment(images, []), logits)


@pytest.mark.parametrize("name", SLOWLY_ALL)
def test_it_is_fine_tuned_to_other_organs_measured_zero_shot_and_adapted(
    trained: dict[str, Path], others: Path, tmp_path: Path, name: str
) -> None:
    model, data = {"method": name, "sizes": SIZES[name], "pipeline": trained[name]}, {"neighbours": 0}
    tuned = run_config("model", others, tmp_path / "tuned", model=model, data=data, steps=1, batch_size=1)
    assert load_pipeline(train(tuned) / "pipeline").organs == OTHERS

    data |= {"validation": CASES[2:]}
    measured = run_config("model", others, tmp_path / "zero", model=model, data=data, steps=0)
    assert load_pipeline(train(measured) / "pipeline").organs == ORGANS
    (row,) = [json.loads(line) for line in (measured.output / "metrics.jsonl").read_text().splitlines()]
    assert row["dice/kidney stone"] == 0.0

    settings = AdaptSettings(steps=1, batch_size=1)
    assert adapt(trained[name], others, CASES[:1], tmp_path / "adapted", settings).kept == "adapted"
    assert load_pipeline(tmp_path / "adapted").organs == OTHERS
