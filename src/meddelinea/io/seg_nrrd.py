"""Segmentations of 3D Slicer (`.seg.nrrd`): named segments in one or several layers, cropped to where they are."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meddelinea.endings import ending
from meddelinea.errors import InputRefusedError
from meddelinea.io.nrrd import read_layers
from meddelinea.io.nrrd_header import NrrdHeader
from meddelinea.labels import canonical_name
from meddelinea.volume import Volume

_NAME = re.compile(r"Segment(\d+)_Name")


@dataclass(frozen=True)
class Segment:
    """Where the voxels of a segment are: in a layer, counted from 0, those of one value."""

    layer: int
    value: int


def is_seg_nrrd(path: Path) -> bool:
    """Whether a file is a NRRD whose header names segments."""
    if ending(path, (".nrrd", ".nhdr")) is None:
        return False
    return any(_NAME.fullmatch(key) for key in NrrdHeader.read(path).extra)


def segment_numbers(path: Path) -> dict[str, int]:
    """Number of each segment, from 1 on in the file's order, by the canonical name of its organ.

    Raises
    ------
    InputRefusedError
        If the header cannot be read, or two segments have one name.
    """
    return {name: number for number, name in enumerate(_segments(path, NrrdHeader.read(path)), start=1)}


def read_seg_nrrd(path: Path, wanted: Collection[str]) -> Volume:
    """The segments of these names as one volume of `segment_numbers`, uint16, on the file's own grid.

    Raises
    ------
    InputRefusedError
        If the file cannot be read, has a segment in a layer that is not there, or two of the wanted ones overlap, which
        numbers cannot say.
    """
    header = NrrdHeader.read(path)
    segments, layers = _segments(path, header), read_layers(path, header)
    array = np.zeros(layers[0].shape, np.uint16)
    names = list(segments)
    for number, (name, segment) in enumerate(segments.items(), start=1):
        if name not in wanted:
            continue
        if not 0 <= segment.layer < len(layers):
            raise InputRefusedError(
                f"{path}: segment '{name}' is in layer {segment.layer}; expected 0 to {len(layers) - 1}; save it again",
                "unreadable",
            )
        inside = layers[segment.layer].array == segment.value
        if array[inside].any():
            other = names[int(array[inside].max()) - 1]
            raise InputRefusedError(
                f"{path}: segments '{other}' and '{name}' overlap; expected one organ a voxel; score them one by one"
            )
        array[inside] = number
    return Volume(array, layers[0].affine)


def _segments(path: Path, header: NrrdHeader) -> dict[str, Segment]:
    """The segments by name. Slicer before version 4.11 gave each a layer of its own, and did not say so."""
    segments: dict[str, Segment] = {}
    for key, name in header.extra.items():
        if (found := _NAME.fullmatch(key)) is None:
            continue
        number, organ = int(found[1]), canonical_name(name)
        if organ in segments:
            raise InputRefusedError(f"{path}: two segments are named '{organ}'; give each organ one segment")
        layer, value = (
            header.extra.get(f"Segment{number}_{field}", default)
            for field, default in (("Layer", number if header.aside else 0), ("LabelValue", 1))
        )
        try:
            segments[organ] = Segment(int(layer), int(value))
        except ValueError:
            raise InputRefusedError(
                f"{path}: segment '{organ}' has layer {layer!r} and value {value!r}; expected numbers; save it again",
                "unreadable",
            ) from None
    return segments
