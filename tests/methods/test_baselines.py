"""Networks from images to logits as methods, trained by the same engine and used by the same commands."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks import nets
from pydantic import ValidationError
from torch import Tensor

from meddelinea.cli.main import main
from meddelinea.diffusion.losses import Objective
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import UsageError, WeightsMissingError
from meddelinea.io.volumes import write_volume
from meddelinea.methods.dynunet import DynUNetPipeline, nnunet_widths
from meddelinea.methods.known import load_pipeline
from meddelinea.methods.network import Network, NetworkPipeline, PixelClassifier, supervision_weights
from meddelinea.methods.protocol import Batch, Recipe
from meddelinea.methods.synergynet import SynergyNetPipeline
from meddelinea.methods.transunet import TransUNetPipeline
from meddelinea.methods.unet import UNetPipeline
from meddelinea.models.mask_head import UNLIKELY
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.training.adapt import AdaptSettings
from meddelinea.training.checkpoint import load_checkpoint
from meddelinea.training.run_file import load_config
from meddelinea.volume import Volume
from support.precisions import agreement
from support.scans import as_ct
from support.tiny_models import CASES, ORGANS, SIDE, blobs, run_config, write_blobs, write_store
from support.training_runs import adapt, train
from support.waiting import PATIENCE

WIDTHS = {"widths": [4, 8, 8, 8, 8]}
PIPELINES: dict[str, type[NetworkPipeline]] = {
    "unet": UNetPipeline,
    "dynunet": DynUNetPipeline,
    "transunet": TransUNetPipeline,
    "synergynet": SynergyNetPipeline,
}
NETWORKS = tuple(PIPELINES)
SIZES: dict[str, dict[str, Any]] = {
    "unet": WIDTHS,
    "dynunet": WIDTHS,
    "transunet": {"root": 8, "units": [1, 2, 1], "width": 16, "heads": 2, "depth": 2, "decoder": [16, 8, 8, 8]},
    "synergynet": {"widths": [4, 8, 8, 8, 8], "heads": 2, "codes": 16},
}
#: How the names of the layers begin that have a channel a class, and where their biases are.
OUTPUTS = {
    "unet": ("net.model.2.0.conv", "net.model.2.1"),
    "dynunet": ("output_block", "coarse"),
    "transunet": ("head",),
    "synergynet": ("head",),
}
BIASES = {
    "unet": "net.model.2.1.conv.unit0.conv.bias",
    "dynunet": "output_block.conv.conv.bias",
    "transunet": "head.bias",
    "synergynet": "head.bias",
}


def recipe(side: int = SIDE, sizes: dict[str, Any] = WIDTHS, objective: Objective | None = None) -> Recipe:
    return Recipe(
        organs=ORGANS, neighbours=2, neighbour_pairs=1, side=side, preset="small", sizes=sizes, codec=None, dit=None,
        trainable_decoder="none", base="frozen", objective=objective or Objective(), steps=1, scheduler="ddim",
    )  # fmt: skip


def tiny_network(name: str) -> Network:
    torch.manual_seed(0)
    return PIPELINES[name].build(recipe(sizes=SIZES[name]))


def batch(count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, SIDE, SIDE, generator=generator) * 2 - 1
    masks = torch.randint(0, len(ORGANS) + 1, (count, SIDE, SIDE), generator=generator)
    return Batch(images, masks, torch.zeros(count, 4, 8, 8), torch.zeros(count))


def cross_entropy_and_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """The loss for `pixel_loss: cross_entropy`, written out."""
    share, losses = logits.softmax(1), []
    for organ in range(1, logits.shape[1]):
        truth = (masks == organ).float()
        overlap, total = (share[:, organ] * truth).sum(), (share[:, organ] + truth).sum()
        losses.append(1 - (2 * overlap + 1) / (total + 1))
    return F.cross_entropy(logits, masks) + torch.stack(losses).mean()


# The networks


def test_nnunet_goes_down_to_4_pixels_and_up_to_512_channels() -> None:
    assert nnunet_widths(128) == (32, 64, 128, 256, 512, 512)
    assert nnunet_widths(64) == (32, 64, 128, 256, 512)
    assert nnunet_widths(512) == (32, 64, 128, 256, 512, 512, 512, 512)


def test_each_loss_weighs_half_of_the_one_at_twice_its_size() -> None:
    assert supervision_weights(1) == [1.0]
    assert supervision_weights(4) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])


def test_the_unet_is_monais() -> None:
    ours = tiny_network("unet")
    torch.manual_seed(0)
    theirs = nets.UNet(2, 3, 4, WIDTHS["widths"], [2, 2, 2, 2], num_res_units=2, norm="INSTANCE")
    images = batch().images
    assert torch.equal(ours(images)[0], theirs(images))


@pytest.mark.parametrize("training", [False, True])
def test_the_dynunet_is_monais(training: bool) -> None:
    ours = tiny_network("dynunet").train(training)
    theirs = nets.DynUNet(
        2, 3, 4, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, WIDTHS["widths"], deep_supervision=True, deep_supr_num=2
    ).train(training)
    weights = theirs.state_dict()
    renamed = {name: name.replace("coarse.", "deep_supervision_heads.") for name in ours.state_dict()}
    ours.load_state_dict({ours_name: weights[name] for ours_name, name in renamed.items()})
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    outputs, expected = ours(batch().images), theirs(batch().images)
    if not training:
        assert len(outputs) == 1
        assert torch.equal(outputs[0], expected)
        return
    assert [tuple(logits.shape) for logits in outputs] == [(3, 4, 64, 64), (3, 4, 32, 32), (3, 4, 16, 16)]
    for logits, upscaled in zip(outputs, expected.unbind(1), strict=True):
        assert torch.equal(F.interpolate(logits, (64, 64)), upscaled)


def test_the_dynunet_starts_as_monais_does() -> None:
    """Kaiming's normal weights for a slope of 0.01, no bias."""
    network = DynUNetPipeline.build(recipe(sizes={}))
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 4 and parameter.numel() > 10_000:
            fan_in = parameter.shape[1] * parameter.shape[2] * parameter.shape[3]
            assert float(parameter.detach().std()) == pytest.approx((2 / 1.0001 / fan_in) ** 0.5, rel=0.05), name


