"""A labelled scan on disk, in whatever form its dataset keeps the labels, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meddelinea.data.annotation import LabelMap as LabelMap  # where a case is made, its labels are
from meddelinea.data.annotation import Labels
from meddelinea.errors import InputRefusedError
from meddelinea.io.volumes import read_volume
from meddelinea.volume import Modality, Volume


@dataclass(frozen=True, kw_only=True)
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
        Where and how its labels are kept.
    modality
        What the dataset says it is.
    """

    name: str
    dataset: str
    patient: str
    image: Path
    labels: Labels
    modality: Modality


@dataclass(frozen=True)
class FoundCases:
    """The cases of a dataset in order of their names, and what is wrong with the others: name -> reason."""

    cases: tuple[Case, ...]
    broken: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class LabelledScan:
    """A scan and its mask on the same grid.

    Parameters
    ----------
    scan
        (I, J, K) grey values, with the case's modality.
    mask
        (I, J, K) uint8 ids 1..L of `organs`.
    organs
        Canonical names, L of them.
    remarks
        What a person should know of it, such as organs whose masks overlap, a line each.
    """

    scan: Volume
    mask: Volume
    organs: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def air(self) -> float:
        """What lies outside the patient or the field of view: the scan's lowest value."""
        return float(self.scan.array.min())

    def with_grey(self, array: NDArray[np.float32]) -> LabelledScan:
        """The same anatomy in other grey values, (I, J, K)."""
        return replace(self, scan=Volume(array, self.scan.affine, self.scan.modality))


def read_case(case: Case, organs: tuple[str, ...]) -> LabelledScan:
    """Read a case, its labels as ids 1..L of `organs`.

    An organ of `organs` that the case has no labels of is background in the mask, and remarked on.

    Raises
    ------
    InputRefusedError
        If a file is missing or damaged, image and labels lie on different grids, labels have no meaning, or a DICOM
        image is of another modality than the dataset says.
    """
    raw = read_volume(case.image)
    if raw.modality not in (None, case.modality):
        raise InputRefusedError(
            f"{case.image}: modality {raw.modality} by its header; expected {case.modality} by the dataset; "
            "correct the dataset's description"
        )
    scan = Volume(raw.array, raw.affine, case.modality)
    ids, remarks = case.labels.read(scan, case.image, organs)
    unlabelled = [organ for organ in organs if organ not in case.labels.organs]
    if unlabelled:
        remarks = (*remarks, f"no labels of {', '.join(unlabelled)}: background here")
    return LabelledScan(scan, Volume(ids, scan.affine), organs, remarks)
