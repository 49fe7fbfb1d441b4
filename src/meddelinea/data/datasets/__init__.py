"""Finding the cases of public datasets in the layout that they are published in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from meddelinea.data.case import Case, FoundCases
from meddelinea.data.datasets.chaos import find_chaos
from meddelinea.data.datasets.dataset_json import find_amos, find_msd, find_nnunet
from meddelinea.data.datasets.organ_folders import find_abdomenatlas, find_totalsegmentator
from meddelinea.data.datasets.paired_folders import (
    find_btcv,
    find_chaos_nifti,
    find_cirrmri,
    find_pairs,
    find_pansegdata,
)
from meddelinea.errors import InputRefusedError, UsageError

#: What finds the cases of each layout, by the name that a user gives it.
FORMATS: Mapping[str, Callable[[Path], FoundCases]] = {
    "abdomenatlas": find_abdomenatlas,
    "amos": find_amos,
    "btcv": find_btcv,
    "chaos": find_chaos,
    "chaos-nifti": find_chaos_nifti,
    "cirrmri": find_cirrmri,
    "msd": find_msd,
    "nnunet": find_nnunet,
    "pairs": find_pairs,
    "pansegdata": find_pansegdata,
    "totalsegmentator": find_totalsegmentator,
}


def find_cases(layout: str, source: Path) -> FoundCases:
    """Cases of a dataset in a known layout, in order of their names.

    Raises
    ------
    UsageError
        If the layout is unknown.
    InputRefusedError
        If the folder does not exist or does not hold that layout, or holds two cases of one name.
    """
    if layout not in FORMATS:
        raise UsageError(f"unknown dataset format '{layout}'; known: {', '.join(sorted(FORMATS))}")
    if not source.is_dir():
        raise InputRefusedError(f"{source}: no such folder; expected the folder of a dataset in format '{layout}'")
    found = FORMATS[layout](source.absolute())  # sequence or release may stand in the folder's own name
    images: dict[str, Path] = {}
    for case in found.cases:
        if case.name in images:
            raise InputRefusedError(
                f"{images[case.name]} and {case.image}: two cases called {case.name}; keep one of them in {source}"
            )
        images[case.name] = case.image
    return FoundCases(tuple(sorted(found.cases, key=lambda case: case.name)), dict(sorted(found.broken.items())))


def organs_of(cases: tuple[Case, ...]) -> tuple[str, ...]:
    """Canonical names of all organs that the cases may have labels of, in the order in which the dataset lists them.

    Known from numberings and file names; no voxel is read.
    """
    return tuple(dict.fromkeys(organ for case in cases for organ in case.labels.organs))
