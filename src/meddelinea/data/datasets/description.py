"""What a dataset says of its own labels in `dataset.json` or `labels.json`, and the files whose ids mean that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meddelinea.data.annotation import LabelMap, RegionMap
from meddelinea.errors import InputRefusedError
from meddelinea.files import read_object
from meddelinea.labels import LabelIds

#: Canonical name -> the ids of its voxels.
Regions = Mapping[str, tuple[int, ...]]


def read_description(path: Path) -> dict[str, Any]:
    """A JSON file that describes a dataset.

    Raises
    ------
    InputRefusedError
        If it cannot be read, or holds no object.
    """
    return read_object(path, "an object that describes the dataset")


def regions_of(content: Mapping[str, Any], path: Path) -> Regions:
    """The regions that the entry `labels` of a description names; the background is left out.

    Raises
    ------
    InputRefusedError
        As `LabelIds.of`, or if voxels are marked to be ignored.
    """
    regions = LabelIds.of(content.get("labels"), str(path)).regions
    if "ignore" in regions:
        raise InputRefusedError(
            f"{path}: label 'ignore' leaves voxels without annotation; expected full labels; drop those cases"
        )
    return regions


def labels_in(path: Path, regions: Regions) -> LabelMap | RegionMap:
    """A label file whose ids mean this: a plain numbering wherever no id belongs to two regions."""
    ids = [index for members in regions.values() for index in members]
    if len(set(ids)) < len(ids):
        return RegionMap(path, regions)
    return LabelMap(path, {index: name for name, members in regions.items() for index in members})
