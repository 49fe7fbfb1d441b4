"""Images and their labels as files of one name in two folders, the form that most datasets share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from meddelinea.data.case import Case, FoundCases
from meddelinea.errors import InputRefusedError
from meddelinea.files import READ_SUFFIXES, by_stem


def volumes(folder: Path, suffixes: tuple[str, ...] = READ_SUFFIXES) -> dict[str, Path]:
    """Volume files directly in a folder by their stem, as `files.by_stem`."""
    return by_stem(folder, suffixes)


def match(
    images: Mapping[str, Path],
    masks: Mapping[str, Path],
    case: Callable[[str, Path, Path], Case],
    mask_of: Callable[[str], Path],
) -> FoundCases:
    """Cases of the names that have both an image and a mask; a name that has one of them is broken.

    So is a name for which `case` raises `InputRefusedError`.

    Parameters
    ----------
    images, masks
        Files by the name of their case.
    case
        Makes a case of (name, image, mask).
    mask_of
        Where the mask of a name is expected, for the message.
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
    cases = []
    for name in images.keys() & masks.keys():
        try:
            cases.append(case(name, images[name], masks[name]))
        except InputRefusedError as error:
            broken[name] = str(error)
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
