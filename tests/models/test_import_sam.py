"""Segment Anything in the published layouts, with random weights: imported it answers as transformers' model does."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from meddelinea.cli.main import main
from meddelinea.errors import InputRefusedError, WeightsMissingError
from meddelinea.models.import_sam import import_sam
from meddelinea.models.sam import SAM, Boxes

pytest.importorskip("transformers")

#: Layers of transformers' model under the names of the original code.
ORIGINAL = {
    "vision_encoder": "image_encoder",
    "patch_embed.projection": "patch_embed.proj",
    "neck.conv1": "neck.0",
    "neck.layer_norm1": "neck.1",
    "neck.conv2": "neck.2",
    "neck.layer_norm2": "neck.3",
    "prompt_encoder.shared_embedding.positional_embedding": (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    ),
    "point_embed": "point_embeddings",
    "mask_embed.conv1": "mask_downscaling.0",
    "mask_embed.layer_norm1": "mask_downscaling.1",
    "mask_embed.conv2": "mask_downscaling.3",
    "mask_embed.layer_norm2": "mask_downscaling.4",
    "mask_embed.conv3": "mask_downscaling.6",
    "upscale_conv1": "output_upscaling.0",
    "upscale_layer_norm": "output_upscaling.1",
    "upscale_conv2": "output_upscaling.3",
    "layers.0.weight": "layers.1.weight",  # of the MLPs alone
    "layers.0.bias": "layers.1.bias",
    "proj_in": "layers.0",
    "proj_out": "layers.2",
    "layer_norm": "norm",
}


def original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in state.items():
        for ours, theirs in ORIGINAL.items():
            name = name.replace(ours, theirs)
        renamed[name.replace("image_encoder.layers.", "image_encoder.blocks.")] = value
    return renamed


@pytest.fixture(scope="module")
def network() -> SAM:
    torch.manual_seed(0)
    network = SAM(
        image_size=64, patch_size=8, width=16, depth=2, heads=2, window=3, global_blocks=[1], decoder_width=32,
        decoder_hidden=48,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_it_answers_as_before_in_either_layout(network: SAM, layout: str, tmp_path: Path) -> None:
    state, source = network.state_dict(), tmp_path / "sam"
    if layout == "original":
        names = original_names(state)
        assert {"image_encoder.blocks.1.attn.rel_pos_h", "image_encoder.neck.3.bias"} < set(names)
        assert "mask_decoder.transformer.layers.1.cross_attn_token_to_image.out_proj.bias" in names
        assert "mask_decoder.output_hypernetworks_mlps.3.layers.1.weight" in names
        source = tmp_path / "medsam_vit_b.pth"
        torch.save(names, source)
    else:
        source.mkdir()
        both = state["prompt_encoder.shared_embedding.positional_embedding"]
        torch.save({**state, "shared_image_embedding.positional_embedding": both}, source / "pytorch_model.bin")
    imported = import_sam(source).eval()
    assert {**imported.config} == {**network.config}
    images = torch.rand(1, 3, 64, 64)
    boxes = Boxes(torch.tensor([0]), torch.tensor([0]), torch.tensor([[3.0, 5.0, 40.0, 50.0]]))
    assert torch.equal(imported(images, boxes), network(images, boxes))


def test_what_is_no_such_model_is_refused_by_name(network: SAM, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissingError, match=r"no model\.safetensors or pytorch_model\.bin"):
        import_sam(tmp_path)
    state = network.state_dict()
    torch.save({name: value for name, value in state.items() if "iou_token" not in name}, tmp_path / "a.pth")
    with pytest.raises(InputRefusedError, match=r"missing mask_decoder\.iou_token\.weight"):
        import_sam(tmp_path / "a.pth")
    torch.save({"pos_embed": torch.ones(1, 4, 2)}, tmp_path / "dit.pt")
    with pytest.raises(InputRefusedError, match="not a Segment Anything model"):
        import_sam(tmp_path / "dit.pt")


def test_the_command_writes_it_with_its_licence(
    network: SAM, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.disable", lambda level: None)
    torch.save(network.state_dict(), tmp_path / "sam.pth")
    with pytest.raises(SystemExit) as stop:
        main(["import-weights", str(tmp_path / "out"), "--sam", str(tmp_path / "sam.pth")])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    assert "Apache 2.0" in printed.out
    assert "Apache 2.0" in (tmp_path / "out" / "sam" / "LICENSE.txt").read_text()
    assert (tmp_path / "out" / "sam" / "config.json").is_file()
