"""What most datasets share: images and labels as files of one name in two folders, and a JSON file about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from meddelinea.data.annotation import Labels
from meddelinea.data.case import Case, FoundCases
from meddelinea.endings import READ_SUFFIXES, by_stem
from meddelinea.errors import InputRefusedError
from meddelinea.json_files import read_object
from meddelinea.labels import LabelIds
from meddelinea.scan import Modality


def volumes(folder: Path, suffixes: tuple[str, ...] = READ_SUFFIXES) -> dict[str, Path]:
    """Volume files directly in a folder by their stem, as `files.by_stem`."""
    return by_stem(folder, suffixes)


def read_description(path: Path) -> dict[str, Any]:
    """A JSON file that describes a dataset.

    Raises
    ------
    InputRefusedError
        If it cannot be read, or holds no object.
    """
    return read_object(path, "an object that describes the dataset")


def regions_of(content: Mapping[str, Any], path: Path) -> Mapping[str, tuple[int, ...]]:
    """Canonical name -> ids, as the entry `labels` of a description has it; the background is left out.

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


def match(
    dataset: str,
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    mask_of: Callable[[str], Path],
    *,
    labels: Callable[[Path], Labels],
    modality: Modality,
    patient: Callable[[str], str] = str,
) -> FoundCases:
    """Cases of the names that have both an image and a mask; a name that has one of them is broken.

    Parameters
    ----------
    dataset
        Name of the layout.
    images, masks
        Files by the name of their case.
    mask_of
        Where the mask of a name is expected, for the message.
    labels, patient
        What the file of a mask means, and whom a case shows by its name.
    """
    broken = {
        name: f"{image}: its mask {mask_of(name)} is missing; complete the dataset or remove the image"
        for name, image in images.items()
        if name not in masks
    }
    broken |= {
        name: f"{mask}: its image {name} is missing; complete the dataset or remove the mask"
        for name, mask in masks.items()
        if name not in images
    }
    cases = (
        Case(
            name=name,
            dataset=dataset,
            patient=patient(name),
            image=images[name],
            labels=labels(masks[name]),
            modality=modality,
        )
        for name in images.keys() & masks.keys()
    )
    return FoundCases(tuple(cases), broken)


def joined(parts: list[FoundCases]) -> FoundCases:
    """All cases of several folders."""
    return FoundCases(
        tuple(case for part in parts for case in part.cases),
        {name: reason for part in parts for name, reason in part.broken.items()},
    )


def root_with(source: Path, *names: str) -> Path | None:
    """`source`, or the one folder in it, that holds an entry of one of these names; None if there is not one."""
    holders = [
        folder
        for folder in (source, *sorted(path for path in source.iterdir() if path.is_dir()))
        if any((folder / name).exists() for name in names)
    ]
    if source in holders:
        return source
    return holders[0] if len(holders) == 1 else None
