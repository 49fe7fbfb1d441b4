"""The sizes that a model comes in. Sizes are data: one function builds any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from meddelinea.errors import UsageError, WeightsMissingError, first_fault
from meddelinea.models.codec import FACTOR, Codec, KLCodec, SpaceToDepthCodec, palette
from meddelinea.models.component import load_component
from meddelinea.models.control import ControlDiT
from meddelinea.models.dit import DiT
from meddelinea.models.mask_head import GuidedMaskHead, MaskHead, PlainMaskHead

#: A misspelt size is an error, and so is one that is no number.
CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False)

Sizes = TypeVar("Sizes")
Whole = Annotated[int, Field(strict=True)]  # `true` is no number
Channels = Annotated[Whole, Field(ge=1, le=4096)]


@dataclass(frozen=True, config=CHECKED)
class SpaceToDepthSizes:
    """Sizes of a `SpaceToDepthCodec`, see there."""

    channels: Annotated[Whole, Field(ge=8, le=1024, multiple_of=8)]
    encoder_blocks: Annotated[Whole, Field(ge=0, le=64)]
    decoder_blocks: Annotated[Whole, Field(ge=0, le=64)]
    latent_channels: Annotated[Whole, Field(ge=1, le=256)] = 4
    image_channels: Annotated[Whole, Field(ge=0, le=256)] = 0
    fine_channels: Annotated[Whole, Field(ge=0, le=1024, multiple_of=8)] = 0

    linear_path: Annotated[bool, Field(strict=True)] = False

    def __post_init__(self) -> None:
        largest = max(self.image_channels, self.latent_channels)
        if self.linear_path and (self.channels < largest or 0 < self.fine_channels < 48):
            raise ValueError(
                f"linear_path of channels {self.channels}, fine_channels {self.fine_channels}; expected at least "
                f"the {largest} of a latent, and 48 or 0"
            )
        if 0 < self.image_channels < self.latent_channels:
            raise ValueError(
                f"image_channels {self.image_channels}; expected 0 or at least latent_channels, {self.latent_channels}"
            )


@dataclass(frozen=True, config=CHECKED)
class AutoencoderSizes:
    """Sizes of a `KLCodec` with the four levels of the Stable Diffusion autoencoder, whose sizes are the defaults."""

    block_out_channels: tuple[Channels, Channels, Channels, Channels] = (128, 256, 512, 512)
    layers_per_block: Annotated[Whole, Field(ge=1, le=64)] = 2
    norm_num_groups: Annotated[Whole, Field(ge=1, le=1024)] = 32
    scaling_factor: Annotated[float, Field(strict=True, gt=0.0, le=100.0)] = 0.18215

    def __post_init__(self) -> None:
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels {channels} cannot be normalised in {self.norm_num_groups} groups of equal size"
                )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Preset:
    """Sizes of a model, checked when it is made: networks of these sizes fit together."""

    codec: SpaceToDepthSizes | AutoencoderSizes  # sizes of the one codec or the other
    #: D, attention heads, N, K, and the side of a patch in latent pixels.
    width: Annotated[Whole, Field(ge=4, le=8192, multiple_of=4)]
    heads: Annotated[Whole, Field(ge=1, le=1024)]
    depth: Annotated[Whole, Field(ge=1, le=256)]
    control_depth: Annotated[Whole, Field(ge=1, le=256)]
    patch_size: Annotated[Whole, Field(ge=1, le=16)]
    #: As in the checkpoint that the DiT starts from.
    classes: Annotated[Whole, Field(ge=0, le=100_000)]
    learn_sigma: Annotated[bool, Field(strict=True)]
    #: Extensions of the control branch, see `ControlDiT`.
    stem_channels: Annotated[tuple[Channels, ...], Field(max_length=8)] = ()
    stem_finest: Annotated[Whole, Field(ge=1, le=128)] = 4
    #: Extension: widths of a `GuidedMaskHead`, which sees tokens and the image stem's levels down to H/8. Empty: none.
    head_hidden: Annotated[tuple[Channels, ...], Field(max_length=4)] = ()
    #: Rows and columns of the slices it is trained at.
    resolution: Annotated[Whole, Field(ge=8, le=4096, multiple_of=8)] = 256

    def __post_init__(self) -> None:
        side, levels = self.token_side, len(self.stem_channels)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads")
        if self.control_depth > self.depth:
            raise ValueError(f"control_depth {self.control_depth}; expected at most the depth, {self.depth}")
        if self.resolution % side:
            raise ValueError(f"resolution {self.resolution}; expected a multiple of {side}, a token's side in pixels")
        if levels and self.stem_finest * 2 ** (levels - 1) != side:
            raise ValueError(
                f"stem_finest {self.stem_finest}, doubled at each of {levels} stem_channels but the first; "
                f"expected to end at {side}, a token's side in pixels"
            )
        # A head that sees tokens meets the stem at each level down to H/8, where tokens of 2x2 patches are unfolded.
        at_8 = isinstance(self.codec, SpaceToDepthSizes) and not self.codec.fine_channels
        if self.head_hidden and not (at_8 and self.patch_size == 2):
            raise ValueError(
                "head_hidden; expected a space-to-depth codec without fine_channels, and patch_size 2 with it, "
                "or [] without"
            )
        if self.head_hidden and len(self.head_hidden) != levels - 1:
            raise ValueError(f"head_hidden of {len(self.head_hidden)} levels; expected one less than stem_channels has")

    @property
    def token_side(self) -> int:
        """Rows and columns of pixels behind a token."""
        return FACTOR * self.patch_size

    @property
    def latent_channels(self) -> int:
        """Channels of the codec's latents of masks."""
        return self.codec.latent_channels if isinstance(self.codec, SpaceToDepthSizes) else 4  # Stable Diffusion's


