"""Finding the cases of public datasets in the layout that they are published in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.labels import BTCV


@dataclass(frozen=True)
class Case:
    """A labelled scan on disk: its name, image file, mask file, and what the mask's ids mean."""

    name: str
    image: Path
    mask: Path
    numbering: Mapping[int, str]
    modality: str


def find_btcv(source: Path) -> list[Case]:
    """Cases of BTCV: `img/imgNNNN.nii.gz` with `label/labelNNNN.nii.gz`, in `source` or its folder `Training`.

    Raises
    ------
    InputRefusedError
        If there is no image, or an image has no mask.
    """
    root = source / "Training" if (source / "Training").is_dir() else source
    images = sorted((root / "img").glob("img*.nii.gz"))
    if not images:
        raise InputRefusedError(f"{root}: no img/imgNNNN.nii.gz; expected BTCV's folders img and label")
    cases = []
    for image in images:
        number = re.sub(r"\D", "", image.name)
        mask = root / "label" / f"label{number}.nii.gz"
        if not mask.is_file():
            raise InputRefusedError(f"{image}: its mask {mask} is missing; complete the dataset or remove the image")
        cases.append(Case(image.name.removesuffix(".nii.gz"), image, mask, BTCV, "CT"))
    return cases


FORMATS: Mapping[str, Callable[[Path], list[Case]]] = {"btcv": find_btcv}


def find_cases(layout: str, source: Path) -> list[Case]:
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
