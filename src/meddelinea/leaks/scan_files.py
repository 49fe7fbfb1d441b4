"""Finding the scans in a folder that also holds masks and other files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.misc import is_dicom

from meddelinea.errors import InputRefusedError

SCAN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".zip")
#: Above this share of voxels that equal their neighbour, a volume shows labels: a scan's noise keeps it below a third.
LABEL_SHARE = 0.6


@dataclass(frozen=True)
class ScanFiles:
    """Files and DICOM folders that may be scans, and other files that are not, in order of their paths."""

    scans: tuple[Path, ...]
    others: tuple[Path, ...]


def scan_files(source: Path) -> ScanFiles:
    """The scans of a folder and of the folders in it, or `source` itself if it is a file.

    A folder with DICOM files and no other volume is one scan, with all that is in it. Hidden files are not looked at.

    Raises
    ------
    InputRefusedError
        If there is no such path, or nothing in it may be a scan.
    """
    if not source.exists():
        raise InputRefusedError(f"{source}: no such file or folder; check the path")
    found = _search(source) if source.is_dir() else ScanFiles((source,), ())
    if not found.scans:
        raise InputRefusedError(f"{source}: no scan in it; expected NIfTI or NRRD files, DICOM folders or zips of them")
    return found


def _search(folder: Path) -> ScanFiles:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    scans = [entry for entry in entries if entry.is_file() and entry.name.lower().endswith(SCAN_SUFFIXES)]
    others = [entry for entry in entries if entry.is_file() and entry not in scans]
    if not scans and any(is_dicom(entry) for entry in others):
        return ScanFiles((folder,), ())
    for entry in entries:
        if entry.is_dir():
            inner = _search(entry)
            scans.extend(inner.scans)
            others.extend(inner.others)
    return ScanFiles(tuple(sorted(scans)), tuple(sorted(others)))


def is_label_map(array: NDArray[np.generic]) -> bool:
    """Whether a volume shows labels and not grey values.

    Labels are at most 256 whole numbers from 0 up that mostly equal their neighbour; the commonest value is left out,
    as a scan's air may be as even as a mask's background. A volume of one value counts as an empty mask.
    """
    values = np.asarray(array[:, ::2, ::2])
    if not np.array_equal(values, np.rint(values)) or values.min() < 0:  # also where values are not finite
        return False
    names, counts = np.unique(values, return_counts=True)
    if len(names) == 1:
        return True
    first, second = values[:-1], values[1:]
    looked_at = first != names[counts.argmax()]
    same = np.count_nonzero((first == second) & looked_at)
    return bool(len(names) <= 256 and same > LABEL_SHARE * np.count_nonzero(looked_at))