PresetName = Literal["small", "paper", "xl"]

PRESETS: Mapping[PresetName, Preset] = {
    "small": Preset(
        codec=SpaceToDepthSizes(channels=48, encoder_blocks=2, decoder_blocks=3),
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
        codec=AutoencoderSizes(),
        width=624,
        heads=13,
        depth=15,
        control_depth=15,
        patch_size=2,
        classes=1000,
        learn_sigma=True,
    ),
    "xl": Preset(
        codec=AutoencoderSizes(),
        width=1152,
        heads=16,
        depth=28,
        control_depth=15,
        patch_size=2,
        classes=1000,
        learn_sigma=True,
    ),
}


def find_preset(name: str, sizes: Mapping[str, Any] = MappingProxyType({})) -> Preset:
    """The preset of that name, with some of its sizes, or of its codec's sizes, changed.

    Raises
    ------
    UsageError
        If there is none of that name, no such size, or networks of these sizes cannot be built.
    """
    preset = next((preset for known, preset in PRESETS.items() if known == name), None)
    if preset is None:
        raise UsageError(f"unknown preset '{name}'; known: {', '.join(PRESETS)}")
    place = f"sizes of the preset '{name}': "
    changed = {size.name: getattr(preset, size.name) for size in fields(preset)} | dict(sizes)
    if isinstance(changed["codec"], Mapping):
        changed["codec"] = _made(type(preset.codec), {**vars(preset.codec), **changed["codec"]}, f"{place}codec.")
    return _made(Preset, changed, place)


def _made(kind: type[Sizes], sizes: Mapping[str, Any], place: str) -> Sizes:
    try:
        return kind(**sizes)
    except ValidationError as error:
        raise UsageError(place + first_fault(error)) from error


def build_codec(preset: Preset) -> Codec:
    """A codec of the preset's sizes with random weights."""
    if isinstance(preset.codec, SpaceToDepthSizes):
        return SpaceToDepthCodec(**asdict(preset.codec))
    return KLCodec(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=256,
        **asdict(preset.codec),
    )


def codec_class(preset: Preset) -> type[KLCodec | SpaceToDepthCodec]:
    """The class of the preset's codec."""
    return SpaceToDepthCodec if isinstance(preset.codec, SpaceToDepthSizes) else KLCodec


