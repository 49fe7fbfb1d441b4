"""A scan as it travels from its file to its results: voxels, what they measure, and all that is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from meddelinea.findings import Finding
from meddelinea.volume import Volume

Modality = Literal["CT", "MR"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A scan of a patient, made once by a reader of `io` and passed on to checks, segmentation and results.

    Parameters
    ----------
    volume
        (I, J, K) voxels: Hounsfield units for a CT, arbitrary units for an MR.
    modality
        `"CT"` or `"MR"`; None while nobody has said it. `checks.scan.examine` decides.
    name
        File name of the scan, or what stands for it.
    path
        Where it was read from; None for one that was not.
    findings
        What is to be known of it: what its header says to its reader, then what `examine` found.
    series
        The DICOM series that it was read from; None for one of another kind.
    forms
        The fields of its NIfTI header that place it (`io.nifti_forms`), which masks carry on so that each program finds
        them where it finds the scan; None for one of another kind.
    """

    volume: Volume
    modality: Modality | None = None
    name: str = "the scan"
    path: Path | None = None
    findings: tuple[Finding, ...] = ()
    series: DicomSeries | None = None
    forms: Mapping[str, Any] | None = None

    @property
    def place(self) -> str:
        """What messages call it: its path, or its name where it has none."""
        return self.name if self.path is None else str(self.path)


@dataclass(frozen=True, kw_only=True, eq=False)
class DicomSeries:
    """The DICOM series of a scan, which DICOM outputs refer to. It outlives its files and holds no pixels.

    Parameters
    ----------
    path
        What the user named: a folder, a file or a zip.
    frames
        Its slices in the order of the volume's last axis, two at least.
    headers
        The whole header of each file by its path, in the order of the slices.
    """

    path: Path
    frames: tuple[Frame, ...]
    headers: Mapping[Path, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows and slices."""
        rows, columns = self.frames[0].shape
        return int(columns), int(rows), len(self.frames)

    @property
    def slice_step_mm(self) -> NDArray[np.float64]:
        """(3,) from one slice to the next, LPS; along the normal unless the gantry was tilted."""
        step: NDArray[np.float64] = self.frames[-1].position_mm - self.frames[0].position_mm
        return step / (len(self.frames) - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One slice of a DICOM series: where its pixels are stored, where it lies (LPS), and what its values mean.

    Parameters
    ----------
    path, index
        The file, and the frame's number in it from 0 (0 where a file holds one slice).
    position_mm
        (3,) centre of the first pixel.
    orientation
        (6,) unit vectors along increasing column index (first three) and increasing row index.
    pixel_spacing_mm
        (2,) distance between rows, then between columns.
    shape
        (2,) number of rows, then of columns.
    slope, intercept
        Stored value times `slope` plus `intercept` is the value; None where the header does not say it, which means 1
        and 0.
    unit
        Of the values: `"HU"` in a CT, `"US"` where it is unspecified.
    thickness_mm
        Nominal thickness; None where the header does not say it.
    """

    path: Path
    index: int
    position_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]
    pixel_spacing_mm: NDArray[np.float64]
    shape: NDArray[np.int64]
    slope: float | None
    intercept: float | None
    unit: str
    thickness_mm: float | None = None

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector across the slice: column direction times row direction, right-handed."""
        return np.cross(self.orientation[:3], self.orientation[3:])