@pytest.mark.parametrize("name", NETWORKS)
def test_slices_that_cannot_be_halved_so_often_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be halved 4 times"):
        PIPELINES[name].build(recipe(side=40, sizes=SIZES[name]))
    with pytest.raises(UsageError, match=rf"layers: Unexpected keyword argument .*; known: {next(iter(SIZES[name]))}"):
        PIPELINES[name].build(recipe(sizes={"layers": 3}))
    with pytest.raises(UsageError, match="unknown preset 'xl'; expected small or paper"):
        PIPELINES[name].check_sizes("xl", {})


def test_without_monai_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, trained: dict[str, Path]) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)  # as if it were not installed
    with pytest.raises(UsageError, match=r"pip install 'meddelinea\[baselines\]'"):
        tiny_network("unet")
    with pytest.raises(UsageError, match=r"pip install 'meddelinea\[baselines\]'"):
        load_model(trained["unet"], "cpu")


def test_monai_is_imported_for_baselines_only_and_needs_no_torchvision() -> None:
    code = (
        "import sys; import meddelinea.training.stages, meddelinea.segmentation.predict;"
        "assert 'monai' not in sys.modules;"
        "from meddelinea.methods.unet import UNet; UNet(3, 3, [4, 8]);"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


# The method


def test_the_loss_is_the_weighted_sum_over_the_resolutions() -> None:
    method, given = PixelClassifier(tiny_network("dynunet"), "cross_entropy").train(), batch()
    expected = torch.zeros(())
    for step, (logits, weight) in enumerate(zip(method.network(given.images), (4 / 7, 2 / 7, 1 / 7), strict=True)):
        side = 2**step
        masks = given.masks[:, side // 2 :: side, side // 2 :: side]  # the pixel at the middle of each block
        expected = expected + weight * cross_entropy_and_dice(logits, masks)
    losses = method.loss(given)
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["segmentation"] is losses["total"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pixel_loss", ["bce", "cross_entropy"])
def test_every_parameter_is_trained(name: str, pixel_loss: str) -> None:
    objective = Objective(pixel_loss=pixel_loss)  # type: ignore[arg-type]
    asked = recipe(sizes=SIZES[name], objective=objective)
    method = PIPELINES[name].new(asked).for_training(asked).train()
    method.loss(batch())["total"].backward()
    for parameter_name, parameter in method.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", NETWORKS)
def test_one_slice_is_learnt_by_heart(name: str) -> None:
    images, masks = (torch.from_numpy(array[3:4]) for array in blobs()["a"])  # with all organs
    given = Batch(images[:, None].repeat(1, 3, 1, 1), masks.long(), torch.zeros(1, 0, 8, 8), torch.zeros(1))
    asked = recipe(sizes=SIZES[name], objective=Objective(pixel_loss="cross_entropy"))
    torch.manual_seed(0)
    pipeline = PIPELINES[name].new(asked)
    method = pipeline.for_training(asked).train()
    optimiser = torch.optim.AdamW(method.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        method.loss(given)["total"].backward()
        optimiser.step()
    found = pipeline.sampler().method.segment(given.images, []).argmax(dim=1)
    for organ in (1, 2, 3):
        ours, theirs = found == organ, given.masks == organ
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.9, organ


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_depend_on_the_image_and_not_on_noise(name: str) -> None:
    method, images = PixelClassifier(tiny_network(name), "bce").eval(), batch(2).images
    one, other = (method.segment(images, [NoiseKey(seed, 0, i, 0) for i in range(2)]) for seed in (0, 1))
    assert one.shape == (2, len(ORGANS) + 1, SIDE, SIDE)
    assert torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_it_segments_nearly_the_same_in_bfloat16(name: str) -> None:
    assert agreement(PixelClassifier(tiny_network(name), "bce").eval(), batch(2).images, []) > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_and_loaded_gives_the_same_logits_bit_for_bit(name: str, tmp_path: Path) -> None:
    pipeline = PIPELINES[name].new(recipe(sizes=SIZES[name]))
    logits = pipeline.sampler().method.segment(batch().images, [])
    pipeline.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path)
    assert torch.equal(loaded.sampler().method.segment(batch().images, []), logits)
    assert (loaded.organs, loaded.neighbours, loaded.neighbour_pairs) == (ORGANS, 2, 1)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


# Trained and used


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All networks, trained for a few steps; the U-Net saved in half precision."""
    folder, models = tmp_path_factory.mktemp("trained"), {}
    for name in NETWORKS:
        config = run_config(
            "model",
            store,
            folder / name,
            model={"method": name, "sizes": SIZES[name]},
            data={"validation": CASES[2:]},
            saved_dtype="float16" if name == "unet" else "float32",
        )
        models[name] = train(config) / "pipeline"
    return models


@pytest.fixture(scope="module")
def scan() -> Volume:
    array = np.random.default_rng(0).normal(0, 100, (40, 32, 5)).astype(np.float32)
    return Volume(array, np.diag([8.0, 8.0, 5.0, 1.0]))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_baselines_folder_says_what_it_is(store: Path, trained: dict[str, Path], name: str) -> None:
    folder = trained[name]
    assert json.loads((folder / "labels.json").read_text())["labels"] == {"spleen": 1, "liver": 2, "gallbladder": 3}
    assert [case["name"] for case in json.loads((folder / "training_cases.json").read_text())["train"]] == ["a", "b"]
    assert load_config(folder / "run.json").model.method == name
    rows = [json.loads(line) for line in (folder.parent / "metrics.jsonl").read_text().splitlines()]
    assert 0.0 <= rows[-1]["dice"] <= 1.0
    checkpoint = load_checkpoint(folder.parent)
    model = load_model(folder, "cpu")
    assert checkpoint is not None
    for (key, value), average in zip(
        model.pipeline.sampler().method.named_parameters(), checkpoint.ema["shadow_params"], strict=True
    ):
        torch.testing.assert_close(value, average.half().float() if name == "unet" else average, msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_baseline_predicts_and_claims_no_sampler(
    trained: dict[str, Path], scan: Volume, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volume(scan, tmp_path / "scan.nii.gz")
    words = ["predict", "-i", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / "mask.nii.gz")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--model", str(trained[name]), "--steps", "7", "--scheduler", "ddim"])
    assert ended.value.code == 0
    sidecar = json.loads((tmp_path / "mask.json").read_text())
    assert (sidecar["steps"], sidecar["scheduler"]) == (None, None)
    assert "sampling" not in capsys.readouterr().out
    found = segment(load_model(trained[name], "cpu"), as_ct(scan))
    assert found.mask.array.shape == scan.array.shape
    assert (found.steps, found.scheduler) == (None, None)


@pytest.mark.parametrize("name", NETWORKS)
def test_organs_that_stay_keep_their_logits_and_new_ones_are_found_nowhere(name: str) -> None:
    """In whatever order, and at every resolution."""
    network, images = tiny_network(name), batch().images
    wider = network.for_organs(ORGANS, ("liver", "kidney stone", "gallbladder", "spleen"))
    answers = zip(wider(images), network(images), strict=True)
    for ours, theirs in ((ours, theirs) for ours, theirs in answers if ours.ndim):  # and no loss of codes
        torch.testing.assert_close(ours[:, [0, 4, 1, 3]], theirs, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours[:, 2], torch.full_like(ours[:, 2], UNLIKELY))


@pytest.mark.parametrize("name", NETWORKS)
def test_organs_that_are_dropped_leave_those_that_stay_their_weights(name: str) -> None:
    network = tiny_network(name)
    there = network.for_organs(ORGANS, ("gallbladder", "pancreas"))
    back = there.for_organs(("gallbladder", "pancreas"), ORGANS).state_dict()
    for key, value in network.state_dict().items():
        ours, theirs = back[key], value
        if key.startswith(OUTPUTS[name]):
            if key == "net.model.2.0.conv.weight":  # the one layer with its classes in the second axis
                ours, theirs = ours.transpose(0, 1), theirs.transpose(0, 1)
            ours, theirs = ours[[0, 3]], theirs[[0, 3]]  # background and gallbladder
            if key == "net.model.2.1.conv.unit0.conv.weight":
                ours, theirs = ours[:, [0, 3]], theirs[:, [0, 3]]
        assert torch.equal(ours, theirs), key


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scans, labelled with an organ that the models do not know in the place of one that they know."""
    return write_store(tmp_path_factory.mktemp("others") / "store", blobs(), organs=("liver", "kidney stone", "spleen"))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_baseline_is_fine_tuned_to_other_organs(
    trained: dict[str, Path], others: Path, tmp_path: Path, name: str
) -> None:
    model = {"method": name, "pipeline": trained[name]}
    before = load_pipeline(trained[name]).network.state_dict()
    onwards = run_config("model", others, tmp_path / "run", model=model, optimiser={"learning_rate": 1e-9})
    found = load_model(train(onwards) / "pipeline", "cpu")
    assert tuple(found.files.labels) == found.pipeline.organs == ("liver", "kidney stone", "spleen")
    after = found.pipeline.network.state_dict()
    inner = [key for key, value in before.items() if value.shape[:2] == after[key].shape[:2] and value.ndim > 1]
    assert inner
    for key in inner:
        if not key.startswith(OUTPUTS[name]):
            torch.testing.assert_close(after[key], before[key].float(), rtol=0, atol=1e-6)
    assert float(after[BIASES[name]][2]) == pytest.approx(UNLIKELY)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_baseline_is_measured_zero_shot_with_its_own_organs(
    trained: dict[str, Path], others: Path, tmp_path: Path, name: str
) -> None:
    model = {"method": name, "pipeline": trained[name]}
    config = run_config("model", others, tmp_path / "run", model=model, steps=0, data={"validation": CASES[2:]})
    measured = load_pipeline(train(config) / "pipeline")
    assert measured.organs == ORGANS
    for key, value in load_pipeline(trained[name]).network.state_dict().items():
        assert torch.equal(measured.network.state_dict()[key], value.float()), key
    (row,) = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert row["dice/kidney stone"] == 0.0 <= row["dice"] <= 1.0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_baseline_is_adapted(trained: dict[str, Path], others: Path, tmp_path: Path, name: str) -> None:
    result = adapt(trained[name], others, CASES[:1], tmp_path / "adapted", AdaptSettings(steps=1))
    assert result.kept == "adapted"
    assert load_model(tmp_path / "adapted", "cpu").pipeline.organs == ("liver", "kidney stone", "spleen")


def test_a_baseline_is_not_trained_as_another_method(store: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"was trained with model\.method: dynunet; set that"):
        train(run_config("model", store, tmp_path / "run", model={"pipeline": trained["dynunet"]}))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_baseline_is_trained_on_where_it_stopped(
    store: Path, trained: dict[str, Path], tmp_path: Path, name: str
) -> None:
    model = {"method": name, "pipeline": trained[name]}
    data = {"resolutions": (SIDE // 2,)}
    before = load_pipeline(trained[name]).network.state_dict()
    for steps, changed in ((0, False), (1, True)):
        config = run_config("model", store, tmp_path / str(steps), model=model, data=data, steps=steps)
        after = load_pipeline(train(config) / "pipeline").network.state_dict()
        assert any(not torch.equal(after[key], value.float()) for key, value in before.items()) == changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"method": "dynunet"}}, "model.method: unet"),
        ({"data": {"neighbours": 2}}, "data.neighbours: 1"),
        ({"data": {"neighbours": 2, "neighbour_pairs": 2}}, "data.neighbours: 1, data.neighbour_pairs: 1"),
    ],
)
def test_a_baseline_is_not_trained_on_as_another(
    store: Path, trained: dict[str, Path], tmp_path: Path, change: dict, words: str
) -> None:
    model = {"method": "unet", "pipeline": trained["unet"]} | change.get("model", {})
    with pytest.raises(UsageError, match=f"was trained with {words}; set that"):
        train(run_config("model", store, tmp_path / "run", model=model, data=change.get("data", {})))


