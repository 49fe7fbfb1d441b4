"""Finding the cases of public datasets in the layout that they are published in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from meddelinea.data.case import Case, FoundCases, LabelMap
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.labels import BTCV


def find_btcv(source: Path) -> FoundCases:
    """Cases of BTCV: `img/imgNNNN.nii.gz` with `label/labelNNNN.nii.gz`, in `source` or its folder `Training`.

    Raises
    ------
    InputRefusedError
        If there is no image.
    """
    root = source / "Training" if (source / "Training").is_dir() else source
    images = sorted((root / "img").glob("img*.nii.gz"))
    if not images:
        raise InputRefusedError(f"{root}: no img/imgNNNN.nii.gz; expected BTCV's folders img and label")
    cases, broken = [], {}
    for image in images:
        name = image.name.removesuffix(".nii.gz")
        number = re.sub(r"\D", "", name)
        mask = root / "label" / f"label{number}.nii.gz"
        if mask.is_file():
            cases.append(Case(name, "btcv", number, image, LabelMap(mask, BTCV), "CT"))
        else:
            broken[name] = f"{image}: its mask {mask} is missing; complete the dataset or remove the image"
    return FoundCases(tuple(cases), broken)


FORMATS: Mapping[str, Callable[[Path], FoundCases]] = {"btcv": find_btcv}


def find_cases(layout: str, source: Path) -> FoundCases:
    """Cases of a dataset in a known layout, in order of their names.

    Raises
    ------
    UsageError
        If the layout is unknown.
    InputRefusedError
        If the folder does not hold that layout.
    """
    if layout not in FORMATS:
        raise UsageError(f"unknown dataset format '{layout}'; known: {', '.join(sorted(FORMATS))}")
    return FORMATS[layout](source)
