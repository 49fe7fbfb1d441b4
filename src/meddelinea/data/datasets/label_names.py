"""What label ids mean, as `dataset.json` of nnU-Net and of the Medical Segmentation Decathlon says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meddelinea.data.annotation import LabelMap, RegionMap
from meddelinea.errors import InputRefusedError
from meddelinea.labels import canonical_name

_FORM = '"labels": {"liver": 1} or {"1": "liver"}'


def read_description(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises
    ------
    InputRefusedError
        If it is not one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputRefusedError(
            f"{path}: not readable as JSON ({error}); expected the dataset's description"
        ) from error
    if not isinstance(content, dict):
        raise InputRefusedError(f"{path}: a JSON {type(content).__name__}; expected an object with {_FORM}")
    return content


def regions_of(content: dict[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Canonical name -> ids of its voxels, from the entry `labels` of a description; the background is left out.

    Names may stand before ids (nnU-Net 2, where a region lists several) or behind them (the Decathlon, nnU-Net 1).

    Raises
    ------
    InputRefusedError
        If there is no such entry, an id is no whole number of at least 0, or voxels are marked to be ignored.
    """
    table = content.get("labels")
    if not isinstance(table, dict) or not table:
        raise InputRefusedError(f"{path}: no label names; expected {_FORM}")
    if all(str(key).isdecimal() for key in table):
        entries = [(name, int(index)) for index, name in table.items()]
    else:
        entries = [(name, ids) for name, ids in table.items()]
    regions: dict[str, tuple[int, ...]] = {}
    for name, value in entries:
        ids = tuple(value) if isinstance(value, list) else (value,)
        if not isinstance(name, str) or not all(type(index) is int and index >= 0 for index in ids):
            raise InputRefusedError(f"{path}: label {name!r} is {value!r}; expected {_FORM}")
        organ = canonical_name(name)
        if organ == "ignore":
            raise InputRefusedError(
                f"{path}: label 'ignore' leaves voxels without annotation; expected full labels; drop those cases"
            )
        if any(ids):
            regions[organ] = (*regions.get(organ, ()), *ids)
    return regions


def labels_in(path: Path, regions: dict[str, tuple[int, ...]]) -> LabelMap | RegionMap:
    """A label file whose ids mean this: a plain numbering wherever no id belongs to two regions."""
    ids = [index for members in regions.values() for index in members]
    if len(set(ids)) < len(ids):
        return RegionMap(path, regions)
    return LabelMap(path, {index: name for name, members in regions.items() for index in members})
