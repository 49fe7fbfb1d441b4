"""Volume files: what the user names is read or written by its kind.

Patient coordinates are RAS everywhere outside this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from meddelinea.errors import InputRefusedError
from meddelinea.files import READ_SUFFIXES, SCAN_SUFFIXES, ending, ensure_writable, whole
from meddelinea.scan import Scan
from meddelinea.volume import Volume

#: How a DICOM-SEG stores voxels: one image of ids, or for each organ one of bits or one of shares.
SegmentationType = Literal["labelmap", "binary", "fractional"]


def read_volume(path: Path) -> Volume:
    """The voxels alone of what `read_scan` reads: for masks, and where it does not matter what was measured."""
    return read_scan(path).volume


def read_scan(path: Path) -> Scan:
    """Read a scan: `.nii`, `.nii.gz`, `.nrrd`, `.nhdr`, a DICOM folder, a zip of one, or one multi-frame DICOM file.

    The voxels are read when this returns, so a truncated file is found out here. The modality is known from DICOM
    only; other formats do not say it.

    Raises
    ------
    InputRefusedError
        If `path` does not exist, is of another kind, is damaged, or is not one 3D volume placed in the patient.
    """
    if not path.exists():
        raise InputRefusedError(f"{path}: no such file or folder; expected a scan; check the path", "not_found")
    match ending(path, READ_SUFFIXES) if path.is_file() else None:
        case ".nii" | ".nii.gz":
            from meddelinea.io.nifti import read_nifti

            return read_nifti(path)
        case ".nrrd" | ".nhdr":
            from meddelinea.io.nrrd import read_nrrd

            return read_nrrd(path)

    if not may_be_dicom(path):
        raise InputRefusedError(
            f"{path}: not a kind of file that is read; expected {', '.join(SCAN_SUFFIXES)}, or a DICOM folder; "
            "convert it",
            "unknown_kind",
        )
    from meddelinea.io.dicom import read_dicom

    return read_dicom(path)


def may_be_dicom(path: Path) -> bool:
    """Whether a path that exists is a folder, a zip, or a file that says it is DICOM by its name or its mark."""
    if path.is_dir() or not path.is_file():  # what is neither, such as a pipe, may never end
        return path.is_dir()
    if ending(path, READ_SUFFIXES):
        return False
    from meddelinea.io.dicom_files import is_dicom

    return ending(path, (".zip", ".dcm")) is not None or is_dicom(path)


def write_volume(volume: Volume, path: Path, forms: Mapping[str, Any] | None = None) -> None:
    """Write a `.nii`, `.nii.gz` or `.nrrd` file whole or not at all; a file already there is replaced.

    Parameters
    ----------
    forms
        `Scan.forms` of the scan on whose grid the volume lies, for a NIfTI to carry.

    Raises
    ------
    InputRefusedError
        If the ending is another, or the folder is missing, not writable or full.
    """
    ensure_writable(path)
    with whole(path) as part:
        write_voxels(volume, part, forms)


def write_voxels(volume: Volume, path: Path, forms: Mapping[str, Any] | None = None) -> None:
    """Write as `write_volume` does, but straight to `path`: for a name inside `files.whole_together`."""
    if ending(path, (".nrrd",)):
        from meddelinea.io.nrrd import write_nrrd

        write_nrrd(volume, path)
    else:
        from meddelinea.io.nifti import write_nifti

        write_nifti(volume, path, forms)
