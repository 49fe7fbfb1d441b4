"""MedSAM: transformers' network, boxes that decide what is outlined, and where they come from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from meddelinea.data.training_cases import TrainingCases
from meddelinea.diffusion.losses import Objective
from meddelinea.errors import UsageError, WeightsMissingError
from meddelinea.methods.known import load_pipeline
from meddelinea.methods.medsam import ABSENT, MedSAM, MedSAMPipeline
from meddelinea.methods.protocol import Batch, Recipe
from meddelinea.models.sam import Boxes, boxes_of
from support.precisions import agreement
from support.tiny_models import CASES, ORGANS, SIDE, blobs, run_config, write_blobs
from support.training_runs import train

pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "image_size": 64, "patch_size": 8, "width": 16, "depth": 2, "heads": 2, "window": 3, "global_blocks": [1],
    "decoder_width": 32, "decoder_hidden": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def prompter(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net that was trained for a few steps on case b alone."""
    model = {"method": "unet", "sizes": {"widths": [4, 8, 8]}}
    output = tmp_path_factory.mktemp("unet")
    return train(run_config("model", store, output / "run", model=model, data={"train": ["b"]})) / "pipeline"


def recipe(prompter: Path, **changes: Any) -> Recipe:
    common = Recipe(
        organs=ORGANS, neighbours=1, neighbour_pairs=1, side=SIDE, preset="small", sizes=SIZES, codec=None, dit=None,
        boxes=prompter, trainable_decoder="none", base="frozen", objective=Objective(pixel_loss="cross_entropy"),
        steps=1, scheduler="ddim",
    )  # fmt: skip
    return replace(common, **changes)


def tiny(prompter: Path) -> MedSAMPipeline:
    torch.manual_seed(0)
    return MedSAMPipeline.new(recipe(prompter))


def truth(count: int) -> Tensor:
    return torch.from_numpy(blobs()["a"][1][1 : 1 + count]).long()


def batch(method: MedSAM, count: int = 3) -> Batch:
    images = torch.from_numpy(blobs()["a"][0][1 : 1 + count])[:, None].repeat(1, 3, 1, 1)
    noise = torch.randn(count, method.noise_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch(images, truth(count), noise, torch.zeros(count))


# Boxes


def test_a_box_is_around_each_organ_that_a_slice_holds_within_the_slice() -> None:
    masks = torch.zeros(2, 10, 12, dtype=torch.long)
    masks[0, 2:5, 3:9], masks[1, 0, 11], masks[1, 7:, :2] = 2, 1, 2
    found = boxes_of(masks, 3, torch.tensor(1.5))
    assert list(zip(found.slices.tolist(), found.organs.tolist(), strict=True)) == [(0, 1), (1, 0), (1, 1)]
    assert found.corners.tolist() == [[1.5, 0.5, 9.5, 5.5], [9.5, 0, 11, 1.5], [0, 5.5, 2.5, 9]]


def test_in_training_boxes_are_the_true_ones_moved_outwards_at_random(prompter: Path) -> None:
    method = tiny(prompter).for_training(recipe(prompter))
    seen: list[Boxes] = []
    method.network.register_forward_pre_hook(lambda _module, given: seen.append(given[1]))
    given = batch(method)
    method.loss(given)
    method.loss(given._replace(noise=given.noise.roll(1, dims=0)))
    outwards = (seen[0].corners - boxes_of(given.masks, 3, torch.tensor(0.0)).corners) * torch.tensor([-1, -1, 1, 1])
    assert ((outwards >= 0) & (outwards <= 0.02 * SIDE)).all()
    assert len(outwards.unique()) > 4
    assert not torch.equal(seen[0].corners, seen[1].corners)


# The network


@torch.no_grad()
def test_it_is_transformers_on_copied_weights(prompter: Path) -> None:
    from transformers import SamConfig, SamModel

    ours = tiny(prompter).network.eval()
    sizes = {"image_size": 64, "patch_size": 8}
    vision = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "window_size": 3}
    vision |= {"global_attn_indexes": [1], "output_channels": 32, "num_pos_feats": 16}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "iou_head_hidden_dim": 32}
    config = SamConfig(
        vision_config=sizes | vision, prompt_encoder_config=sizes | {"hidden_size": 32}, mask_decoder_config=decoder
    )
    theirs = SamModel(config).eval()
    state = ours.state_dict()
    state["shared_image_embedding.positional_embedding"] = state["prompt_encoder.shared_embedding.positional_embedding"]
    theirs.load_state_dict(state)
    images = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    corners = torch.tensor([[3.0, 5.0, 40.0, 50.0], [10.0, 1.0, 30.0, 33.0]])
    found = ours(images, Boxes(torch.tensor([0, 1]), torch.tensor([0, 0]), corners))
    answer = theirs(pixel_values=(images + 1) / 2, input_boxes=corners[:, None], multimask_output=False)
    expected = torch.nn.functional.interpolate(answer.pred_masks[:, 0], (SIDE, SIDE), mode="bilinear")[:, 0]
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_has_the_size_that_is_published() -> None:
    """ViT-B; transformers 5 counts the 256 fixed positions too."""
    assert MedSAMPipeline.parameter_count("paper", 13) in (93_735_472, 93_735_728)


# The method