def build_dit(preset: Preset) -> DiT:
    """A DiT of the preset's sizes with random weights."""
    return DiT(
        latent_channels=preset.latent_channels,
        latent_size=preset.resolution // FACTOR,
        patch_size=preset.patch_size,
        width=preset.width,
        depth=preset.depth,
        heads=preset.heads,
        classes=preset.classes,
        learn_sigma=preset.learn_sigma,
    )


def build_control(preset: Preset, dit: DiT, codec: Codec, slices: int = 3) -> ControlDiT:
    """The control branch of the preset's sizes, a copy of the first blocks of `dit`, on images of so many slices."""
    return ControlDiT.copy_of(
        dit,
        preset.control_depth,
        image_channels=codec.image_channels,
        stem_channels=preset.stem_channels,
        stem_finest=preset.stem_finest,
        stem_slices=slices,
    )


def build_mask_head(preset: Preset, codec: Codec, organs: int) -> MaskHead:
    """The decoder's final layer for L organs: the paper's, or where it has `head_hidden` one that sees the image."""
    if not preset.head_hidden:
        return PlainMaskHead.of_codec(codec, palette(organs + 1))
    return GuidedMaskHead(
        feature_channels=codec.feature_channels,
        feature_factor=codec.feature_factor,
        organs=organs,
        image_channels=preset.stem_channels[: len(preset.head_hidden)],
        hidden=preset.head_hidden,
        token_width=preset.width,
    )


def load_codec(preset: Preset, folder: Path | None) -> Codec:
    """A trained or imported codec of the preset's kind; `folder` is what `model.codec` of a run file says.

    Raises
    ------
    WeightsMissingError
        If the folder holds no such component, or a damaged one.
    UsageError
        If its latents have other channels than the preset's.
    """
    kind = codec_class(preset)
    codec: Codec = load_component(component_folder(folder, "codec"), {kind.__name__: kind})
    if codec.latent_channels != preset.latent_channels:
        raise UsageError(
            f"model.codec: {folder} has latents of {codec.latent_channels} channels; expected "
            f"{preset.latent_channels}, model.sizes.codec.latent_channels"
        )
    return codec


def load_any_codec(folder: Path | None) -> Codec:
    """A trained or imported codec of either kind; `folder` is what `model.codec` of a run file says.

    Raises
    ------
    WeightsMissingError
        If the folder holds no such component, or a damaged one.
    """
    kinds: dict[str, type[Codec]] = {kind.__name__: kind for kind in (SpaceToDepthCodec, KLCodec)}
    return load_component(component_folder(folder, "codec"), kinds)


def load_dit(folder: Path | None) -> DiT:
    """A trained or imported DiT; `folder` is what `model.dit` of a run file says.

    Raises
    ------
    WeightsMissingError
        If the folder holds no such component, or a damaged one.
    """
    return load_component(component_folder(folder, "dit"), {"DiT": DiT})


def component_folder(folder: Path | None, role: str) -> Path:
    """`folder`, once it is sure that it holds a component; `role` is its name in a run file's `model` section.

    Raises
    ------
    WeightsMissingError
        If it holds none.
    """
    if folder is None or not (folder / "config.json").is_file():
        raise WeightsMissingError(f"model.{role}: {folder} holds no config.json; train it first or import its weights")
    return folder


def parameter_counts(name: str, organs: int = 13) -> dict[str, int]:
    """True numbers of parameters of a preset's parts, counted on networks that hold no memory."""
    preset = find_preset(name)
    with torch.device("meta"):
        codec, dit = build_codec(preset), build_dit(preset)
        parts: dict[str, Codec | DiT | ControlDiT | MaskHead] = {
            "codec": codec,
            "dit": dit,
            "control": build_control(preset, dit, codec),
            "mask_head": build_mask_head(preset, codec, organs),
        }
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
    counts["dit_and_control"] = counts["dit"] + counts["control"]
    counts["total"] = counts["codec"] + counts["dit_and_control"] + counts["mask_head"]
    return counts
