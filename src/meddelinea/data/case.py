"""A labelled scan on disk, in whatever form its dataset keeps the labels, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meddelinea.errors import InputRefusedError
from meddelinea.io import read_volume
from meddelinea.labels import renumber
from meddelinea.volume import Modality, Volume


@dataclass(frozen=True)
class LabelMap:
    """One file of organ ids, and what the ids mean."""

    path: Path
    numbering: Mapping[int, str]


@dataclass(frozen=True)
class Case:
    """A labelled scan of a dataset.

    Parameters
    ----------
    name
        Unique within the dataset; the name of the case everywhere after.
    dataset
        Name of the layout it was found in.
    patient
        Whom it shows: cases of one patient are never split between training and test.
    image
        File, or DICOM folder, of the scan.
    labels
        Where its labels are.
    modality
        What the dataset says it is.
    """

    name: str
    dataset: str
    patient: str
    image: Path
    labels: LabelMap
    modality: Modality


@dataclass(frozen=True)
class FoundCases:
    """The cases of a dataset in order of their names, and what is wrong with the others: name -> reason."""

    cases: tuple[Case, ...]
    broken: Mapping[str, str]


@dataclass(frozen=True)
class LabelledScan:
    """A scan and its mask on the same grid.

    Parameters
    ----------
    scan
        With the case's modality.
    mask
        uint8 ids 1..L of the organs asked for.
    remarks
        What a person should know of it, such as organs whose masks overlap, a line each.
    """

    scan: Volume
    mask: Volume
    remarks: tuple[str, ...]


def read_case(case: Case, organs: tuple[str, ...]) -> LabelledScan:
    """Read a case, its labels as ids 1..L of `organs`.

    Raises
    ------
    InputRefusedError
        If a file is missing or damaged, or image and mask lie on different grids.
    """
    raw, mask = read_volume(case.image), read_volume(case.labels.path)
    scan = Volume(raw.array, raw.affine, case.modality)
    if scan.array.shape != mask.array.shape or not np.allclose(scan.affine, mask.affine, atol=1e-2):
        raise InputRefusedError(f"{case.labels.path}: shape {mask.array.shape} or affine differs from {case.image}'s")
    ids = renumber(np.rint(mask.array).astype(np.int64), case.labels.numbering, organs)
    return LabelledScan(scan, Volume(ids, mask.affine), ())