def test_all_is_trained_but_the_encoder_of_prompts_and_the_judge_of_masks(prompter: Path) -> None:
    method = tiny(prompter).for_training(recipe(prompter)).train()
    method.loss(batch(method))["total"].backward()
    for name, parameter in method.named_parameters():
        frozen = "prompt_encoder" in name or "iou_prediction_head" in name
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name


def test_a_batch_without_organs_can_be_trained_on(prompter: Path) -> None:
    method = tiny(prompter).for_training(recipe(prompter)).train()
    given = batch(method)
    method.loss(given._replace(masks=torch.zeros_like(given.masks)))["total"].backward()
    assert not any(parameter.grad.any() for parameter in method.parameters() if parameter.grad is not None)


@pytest.mark.slow
def test_one_slice_is_learnt_by_heart(prompter: Path) -> None:
    pipeline = tiny(prompter)
    method = pipeline.for_training(recipe(prompter)).train()
    given = batch(method)
    given = Batch(*(value[2:3] for value in given))  # with all organs
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        method.loss(given)["total"].backward()
        optimiser.step()
    best = pipeline.prompted_by(lambda images, keys: given.masks).sampler().method
    found = best.segment(given.images, []).argmax(dim=1)
    for organ in (1, 2, 3):
        ours, theirs = found == organ, given.masks == organ
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.8, organ


@torch.no_grad()
def test_a_box_decides_what_is_outlined_and_an_organ_without_one_is_background(prompter: Path) -> None:
    pipeline, images = tiny(prompter), batch(tiny(prompter).sampler().method, 1).images
    masks = torch.zeros(1, SIDE, SIDE, dtype=torch.long)
    masks[:, 10:30, 10:30] = 2

    def logits(of: Tensor) -> Tensor:
        return pipeline.prompted_by(lambda images, keys: of).sampler().method.segment(images, [])

    there, moved = logits(masks), logits(masks.roll(20, dims=2))
    assert (there[:, [1, 3]] == ABSENT).all()
    assert (there[:, 0] == 0).all()
    assert not torch.allclose(there[:, 2], moved[:, 2], atol=1e-4)
    assert not torch.equal(logits(masks)[:, 2], pipeline.sampler().method.segment(images, [])[:, 2])
    assert not logits(torch.zeros_like(masks)).argmax(dim=1).any()


def test_it_segments_nearly_the_same_in_bfloat16(prompter: Path) -> None:
    method = tiny(prompter).sampler().method
    assert agreement(method, batch(method).images, []) > 0.9


def test_boxes_are_those_of_the_other_model_by_the_names_of_its_organs(prompter: Path) -> None:
    pipeline, given = tiny(prompter), batch(tiny(prompter).sampler().method).images
    other = load_pipeline(prompter).sampler().method.segment(given, []).argmax(dim=1)
    pipeline.change_organs(("liver", "pancreas"))  # the liver was the second
    ids = torch.tensor([0, 0, 1, 0])
    expected = pipeline.prompted_by(lambda images, keys: ids[other]).sampler().method.segment(given, [])
    found = pipeline.sampler().method.segment(given, [])
    assert torch.equal(found, expected)
    assert (found[:, 2] == ABSENT).all()


# Trained and used


def test_it_is_trained_validated_saved_and_names_what_both_models_have_seen(
    store: Path, prompter: Path, tmp_path: Path
) -> None:
    model = {"method": "medsam", "sizes": SIZES, "boxes": prompter}
    config = run_config(
        "model", store, tmp_path / "run", model=model, data={"train": ["a"], "validation": CASES[2:]}, batch_size=2
    )
    folder = train(config) / "pipeline"
    rows = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert 0.0 <= rows[-1]["dice"] <= 1.0
    assert {case.name for case in TrainingCases.read(folder).train} == {"a", "b"}
    given = torch.from_numpy(blobs()["a"][0][1:4])[:, None].repeat(1, 3, 1, 1)
    loaded = load_pipeline(folder)
    answer = loaded.sampler().method.segment(given, [])
    assert torch.equal(MedSAMPipeline.from_pretrained(folder).sampler().method.segment(given, []), answer)
    theirs = load_pipeline(prompter).sampler().method.segment(given, [])
    assert torch.equal(loaded.prompter.sampler().method.segment(given, []), theirs)

    shutil.copytree(folder, folder / "prompter", dirs_exist_ok=True)  # which would need a model, and so on
    with pytest.raises(WeightsMissingError, match="prompter: no UNetPipeline"):
        load_pipeline(folder)


def test_what_draws_no_boxes_or_needs_some_itself_is_refused(store: Path, prompter: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError, match=r"model\.boxes: null"):
        MedSAMPipeline.new(recipe(prompter, boxes=None))
    with pytest.raises(UsageError, match=r"was trained with data\.neighbours: 1"):
        MedSAMPipeline.new(recipe(prompter, neighbours=2))
    tiny(prompter).save_pretrained(tmp_path / "sam")
    with pytest.raises(UsageError, match="needs boxes itself"):
        MedSAMPipeline.new(recipe(tmp_path / "sam"))
    with pytest.raises(UsageError, match="takes no boxes"):
        load_pipeline(prompter).prompted_by(lambda images, keys: images)
    with pytest.raises(ValidationError, match="unet takes no boxes"):
        run_config("model", store, tmp_path, model={"method": "unet", "sizes": {}, "boxes": prompter})
