"""Published layouts, made from the model classes of diffusers with random weights, and imported: the same outputs."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from torch import Tensor

from meddelinea.cli.main import main
from meddelinea.errors import InputRefusedError, WeightsMissingError
from meddelinea.models.codec import KLCodec
from meddelinea.models.dit import DiT
from meddelinea.models.import_weights import import_dit, import_vae

S2 = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12}
XL2 = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28}

#: The layout of the Stable Diffusion autoencoder, v1, as its config.json has it.
STABLE_DIFFUSION_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "sample_size": 256,
}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter drawn anew, equal in the copies that diffusers keeps of the embedders."""
    first: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            embedder = name.partition("norm1.emb.")[2]
            if embedder in first:
                parameter.copy_(first[embedder])
                continue
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 400
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
            if embedder:
                first[embedder] = parameter
    return module.eval()


def peer_dit(sizes: dict[str, int]) -> DiTTransformer2DModel:
    """The published model's shapes: learned sigma (8 channels out), 1000 classes, 32 x 32 latents in patches of 2."""
    theirs = DiTTransformer2DModel(
        in_channels=4, out_channels=8, sample_size=32, patch_size=2, num_embeds_ada_norm=1000, norm_eps=1e-6, **sizes
    )
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # the original's; diffusers changed it when it converted
    return randomised(theirs)


def original_state(theirs: DiTTransformer2DModel) -> dict[str, Tensor]:
    """The peer's tensors under the names of the original code."""
    state = theirs.state_dict()
    ours = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
        "final_layer.linear": "proj_out_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
    }
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    result = {"pos_embed": theirs.pos_embed.pos_embed, "y_embedder.embedding_table.weight": state[table]}
    for i in range(len(theirs.transformer_blocks)):
        old, new = f"transformer_blocks.{i}", f"blocks.{i}"
        ours |= {f"{new}.attn.proj": f"{old}.attn1.to_out.0", f"{new}.adaLN_modulation.1": f"{old}.norm1.linear"}
        ours |= {f"{new}.mlp.fc1": f"{old}.ff.net.0.proj", f"{new}.mlp.fc2": f"{old}.ff.net.2"}
        for kind in ("weight", "bias"):
            result[f"{new}.attn.qkv.{kind}"] = torch.cat([state[f"{old}.attn1.to_{part}.{kind}"] for part in "qkv"])
    for name, source in ours.items():
        result |= {f"{name}.{kind}": state[f"{source}.{kind}"] for kind in ("weight", "bias")}
    return result


def assert_same_noise(ours: DiT, theirs: DiTTransformer2DModel) -> None:
    z = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 900])
    with torch.no_grad():
        mine = ours(z, ours.condition(t)).sample
        expected = theirs(z, timestep=t, class_labels=torch.full((2,), 1000)).sample[:, :4]
    assert expected.std() > 0.1
    assert_parity("predicted noise", mine, expected)


def assert_parity(what: str, mine: Tensor, theirs: Tensor) -> None:
    """Equal to the peer's forward pass within 1e-4; how nearly is printed (`pytest -s`)."""
    print(f"{what}: off by {float((mine - theirs).abs().max()):.1e} at most, of up to {float(theirs.abs().max()):.2g}")
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def write_original(theirs: DiTTransformer2DModel, path: Path) -> Path:
    torch.save({"ema": original_state(theirs), "model": {"other": torch.zeros(1)}}, path)
    return path


@pytest.mark.parametrize("layout", ["original", "transformer", "pipeline", "pickled tensors"])
def test_dit_s_is_the_peer_in_every_layout(tmp_path: Path, layout: str) -> None:
    theirs = peer_dit(S2)
    if layout == "original":
        source = write_original(theirs, tmp_path / "DiT-S-2-256x256.pt")
    else:
        source = tmp_path / "DiT-S-2-256"
        folder = source if layout == "transformer" else source / "transformer"
        theirs.save_pretrained(folder, safe_serialization=layout != "pickled tensors")
    ours = import_dit(source)
    assert (ours.config.depth, ours.config.heads, ours.config.latent_size, ours.config.classes) == (12, 6, 32, 1000)
    assert_same_noise(ours, theirs)


@pytest.mark.slow
def test_dit_xl_is_the_peer(tmp_path: Path) -> None:
    theirs = peer_dit(XL2)
    path = write_original(theirs, tmp_path / "DiT-XL-2-256x256.pt")
    ours = import_dit(path)
    assert sum(p.numel() for p in ours.parameters()) == 674_834_720
    assert_same_noise(ours, theirs)


def rename_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that the autoencoder's attention had before diffusers 0.12."""
    renamed = {}
    for name, value in state.items():
        for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("layout", ["vae", "pipeline", "old names"])
def test_the_autoencoder_is_the_peer_at_its_real_size(tmp_path: Path, layout: str) -> None:
    theirs = randomised(AutoencoderKL(**STABLE_DIFFUSION_VAE))
    folder = tmp_path / "vae" if layout == "pipeline" else tmp_path
    theirs.save_pretrained(folder)
    if layout == "old names":
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        torch.save(rename_attention(theirs.state_dict()), folder / "diffusion_pytorch_model.bin")
    ours = import_vae(tmp_path)
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        latent = theirs.encode(pixels).latent_dist.mean
        painted = theirs.decode(latent).sample
        assert_parity("latent", ours.to_latent(pixels), latent * 0.18215)
        assert_parity("pixels", ours.to_pixels(ours.to_features(latent * 0.18215)), painted)


