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
from meddelinea.io.volumes import read_scan
from meddelinea.scan import Modality, Scan
from meddelinea.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Case:
    """A labelled scan of a dataset."""

    name: str  # unique within the dataset; the name of the case everywhere after
    dataset: str  # name of the layout it was found in
    patient: str  # whom it shows: cases of one patient are never split between training and test
    image: Path  # file, or DICOM folder, of the scan
    labels: Labels  # where and how its labels are kept
    modality: Modality  # what the dataset says it is


@dataclass(frozen=True)
class FoundCases:
    """The cases of a dataset in order of their names, and what is wrong with the others: name -> reason."""

    cases: tuple[Case, ...]
    broken: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledScan:
    """A scan and its mask on the same grid."""

    scan: Scan  # the scan, under the case's name and with its modality
    mask: Volume  # (I, J, K) uint8 ids 1..L of `organs`
    organs: tuple[str, ...]  # canonical names, L of them
    remarks: tuple[str, ...] = ()  # what a person should know of it, such as organs whose masks overlap, a line each

    @property
    def volume(self) -> Volume:
        """The voxels of the scan."""
        return self.scan.volume

    @property
    def air(self) -> float:
        """What lies outside the patient or the field of view: the scan's lowest value."""
        return float(self.volume.array.min())

    def with_voxels(self, volume: Volume, mask: Volume) -> LabelledScan:
        """The same case with another scan and mask, on one grid."""
        return replace(self, scan=replace(self.scan, volume=volume), mask=mask)

    def with_grey(self, array: NDArray[np.float32]) -> LabelledScan:
        """The same anatomy in other grey values, (I, J, K)."""
        return self.with_voxels(Volume(array, self.volume.affine), self.mask)


def read_case(case: Case, organs: tuple[str, ...]) -> LabelledScan:
    """Read a case, its labels as ids 1..L of `organs`.

    An organ of `organs` that the case has no labels of is background in the mask, and remarked on.

    Raises
    ------
    InputRefusedError
        If a file is missing or damaged, image and labels lie on different grids, labels have no meaning, or a DICOM
        image is of another modality than the dataset says.
    """
    scan = read_scan(case.image)
    if scan.modality not in (None, case.modality):
        raise InputRefusedError(
            f"{case.image}: modality {scan.modality} by its header; expected {case.modality} by the dataset; "
            "correct the dataset's description"
        )
    ids, remarks = case.labels.read(scan, organs)
    unlabelled = [organ for organ in organs if organ not in case.labels.organs]
    if unlabelled:
        remarks = (*remarks, f"no labels of {', '.join(unlabelled)}: background here")
    return LabelledScan(
        scan=replace(scan, name=case.name, modality=case.modality),
        mask=Volume(ids, scan.volume.affine),
        organs=organs,
        remarks=remarks,
    )
