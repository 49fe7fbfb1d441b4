"""Published weights of Segment Anything and of MedSAM, from a file or folder that is already on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meddelinea.errors import InputRefusedError, WeightsMissingError, reason_of
from meddelinea.models.import_weights import read_checkpoint, require_keys
from meddelinea.models.sam import SAM

#: transformers' files of weights.
FILES = ("model.safetensors", "pytorch_model.bin")
#: Names of the original code, as patterns, and transformers' ones, applied in this order.
RENAMED = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"^vision_encoder\.blocks\.", "vision_encoder.layers."),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"neck\.0\.", "neck.conv1."),
    (r"neck\.1\.", "neck.layer_norm1."),
    (r"neck\.2\.", "neck.conv2."),
    (r"neck\.3\.", "neck.layer_norm2."),
    (r"pe_layer\.positional_encoding_gaussian_matrix$", "shared_embedding.positional_embedding"),
    (r"point_embeddings\.", "point_embed."),
    (r"mask_downscaling\.0\.", "mask_embed.conv1."),
    (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
    (r"mask_downscaling\.3\.", "mask_embed.conv2."),
    (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
    (r"mask_downscaling\.6\.", "mask_embed.conv3."),
    (r"output_upscaling\.0\.", "upscale_conv1."),
    (r"output_upscaling\.1\.", "upscale_layer_norm."),
    (r"output_upscaling\.3\.", "upscale_conv2."),
    (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
    (r"(mlps\.\d|_head)\.layers\.0\.", r"\1.proj_in."),
    (r"(mlps\.\d|_head)\.layers\.2\.", r"\1.proj_out."),
    (r"(mlps\.\d|_head)\.layers\.1\.", r"\1.layers.0."),
)
POSITIONS = "shared_embedding.positional_embedding"


def import_sam(source: Path) -> SAM:
    """Segment Anything or MedSAM of any size, in the original layout or in transformers'; sizes are read off tensors.

    Parameters
    ----------
    source
        A `.pth`, `.pt`, `.bin` or `.safetensors` file, or the folder of a model that transformers wrote.

    Raises
    ------
    WeightsMissingError
        If there is nothing at `source`.
    InputRefusedError
        If it is no such checkpoint; every missing, unexpected or misshapen key is named.
    """
    weights = read_checkpoint(_file(source))
    if any(name.startswith("image_encoder.") for name in weights):
        weights = {_renamed(name): value for name, value in weights.items()}
    shared = weights.pop("shared_image_embedding.positional_embedding", None)  # transformers has the positions twice
    if shared is not None:
        weights.setdefault(f"prompt_encoder.{POSITIONS}", shared)
    try:
        with torch.device("meta"):
            network: SAM = SAM(**_sizes(weights))
    except (KeyError, IndexError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputRefusedError(
            f"{source}: not a Segment Anything model ({reason_of(error)}); expected the published file, or a folder of "
            "transformers"
        ) from error
    require_keys(network.state_dict(), weights, source)
    network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return network


def _file(source: Path) -> Path:
    if not source.is_dir():
        return source
    for name in FILES:
        if (source / name).is_file():
            return source / name
    raise WeightsMissingError(f"{source}: no {' or '.join(FILES)}; expected what transformers wrote")


def _renamed(name: str) -> str:
    for pattern, other in RENAMED:
        name = re.sub(pattern, other, name)
    return name


def _sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `SAM` that the tensors' shapes tell."""
    _, grid, _, width = weights["vision_encoder.pos_embed"].shape
    patch = weights["vision_encoder.patch_embed.projection.weight"].shape[-1]
    layers = {name.split(".")[2] for name in weights if name.startswith("vision_encoder.layers.")}
    # A block's relative positions reach over its window, or over the whole grid: 2 s - 1 of them for a side of s.
    positions = [weights[f"vision_encoder.layers.{layer}.attn.rel_pos_h"] for layer in range(len(layers))]
    sides = [(len(table) + 1) // 2 for table in positions]
    return {
        "image_size": grid * patch,
        "patch_size": patch,
        "width": width,
        "depth": len(layers),
        "heads": width // positions[0].shape[1],
        "window": min(sides),
        "global_blocks": [layer for layer, side in enumerate(sides) if side == grid],
        "decoder_width": len(weights["vision_encoder.neck.conv1.weight"]),
        "decoder_hidden": len(weights["mask_decoder.transformer.layers.0.mlp.lin1.weight"]),
    }