def tiny_state() -> dict[str, Tensor]:
    return original_state(peer_dit({"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 1}))


def without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(name)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (without("blocks.0.mlp.fc1.bias"), "1 keys do not fit: missing blocks.0.mlp.fc1.bias"),
    "unexpected": (lambda s: s.update(head=torch.zeros(3)), "1 keys do not fit: unexpected head"),
    "misshapen": (
        lambda s: s.update({"blocks.0.mlp.fc1.bias": torch.zeros(7)}),
        r"blocks.0.mlp.fc1.bias is \(7,\), expected \(1536,\)",
    ),
    "two at once": (
        lambda s: (s.pop("blocks.0.mlp.fc1.bias"), s.update(head=torch.zeros(3))),
        "2 keys do not fit: missing blocks.0.mlp.fc1.bias; unexpected head",
    ),
    "no class embedder": (without("y_embedder.embedding_table.weight"), "no class-conditional DiT"),
    "other positions": (lambda s: s.update(pos_embed=s["pos_embed"] + 0.1), "position embedding"),
    "a number": (lambda s: s.update(steps=3), "not a state dict of tensors"),
    "an object": (lambda s: s.update(path=Path("x")), "holds more than tensors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused_key_by_key(tmp_path: Path, fault: str) -> None:
    state = tiny_state()
    change, message = FAULTS[fault]
    change(state)
    torch.save(state, tmp_path / "dit.pt")
    with pytest.raises(InputRefusedError, match=message):
        import_dit(tmp_path / "dit.pt")


def test_embedders_that_differ_between_blocks_are_refused(tmp_path: Path) -> None:
    theirs = peer_dit({"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2})
    theirs.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.bias.data += 1
    theirs.save_pretrained(tmp_path)
    with pytest.raises(InputRefusedError, match="differs from the same embedder"):
        import_dit(tmp_path)


@pytest.mark.parametrize("absent", ["num_attention_heads", "sample_size"])
def test_a_configuration_that_lacks_a_size_is_refused(tmp_path: Path, absent: str) -> None:
    peer_dit({"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1}).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != absent}))
    with pytest.raises(InputRefusedError, match=absent):
        import_dit(tmp_path)


def test_a_bad_autoencoder_leaves_no_transformer_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.disable", lambda level: None)
    torch.save(tiny_state(), tmp_path / "dit.pt")
    words = [
        "import-weights",
        str(tmp_path / "out"),
        "--dit",
        str(tmp_path / "dit.pt"),
        "--vae",
        str(tmp_path / "none"),
    ]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 5
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("read", [import_dit, import_vae])
def test_what_is_not_there_or_something_else_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(WeightsMissingError, match="nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(InputRefusedError, match="UNet2DConditionModel"):
        read(tmp_path)


def test_the_command_writes_components_with_their_licences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.disable", lambda level: None)
    torch.save(tiny_state(), tmp_path / "dit.pt")
    peer = AutoencoderKL(**{**STABLE_DIFFUSION_VAE, "block_out_channels": (32,) * 4})
    peer.save_pretrained(tmp_path / "vae")
    out = tmp_path / "imported"
    words = ["import-weights", str(out), "--dit", str(tmp_path / "dit.pt"), "--vae", str(tmp_path / "vae")]
    with pytest.raises(SystemExit) as stop:
        main(words)
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    assert "CC BY-NC 4.0" in printed.out
    assert "CC BY-NC 4.0" in (out / "dit" / "LICENSE.txt").read_text()
    assert "RAIL" in (out / "codec" / "LICENSE.txt").read_text()
    assert DiT.from_pretrained(out / "dit").config.depth == 1
    assert KLCodec.from_pretrained(out / "codec").config.scaling_factor == 0.18215
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "exists already" in capsys.readouterr().err


ODD_TENSORS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "one number seen as 15 TB": (lambda: torch.zeros(1).expand(4_000_000_000_000), r"\(4000000000000,\), but its file"),
    "a NaN": (lambda: torch.tensor([1.0, float("nan")]), "holds 1 of 2 weights that are NaN or infinite"),
    "an infinity": (lambda: torch.tensor([float("inf")]), "NaN or infinite"),
    "zeros": (lambda: torch.zeros(3), "every weight is 0"),
    "whole numbers": (lambda: torch.ones(3, dtype=torch.int64), "is int64, strided"),
    "eight bits": (lambda: torch.ones(3).to(torch.float8_e5m2), "is float8_e5m2"),
    "complex numbers": (lambda: torch.ones(3, dtype=torch.complex64), "is complex64"),
    "a sparse one": (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
}


@pytest.mark.parametrize("entry", [None, "ema"])
@pytest.mark.parametrize("case", ODD_TENSORS)
def test_tensors_that_are_no_weights_are_refused_in_little_memory(tmp_path: Path, case: str, entry: str | None) -> None:
    make, reason = ODD_TENSORS[case]
    path = tmp_path / "dit.pt"
    weights = {"pos_embed": make()}
    torch.save({entry: weights} if entry else weights, path)
    with pytest.raises(InputRefusedError, match=reason) as caught:
        import_dit(path)
    assert str(caught.value).isprintable()


def test_a_checkpoint_that_is_packed_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"pos_embed": torch.zeros(1 << 22)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(InputRefusedError, match=r"unpacks to \d+ bytes; expected at most its own"):
        import_dit(tmp_path / "packed.pt")
