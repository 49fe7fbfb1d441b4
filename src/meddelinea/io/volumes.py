"""Volume files: what the user names is read or written by its kind.

Patient coordinates are RAS everywhere outside this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from meddelinea.endings import READ_SUFFIXES, SCAN_SUFFIXES, VOLUME_SUFFIXES, ending
from meddelinea.errors import InputRefusedError
from meddelinea.files import ensure_writable, whole
from meddelinea.io.archive import is_hidden, member_names, unzipped
from meddelinea.io.content import kind_of
from meddelinea.scan import Scan
from meddelinea.volume import Volume

#: How a DICOM-SEG stores voxels: one image of ids, or for each organ one of bits or one of shares.
SegmentationType = Literal["labelmap", "binary", "fractional"]
#: DICOM's words for a mask of a model alone, and for one that a person has changed.
Algorithm = Literal["AUTOMATIC", "SEMIAUTOMATIC"]


def read_volume(path: Path) -> Volume:
    """The voxels alone of what `read_scan` reads: for masks, and where it does not matter what was measured."""
    return read_scan(path).volume


def read_scan(path: Path) -> Scan:
    """Read a scan: NIfTI, Analyze, NRRD or MetaImage, a DICOM folder or file, or a zip of one of these.

    A file's contents say what it is (`content.kind_of`), its name only where they do not. The voxels are read when this
    returns, so a truncated file is found out here. The modality is known from DICOM only; other formats do not say it.

    Raises
    ------
    InputRefusedError
        If `path` does not exist, is of another kind, is damaged, or is not one 3D volume placed in the patient.
    """
    if not path.exists():
        raise InputRefusedError(f"{path}: no such file or folder; expected a scan; check the path", "not_found")
    match kind_of(path) if path.is_file() else None:  # what is neither file nor folder, such as a pipe, may never end
        case ".nii" | ".hdr":
            from meddelinea.io.nifti import read_nifti

            return read_nifti(path)
        case ".nrrd":
            from meddelinea.io.nrrd import read_nrrd

            return read_nrrd(path)
        case ".mha":
            from meddelinea.io.metaimage import read_metaimage

            return read_metaimage(path)
        case ".zip":
            return _read_zip(path)

    if not may_be_dicom(path):
        raise InputRefusedError(
            f"{path}: not a kind of file that is read; expected {', '.join(SCAN_SUFFIXES)}, or a DICOM folder; "
            "convert it",
            "unknown_kind",
        )
    from meddelinea.io.dicom import read_dicom

    return read_dicom(path)


def _read_zip(path: Path) -> Scan:
    """The one volume file in a zip, else its DICOM series."""
    from meddelinea.io.dicom import read_dicom
    from meddelinea.io.dicom_files import is_dicom

    names = [name for name in member_names(path) if ending(Path(name), (*READ_SUFFIXES, ".zip"))]
    if not names:
        return read_dicom(path)
    with unzipped(path) as folder:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not is_hidden(file, folder)]
        if not any(is_dicom(file) for file in files):
            volumes = [file for file in files if ending(file, READ_SUFFIXES)]
            if len(volumes) == 1:
                return replace(read_scan(volumes[0]), name=path.name, path=path)
            if volumes:
                listed = ", ".join(file.name for file in volumes[:5])
                raise InputRefusedError(
                    f"{path}: {len(volumes)} scans in the zip ({listed}); expected one; unpack it and give the folder",
                    "several_series",
                )
            raise InputRefusedError(
                f"{path}: a zip in a zip ({names[0]}); expected a scan; unpack it and give what is in it", "no_scan"
            )
    return read_dicom(path)


def may_be_dicom(path: Path) -> bool:
    """Whether a path that exists is a folder, a zip, or a file that says it is DICOM by its name or its mark."""
    if path.is_dir() or not path.is_file():  # what is neither, such as a pipe, may never end
        return path.is_dir()
    kind = kind_of(path)
    if kind is not None:
        return kind in (".zip", ".dcm")
    from meddelinea.io.dicom_files import is_dicom

    return is_dicom(path)


def write_volume(volume: Volume, path: Path, forms: Mapping[str, Any] | None = None) -> None:
    """Write a `.nii`, `.nii.gz`, `.nrrd` or `.mha` file whole or not at all; a file already there is replaced.

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
    match ending(path, VOLUME_SUFFIXES):
        case ".nrrd":
            from meddelinea.io.nrrd import write_nrrd

            write_nrrd(volume, path)
        case ".mha":
            from meddelinea.io.metaimage import write_metaimage

            write_metaimage(volume, path)
        case _:
            from meddelinea.io.nifti import write_nifti

            write_nifti(volume, path, forms)
