"""Which files and folders are scans; which of them are to be segmented, and where each mask goes."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meddelinea.collisions import Identity, identities
from meddelinea.endings import SCAN_SUFFIXES, VOLUME_SUFFIXES, ending, stem, visible
from meddelinea.errors import InputRefusedError, OutputClashError
from meddelinea.io.dicom_files import is_dicom
from meddelinea.results.files import sidecar_path
from meddelinea.tables import unescaped


@dataclass(frozen=True)
class ScanCase:
    """A scan among others.

    Parameters
    ----------
    name
        Unique name, which reports use.
    source
        File or DICOM folder of the scan.
    output
        File of its mask, to be written.
    """

    name: str
    source: Path
    output: Path


@dataclass(frozen=True)
class FoundScans:
    """The scans in order of their names, entries of the folder that are none, and the list that the scans are from."""

    cases: tuple[ScanCase, ...]
    others: tuple[Path, ...] = ()
    listing: Path | None = None


@dataclass(frozen=True)
class ScanFiles:
    """Files and DICOM folders that may be scans, and other files that are not, in order of their paths."""

    scans: tuple[Path, ...]
    others: tuple[Path, ...] = ()


def find_scans(source: Path, output: Path) -> FoundScans:
    """The scans of a folder or a CSV list.

    Parameters
    ----------
    source
        A folder with NIfTI, NRRD and MetaImage files, zips and sub-folders with DICOM files, or with the DICOM files of
        one scan; hidden entries are not looked at. Or a CSV file as spreadsheets save it, in UTF-8 or UTF-16, with the
        columns `input`, relative to its own folder, and `output`, relative to the folder `output`.
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
            f"{source}: no scan in it; expected NIfTI, NRRD or MetaImage files, zips or DICOM folders directly inside"
        )
    scans = {identity for case in found.cases for identity in identities(case.source)}
    taken: dict[Identity, ScanCase] = {}
    for case in found.cases:
        for identity in identities(sidecar_path(case.output)):
            other = taken.setdefault(identity, case)
            if other is not case:
                remedy = "rename one, or give a list" if found.listing is None else "give each line another output"
                raise OutputClashError(
                    f"{case.source} and {other.source}: both masks would be {case.output}; {remedy}", "output_clash"
                )
        if scans & identities(case.output):
            raise OutputClashError(
                f"{case.output}: this mask would overwrite a scan; choose another folder", "output_clash"
            )
    return found


def scan_files(source: Path) -> ScanFiles:
    """The scans of a folder and of all folders in it, or `source` itself if it is a file.

    A file with the ending of a scan is one. A folder that holds DICOM files is one, with all DICOM files below it.
    Hidden entries are not looked at.

    Raises
    ------
    InputRefusedError
        If there is no such path, or nothing in it may be a scan.
    """
    if not source.exists():
        raise InputRefusedError(f"{source}: no such file or folder; check the path")
    found = _search(source) if source.is_dir() else ScanFiles((source,))
    if not found.scans:
        raise InputRefusedError(
            f"{source}: no scan in it; expected NIfTI, NRRD or MetaImage files, DICOM folders or zips of them"
        )
    return found


def _search(folder: Path, seen: set[str] | None = None) -> ScanFiles:
    """The scans of a folder; itself where it cannot be listed, so that whoever reads it says why.

    `seen` are the real folders that were searched: links may lead round in a circle.
    """
    seen = set() if seen is None else seen
    seen.add(os.path.realpath(folder))
    try:
        entries = visible(folder)
    except OSError:
        return ScanFiles((folder,))
    scans = [entry for entry in entries if entry.is_file() and _is_scan(entry)]
    others = [entry for entry in entries if entry.is_file() and entry not in scans]
    is_series = any(_is_dicom(entry) for entry in others)
    below = [_search(entry, seen) for entry in entries if entry.is_dir() and os.path.realpath(entry) not in seen]
    inner = [scan for found in below for scan in found.scans]
    if is_series:  # what lies below belongs to it, but for files that are scans by themselves
        return ScanFiles(tuple(sorted([folder, *scans, *(scan for scan in inner if not scan.is_dir())])))
    return ScanFiles(
        tuple(sorted([*scans, *inner])), tuple(sorted([*others, *(other for found in below for other in found.others)]))
    )


def _in_folder(folder: Path, output: Path) -> FoundScans:
    """The entries of a folder that are scans; the folder itself where it holds nothing but the files of a series."""
    if not folder.is_dir():
        raise InputRefusedError(f"{folder}: no such file or folder; check the path")
    place = os.path.realpath(output)
    try:
        entries = [entry for entry in visible(folder) if os.path.realpath(entry) != place]
    except OSError as error:
        raise InputRefusedError(
            f"{folder}: cannot be listed ({error.strerror}); check its permissions", "unreadable"
        ) from error
    here = Path(os.path.realpath(folder))
    round_about = {str(here), *map(str, here.parents)}  # a link to where it lies itself is nothing new
    scans = [entry for entry in entries if os.path.realpath(entry) not in round_about and _is_scan(entry)]
    if not scans and any(_is_dicom(entry) for entry in entries):
        name = folder.resolve().name
        return FoundScans((ScanCase(name, folder, output / f"{name}.nii.gz"),))
    names = [scan.name if scan.is_dir() else stem(scan) for scan in scans]
    cases = (ScanCase(name, scan, output / f"{name}.nii.gz") for name, scan in zip(names, scans, strict=True))
    return FoundScans(tuple(cases), tuple(entry for entry in entries if entry not in scans))


def _is_scan(entry: Path) -> bool:
    """Whether an entry of a folder is one scan: a file by its ending, a folder by DICOM files anywhere in it."""
    if entry.is_dir():
        return any(scan.is_dir() for scan in _search(entry).scans)
    return ending(entry, SCAN_SUFFIXES) is not None


def _is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, and not the list of contents that stands beside exported series."""
    try:
        return path.is_file() and path.name != "DICOMDIR" and is_dicom(path)
    except (OSError, InputRefusedError):  # not readable: not known to be one
        return False


def _listed(path: Path, output: Path) -> FoundScans:
    try:
        content = path.read_bytes()
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
        return FoundScans(tuple(_rows(path, text, output)), listing=path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputRefusedError(
            f"{path}: not a readable CSV list ({error}); save it as CSV in UTF-8", "unreadable"
        ) from error


def _rows(path: Path, text: str, output: Path) -> Iterator[ScanCase]:
    """The rows of a list; spreadsheets separate cells by what is usual where they are used, and may say so above."""
    said = re.match(r"\ufeff?sep=(.)\r?\n", text, re.IGNORECASE)
    table = text[said.end() :] if said else text
    head = next((line for line in table.splitlines() if line.strip()), "")
    separator = said[1] if said else max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(table, newline=""), delimiter=separator)
    names: list[str] = []
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if not names:
            names = [name.lower() for name in cells]
            if not {"input", "output"} <= set(names):
                break
            continue
        scan, mask = (unescaped(dict(zip(names, cells, strict=False)).get(name, "")) for name in ("input", "output"))
        if not scan or not ending(Path(mask), VOLUME_SUFFIXES):
            raise InputRefusedError(
                f"{path}: line {reader.line_num + bool(said)} reads {scan!r},{mask!r}; expected a scan and a mask's "
                f"name that ends in {', '.join(VOLUME_SUFFIXES)}"
            )
        yield ScanCase(mask, path.parent / scan, output / mask)
    if not {"input", "output"} <= set(names):
        raise InputRefusedError(f"{path}: the columns are {', '.join(names) or 'none'}; expected input,output")