def test_a_baseline_goes_on_from_baselines_only(store: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(trained["unet"], odd)
    index = json.loads((odd / "model_index.json").read_text())
    (odd / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    for folder in (odd, tmp_path / "nowhere"):
        with pytest.raises(WeightsMissingError, match=folder.name):
            train(run_config("model", store, tmp_path / "run", model={"method": "unet", "pipeline": folder}))


@pytest.mark.parametrize(
    ("stage", "model", "words"),
    [
        ("codec", {"method": "unet"}, "leave it out of stage 'codec'"),
        ("model", {"method": "vnet"}, "expected one of meddelinea, direct, unet, dynunet"),
    ],
)
def test_run_files_that_contradict_themselves_are_refused(store: Path, stage: str, model: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        run_config(stage, store, Path("run"), model=model)


def test_a_network_stands_on_no_component(store: Path, tmp_path: Path) -> None:
    model = {"method": "unet", "codec": tmp_path / "codec"}
    with pytest.raises(UsageError, match=r"model\.codec"):
        train(run_config("model", store, tmp_path / "run", model=model))


def test_a_model_with_settings_of_another_version_is_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    """diffusers leaves out what it does not know, and would give another model than was trained."""
    shutil.copytree(trained["unet"], tmp_path / "old")
    index = json.loads((tmp_path / "old" / "model_index.json").read_text())
    (tmp_path / "old" / "model_index.json").write_text(json.dumps(index | {"diffusion": False}))
    with pytest.raises(WeightsMissingError, match="made by another version: diffusion in its"):
        load_model(tmp_path / "old", "cpu")
