"""Published weights, from files that are already on disk, as components of this project.

The transformer comes in two layouts: one state dict with the names of the original code (a `.pt` file, perhaps with an
`ema` entry), or the folder that diffusers writes, which renames every tensor and repeats the embedders in each block.
The autoencoder comes in diffusers' layout. Nothing is unpickled but tensors, and every key and shape is accounted for.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from meddelinea.errors import InputRefusedError, WeightsMissingError, reason_of
from meddelinea.json_files import read_json
from meddelinea.models.codec import KLCodec
from meddelinea.models.component import key_faults, require_finite
from meddelinea.models.dit import DiT
from meddelinea.models.transformer import position_embedding

#: Attention heads of the published sizes S, B, L and XL, by width: the one number that no tensor's shape tells.
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
#: Number types of weights.
PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_BLOCK = "transformer_blocks."
#: diffusers' names of the parts of a block, and the original ones.
_IN_BLOCK = {
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "norm1.linear": "adaLN_modulation.1",
}
#: The embedders, which diffusers repeats in each block.
_EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
_OUTSIDE = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}


def import_dit(source: Path) -> DiT:
    """A class-conditional DiT of Peebles and Xie, in the original layout or in diffusers'.

    Sizes are read off the tensors; fixed position embeddings are checked and dropped, since ours are computed.

    Parameters
    ----------
    source
        A `.pt`, `.pth`, `.bin` or `.safetensors` file, or a folder that diffusers wrote (the transformer's own, or its
        pipeline's).

    Raises
    ------
    WeightsMissingError
        If there is nothing at `source`.
    InputRefusedError
        If it is no such checkpoint; every missing, unexpected or misshapen key is named.
    """
    if source.is_dir():
        folder, config = _component(source, "transformer", "DiTTransformer2DModel")
        weights = _original_names(read_checkpoint(_weights_file(folder)), source)
        weights.pop("pos_embed", None)
        unsaid = [name for name in ("num_attention_heads", "sample_size") if type(config.get(name)) is not int]
        if unsaid:
            raise InputRefusedError(f"{folder}/config.json: no number for {', '.join(unsaid)}; download it again")
        heads, latent_size = config["num_attention_heads"], config["sample_size"]
    else:
        weights = read_checkpoint(source)
        heads, latent_size = _told_by_tensors(weights, source)
    try:
        with torch.device("meta"):
            dit: DiT = DiT(heads=heads, latent_size=latent_size, **_sizes(weights, source))
    except InputRefusedError:
        raise
    except Exception as error:  # whatever sizes that do not fit lead its layers to
        raise InputRefusedError(f"{source}: no DiT has these sizes ({reason_of(error)}); download it again") from error
    require_keys(dit.state_dict(), weights, source)
    dit.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return dit


def import_vae(source: Path) -> KLCodec:
    """The autoencoder of Stable Diffusion v1, from the folder that diffusers wrote (its own, or its pipeline's).

    Raises
    ------
    WeightsMissingError
        If `source` holds no such folder.
    InputRefusedError
        If it is no such autoencoder; every missing, unexpected or misshapen key is named.
    """
    folder, config = _component(source, "vae", "AutoencoderKL")
    weights = read_checkpoint(_weights_file(folder))
    known = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        with torch.device("meta"):
            codec: KLCodec = KLCodec.from_config(known)
    except Exception as error:  # whatever sizes that do not fit lead its layers to
        raise InputRefusedError(f"{folder}/config.json: no autoencoder of this layout ({error})") from error
    weights = {_attention_name(name): value for name, value in weights.items()}
    # Old checkpoints hold the attention's linear layers as 1x1 convolutions.
    weights = {
        name: value[:, :, 0, 0] if value.ndim == 4 and ".attentions." in name else value
        for name, value in weights.items()
    }
    require_keys(codec.state_dict(), weights, folder)
    codec.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return codec


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name; of a training checkpoint, the averaged ones.

    Raises
    ------
    WeightsMissingError
        If there is no such file.
    InputRefusedError
        If it is damaged, or holds anything but plain, finite tensors.
    """
    if not path.is_file():
        raise WeightsMissingError(f"{path}: no such file; give downloaded weights")
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            _refuse_packed(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except InputRefusedError:
        raise
    except (SafetensorError, OSError) as error:
        raise InputRefusedError(f"{path}: not a readable checkpoint ({error}); download it again") from error
    except Exception as error:  # whatever a foreign or damaged archive leads the parser to
        raise InputRefusedError(
            f"{path}: holds more than tensors, or is damaged ({reason_of(error)}); keep its state dict alone, "
            "or get it again"
        ) from error
    if isinstance(content, Mapping):
        content = next((content[name] for name in ("ema", "model", "state_dict") if name in content), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputRefusedError(f"{path}: not a state dict of tensors, nor one under 'ema', 'model' or 'state_dict'")
    weights = {str(name): value for name, value in content.items()}
    for name, value in weights.items():
        _require_plain(name, value, path)
    try:
        require_finite(weights, path)
    except WeightsMissingError as error:
        raise InputRefusedError(str(error)) from error
    return weights


def _refuse_packed(path: Path) -> None:
    """Refuse a checkpoint that unpacks to more than its own size, which torch never writes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            held = sum(member.file_size for member in archive.infolist())
        if held > path.stat().st_size:
            raise InputRefusedError(
                f"{path}: unpacks to {held} bytes; expected at most its own {path.stat().st_size}; get it again"
            )


def _require_plain(name: str, value: Tensor, path: Path) -> None:
    """Refuse a tensor that is more than the numbers that lie in its file, such as one number seen a billion times."""
    if value.layout is not torch.strided or value.dtype not in PRECISIONS or value.device.type != "cpu":
        kind = f"{value.dtype}, {value.layout}, on {value.device}".replace("torch.", "")
        raise InputRefusedError(f"{path}: {name} is {kind}; expected floating-point numbers; convert it")
    held = value.untyped_storage().nbytes()
    if value.numel() * value.element_size() > held:
        raise InputRefusedError(
            f"{path}: {name} is {tuple(value.shape)}, but its file holds {held} bytes of it; expected all its numbers"
        )


def _component(source: Path, part: str, kind: str) -> tuple[Path, dict[str, Any]]:
    """Folder and configuration of a component that diffusers saved, found in `source` or its sub-folder `part`."""
    for folder in (source, source / part):
        path = folder / "config.json"
        if path.is_file():
            try:
                config = read_json(path)
            except (OSError, ValueError) as error:
                raise InputRefusedError(f"{path}: not readable JSON; download it again") from error
            if not isinstance(config, dict):
                raise InputRefusedError(
                    f"{path}: a JSON {type(config).__name__}; expected an object; download it again"
                )
            if config.get("_class_name") != kind:
                raise InputRefusedError(f"{path}: a {config.get('_class_name')}; expected {kind}")
            return folder, config
    raise WeightsMissingError(f"{source}: no config.json there or in {part}/; expected what diffusers wrote")


def _weights_file(folder: Path) -> Path:
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise WeightsMissingError(f"{folder}: no diffusion_pytorch_model.safetensors or .bin; download the weights too")


def _original_names(weights: Mapping[str, Tensor], source: Path) -> dict[str, Tensor]:
    """diffusers' tensors under the original names; repeated embedders must be equal, unknown names stay as they are."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".")
        block, _, part = layer.removeprefix(_BLOCK).partition(".") if layer.startswith(_BLOCK) else ("", "", layer)
        if part in _EMBEDDERS:
            original = f"{_EMBEDDERS[part]}.{kind}"
            if original in renamed and not torch.equal(renamed[original], value):
                raise InputRefusedError(f"{source}: {name} differs from the same embedder in another block")
            renamed[original] = value
        elif block and part in _IN_BLOCK:
            renamed[f"blocks.{block}.{_IN_BLOCK[part]}.{kind}"] = value
        elif block and part == "attn1.to_q":
            parts = [weights.get(f"{_BLOCK}{block}.attn1.to_{letter}.{kind}") for letter in "qkv"]
            if all(found is not None for found in parts):
                renamed[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat([found for found in parts if found is not None])
        elif block and part in ("attn1.to_k", "attn1.to_v"):
            continue  # with to_q
        elif name == "pos_embed.pos_embed":
            renamed["pos_embed"] = value
        else:
            renamed[f"{_OUTSIDE[layer]}.{kind}" if layer in _OUTSIDE else name] = value
    return renamed


def _told_by_tensors(weights: dict[str, Tensor], source: Path) -> tuple[int, int]:
    """Attention heads and latent size of a file in the original layout; takes the position embedding out of it."""
    positions = weights.pop("pos_embed", None)
    if positions is None or positions.ndim != 3:
        raise InputRefusedError(f"{source}: no DiT: pos_embed missing; expected the original layout")
    _, tokens, width = positions.shape
    side = math.isqrt(tokens)
    if side**2 != tokens or not torch.allclose(
        positions.float(), position_embedding(width, (side, side), side), atol=1e-4
    ):
        raise InputRefusedError(f"{source}: its position embedding is not the fixed sine-cosine one that DiT uses")
    if width not in HEADS:
        raise InputRefusedError(
            f"{source}: width {width}; expected a published size ({', '.join(map(str, HEADS))}), since the file does "
            "not say how many attention heads it has; give diffusers' folder, which does"
        )
    patch = weights["x_embedder.proj.weight"].shape[-1] if "x_embedder.proj.weight" in weights else 1
    return HEADS[width], side * patch


def _sizes(weights: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    """The arguments of `DiT` that the tensors' shapes tell."""
    needed = ("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
    absent = [name for name in needed if name not in weights]
    if absent:
        raise InputRefusedError(f"{source}: no class-conditional DiT: {', '.join(absent)} missing")
    width, channels, patch, _ = weights[needed[0]].shape
    return {
        "latent_channels": channels,
        "patch_size": patch,
        "width": width,
        "depth": len({name.split(".")[1] for name in weights if name.startswith("blocks.")}),
        "classes": weights[needed[1]].shape[0] - 1,
        "learn_sigma": weights[needed[2]].shape[0] == 2 * channels * patch**2,
    }


def require_keys(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], source: Path) -> None:
    """Refuse a checkpoint that does not have exactly the keys and shapes of the model."""
    faults = key_faults(*({name: tuple(value.shape) for name, value in each.items()} for each in (expected, found)))
    if faults:
        raise InputRefusedError(f"{source}: {len(faults)} keys do not fit: {'; '.join(faults)}")


def _attention_name(name: str) -> str:
    """The present name of an attention layer of the autoencoder, which older checkpoints call otherwise."""
    if ".attentions." not in name:
        return name
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".{old}.", f".{new}.")
    return name
