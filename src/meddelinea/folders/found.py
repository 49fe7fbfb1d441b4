"""Which scans of a folder or a list are to be segmented, and where each mask goes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.misc import is_dicom

from meddelinea.errors import InputRefusedError
from meddelinea.files import SCAN_SUFFIXES, VOLUME_SUFFIXES, stem
from meddelinea.results.files import sidecar_path


@dataclass(frozen=True)
class ScanCase:
    """A scan among others.

    Parameters
    ----------
    name
        Unique: what reports call it.
    source
        The scan.
    output
        Its mask.
    """

    name: str
    source: Path
    output: Path


@dataclass(frozen=True)
class FoundScans:
    """The scans in order of their names, and entries of the folder that are none."""

    cases: tuple[ScanCase, ...]
    others: tuple[Path, ...] = ()


def find_scans(source: Path, output: Path) -> FoundScans:
    """The scans of a folder or a CSV list.

    Parameters
    ----------
    source
        A folder with NIfTI and NRRD files, zips and sub-folders with DICOM files, or with the DICOM files of one scan;
        hidden entries are not looked at. Or a CSV file with the columns `input`, relative to its own folder, and
        `output`, relative to the folder `output`.
    output
        Folder of the masks, named after the scans: `a.nrrd` -> `a.nii.gz`.

    Raises
    ------
    InputRefusedError
        If there is no scan, two masks would share a file, a mask would overwrite a scan, or the list is not one.
    """
    found = _listed(source, output) if source.is_file() else _in_folder(source, output)
    if not found.cases:
        raise InputRefusedError(
            f"{source}: no scan in it; expected NIfTI or NRRD files, zips or DICOM folders directly inside"
        )
    taken: dict[str, ScanCase] = {}
    for case in found.cases:
        other = taken.setdefault(str(sidecar_path(case.output).resolve()).lower(), case)
        if other is not case:
            raise InputRefusedError(
                f"{case.source} and {other.source}: both masks would be {case.output}; rename one, or give a list"
            )
    scans = {case.source.resolve() for case in found.cases}
    for case in found.cases:
        if case.output.resolve() in scans:
            raise InputRefusedError(f"{case.output}: this mask would overwrite a scan; choose another folder")
    return found


def _in_folder(folder: Path, output: Path) -> FoundScans:
    if not folder.is_dir():
        raise InputRefusedError(f"{folder}: no such file or folder; check the path")
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    scans = [entry for entry in entries if _is_scan(entry)]
    if not scans and any(_is_dicom(entry) for entry in entries):
        return FoundScans((ScanCase(folder.resolve().name, folder, output / f"{folder.resolve().name}.nii.gz"),))
    others = tuple(entry for entry in entries if entry not in scans and entry.resolve() != output.resolve())
    names = [_stem(scan) for scan in scans]
    cases = (ScanCase(name, scan, output / f"{name}.nii.gz") for name, scan in zip(names, scans, strict=True))
    return FoundScans(tuple(cases), others)


def _is_scan(entry: Path) -> bool:
    if entry.is_dir():
        return any(_is_dicom(path) for path in sorted(entry.rglob("*")))
    return entry.name.lower().endswith(SCAN_SUFFIXES)


def _is_dicom(path: Path) -> bool:
    try:
        return path.is_file() and bool(is_dicom(path))
    except OSError:  # not readable: not known to be one
        return False


def _stem(scan: Path) -> str:
    """Name of a scan without its ending."""
    return scan.name if scan.is_dir() else stem(scan)


def _listed(path: Path, output: Path) -> FoundScans:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return FoundScans(tuple(_rows(path, csv.DictReader(stream), output)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputRefusedError(f"{path}: not a readable CSV list ({error}); save it as CSV in UTF-8") from error


def _rows(path: Path, reader: csv.DictReader[str], output: Path) -> Iterator[ScanCase]:
    names = reader.fieldnames or ()
    if not {"input", "output"} <= set(names):
        raise InputRefusedError(f"{path}: the columns are {', '.join(names) or 'none'}; expected input,output")
    for row in reader:
        scan, mask = (str(row[column] or "").strip() for column in ("input", "output"))
        if not scan or not mask.lower().endswith(VOLUME_SUFFIXES):
            raise InputRefusedError(
                f"{path}: line {reader.line_num} reads {scan!r},{mask!r}; expected a scan and a mask's name that ends "
                f"in {', '.join(VOLUME_SUFFIXES)}"
            )
        yield ScanCase(mask, path.parent / scan, output / mask)
