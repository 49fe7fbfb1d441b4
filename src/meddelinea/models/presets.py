"""The sizes that a model comes in. Sizes are data: one function builds any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import torch

from meddelinea.errors import UsageError
from meddelinea.models.codec import KLCodec, SpaceToDepthCodec
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import MaskHead

#: The layout of the Stable Diffusion autoencoder, v1.
STABLE_DIFFUSION_VAE: Mapping[str, Any] = MappingProxyType(
    {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 256,
        "scaling_factor": 0.18215,
    }
)


@dataclass(frozen=True)
class Preset:
    """Sizes of a model.

    Parameters
    ----------
    codec
        Settings of `SpaceToDepthCodec`, or of `KLCodec` where `kl_codec`.
    width, heads, depth, control_depth, patch_size
        D, attention heads, N, K, and the side of a patch in latent pixels.
    classes, learn_sigma
        As in the checkpoint that the DiT starts from.
    stem_channels, stem_finest, auxiliary
        Extensions of the control branch, see `ControlDiT`.
    head_hidden
        Extension: widths of a mask head that sees tokens and the image stem's levels down to H/8, see `MaskHead`.
        Empty: none.
    resolution
        Rows and columns of the slices it is trained at.
    """

    codec: Mapping[str, Any]
    kl_codec: bool
    width: int
    heads: int
    depth: int
    control_depth: int
    patch_size: int
    classes: int
    learn_sigma: bool
    stem_channels: tuple[int, ...] = ()
    stem_finest: int = 4
    auxiliary: bool = False
    head_hidden: tuple[int, ...] = ()
    resolution: int = 256


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "small": Preset(
            codec=MappingProxyType({"channels": 48, "encoder_blocks": 2, "decoder_blocks": 3}),
            kl_codec=False,
            width=192,
            heads=4,
            depth=4,
            control_depth=4,
            patch_size=2,
            classes=0,
            learn_sigma=False,
            stem_channels=(64, 96, 192, 384),
            stem_finest=2,
            head_hidden=(64, 96, 192),
            resolution=128,
        ),
        "paper": Preset(
            codec=STABLE_DIFFUSION_VAE,
            kl_codec=True,
            width=624,
            heads=13,
            depth=15,
            control_depth=15,
            patch_size=2,
            classes=1000,
            learn_sigma=True,
        ),
        "xl": Preset(
            codec=STABLE_DIFFUSION_VAE,
            kl_codec=True,
            width=1152,
            heads=16,
            depth=28,
            control_depth=15,
            patch_size=2,
            classes=1000,
            learn_sigma=True,
        ),
    }
)


def find_preset(name: str, sizes: Mapping[str, Any] = MappingProxyType({})) -> Preset:
    """The preset of that name, with some of its sizes changed.

    Raises
    ------
    UsageError
        If there is none of that name, or no such size.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset '{name}'; known: {', '.join(PRESETS)}")
    known = [size.name for size in fields(Preset)]
    unknown = [size for size in sizes if size not in known]
    if unknown:
        raise UsageError(f"preset '{name}' has no size {', '.join(unknown)}; known: {', '.join(known)}")
    return replace(PRESETS[name], **sizes)


def build_codec(preset: Preset) -> KLCodec | SpaceToDepthCodec:
    """A codec of the preset's sizes with random weights."""
    return KLCodec(**preset.codec) if preset.kl_codec else SpaceToDepthCodec(**preset.codec)


def build_dit(preset: Preset) -> DiT:
    """A DiT of the preset's sizes with random weights."""
    return DiT(
        latent_channels=4,
        latent_size=preset.resolution // 8,
        patch_size=preset.patch_size,
        width=preset.width,
        depth=preset.depth,
        heads=preset.heads,
        classes=preset.classes,
        learn_sigma=preset.learn_sigma,
    )


def build_control(preset: Preset, dit: DiT, organs: int, slices: int = 3) -> ControlDiT:
    """The control branch of the preset's sizes, a copy of the first blocks of `dit`, on images of so many slices."""
    auxiliary_classes = organs + 1 if preset.auxiliary else 0
    control: ControlDiT = ControlDiT.copy_of(
        dit, preset.control_depth, preset.stem_channels, auxiliary_classes, preset.stem_finest, slices
    )
    return control


def build_mask_head(preset: Preset, codec: KLCodec | SpaceToDepthCodec, organs: int) -> MaskHead:
    """The decoder's final layer for L organs."""
    hidden = preset.head_hidden
    image_channels = preset.stem_channels[: len(hidden)]
    if hidden and preset.patch_size != 2:
        raise UsageError(f"head_hidden with patch_size {preset.patch_size}; that mask head takes tokens of 2x2 patches")
    return MaskHead(codec.feature_channels, codec.feature_factor, organs, image_channels, hidden, preset.width)


def parameter_counts(name: str, organs: int = 13) -> dict[str, int]:
    """True numbers of parameters of a preset's parts, counted on networks that hold no memory."""
    preset = find_preset(name)
    with torch.device("meta"):
        codec, dit = build_codec(preset), build_dit(preset)
        parts = {
            "codec": codec,
            "dit": dit,
            "control": build_control(preset, dit, organs),
            "mask_head": build_mask_head(preset, codec, organs),
        }
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
    counts["dit_and_control"] = counts["dit"] + counts["control"]
    counts["total"] = counts["codec"] + counts["dit_and_control"] + counts["mask_head"]
    return counts
