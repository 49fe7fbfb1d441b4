"""The slice store: preprocessed slices on disk, read at random without loading a volume.

A store is a folder, written by `data.store_writer`:

    store.json          version, organs and preprocessing; first of all
    cases/NAME.h5       a case's `image` and `mask`, chunked slice by slice, and its `organ_pixels`
    cases/NAME.json     what is known of the case, with the checksum of NAME.h5; written last
    cases.jsonl         those files of all cases, a line each, sorted by name      } compiled when a
    organ_pixels.npy    the cases' `organ_pixels` below each other, mapped to read } preparation ends
    report.json         which cases of the dataset prepared last it holds, and why not the others
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from meddelinea.checks.limits import ScanLimits, ScanTraits, body_axis, extent_mm
from meddelinea.checks.scan import reasons_to_refuse
from meddelinea.data.preprocess import Preprocessing, neighbour_offsets
from meddelinea.errors import InputRefusedError
from meddelinea.json_files import read_json
from meddelinea.scan import Modality

VERSION = 2

#: Case files that a process keeps open, far from the usual limit of 1024: a file costs less than a millisecond to open.
OPEN_FILES = 128


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """What a store knows of a case beside its slices."""

    #: Where it comes from, and whom it shows.
    name: str
    dataset: str
    patient: str
    modality: Modality
    fingerprint: str  # SHA-256 of its grey values, which finds the same scan elsewhere
    sketch: str  # the robust fingerprint (`data.fingerprint.sketch`), which finds it also where it was changed
    slices: int  # number of slices S
    sha256: str  # checksum of the case's file
    remarks: tuple[str, ...]  # what a person should know of it, a line each
    #: What it tells of the scans that a model takes which is trained on it; None in stores of older versions.
    traits: ScanTraits | None = None

    def refusals(self, limits: ScanLimits) -> list[str]:
        """Why a model of these limits would refuse this very scan; nothing where that is not known."""
        if self.modality not in limits.modalities:
            return [f"it is {self.modality}, and the model takes {' and '.join(limits.modalities)}"]
        if self.traits is None:
            return []
        return [f"{finding.code}: {finding.message}" for finding in reasons_to_refuse(self.traits, limits)]

    @classmethod
    def from_json(cls, line: str) -> StoredCase:
        """From `json.dumps(dataclasses.asdict(case))`; anything else raises ValueError, TypeError or KeyError."""
        content = json.loads(line)
        traits = content.get("traits")
        return cls(
            **{
                **content,
                "remarks": tuple(content["remarks"]),
                "traits": None if traits is None else ScanTraits.from_json(traits),
            }
        )


@dataclass(frozen=True)
class Manifest:
    """Contents of a store: the organs behind its mask ids 1..L, how scans became slices, and the cases by name."""

    organs: tuple[str, ...]
    preprocessing: Preprocessing
    cases: tuple[StoredCase, ...] = ()


def limits_of(cases: Sequence[StoredCase], preprocessing: Preprocessing) -> ScanLimits:
    """Which scans a model takes that is trained on these cases; the defaults where nothing is known of them."""
    modalities = tuple(sorted({case.modality for case in cases}))
    known = [case.traits for case in cases if case.traits is not None]
    if not known:
        return ScanLimits(modalities=modalities)
    return ScanLimits.of(known, modalities, slice_mm=preprocessing.slice_mm)


def case_file(root: Path, name: str) -> Path:
    """Where the slices of a case are."""
    return root / "cases" / f"{name}.h5"


def read_settings(root: Path) -> Manifest:
    """Organs and preprocessing of a store, without its cases.

    Raises
    ------
    InputRefusedError
        If the folder is no slice store, a damaged one, or one of another version.
    """
    path = root / "store.json"
    if not path.is_file():
        raise InputRefusedError(
            f"{root}: no store.json, so not a slice store of this version; make one with 'meddelinea prepare'"
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputRefusedError(f"{path}: not readable JSON ({error}); prepare the store again") from error
    if content.get("version") != VERSION:
        raise InputRefusedError(f"{path}: store version {content.get('version')}, expected {VERSION}; prepare it again")
    return Manifest(tuple(content["organs"]), Preprocessing.from_json(content["preprocessing"]))


def read_manifest(root: Path) -> Manifest:
    """Contents of a store, as the last preparation that came to its end compiled them.

    Raises
    ------
    InputRefusedError
        As `read_settings`, and if no preparation of the store came to its end.
    """
    settings = read_settings(root)
    path = root / "cases.jsonl"
    if not path.is_file():
        raise InputRefusedError(f"{path}: missing, its preparation was interrupted; run 'meddelinea prepare' again")
    try:
        with path.open() as lines:
            cases = tuple(StoredCase.from_json(line) for line in lines)
    except (ValueError, TypeError, KeyError) as error:
        raise InputRefusedError(f"{path}: damaged ({error}); run 'meddelinea prepare' again") from error
    return Manifest(settings.organs, settings.preprocessing, cases)


class SliceStore:
    """Random access to the slices of some cases of a store.

    It may be handed to other processes, forked or spawned: each opens its own files.

    Parameters
    ----------
    root
        Folder of the store, as `meddelinea prepare` leaves it.
    names
        Cases to read; all by default.

    Raises
    ------
    InputRefusedError
        If a named case is not in the store.
    """

    def __init__(self, root: Path, names: tuple[str, ...] | None = None) -> None:
        self.root = root
        self.manifest = read_manifest(root)
        known = {case.name: row for row, case in enumerate(self.manifest.cases)}
        missing = [name for name in names or () if name not in known]
        if missing:
            raise InputRefusedError(f"{root}: cases {', '.join(missing)} are not in the store; prepare them first")
        chosen = [known[name] for name in (known if names is None else names)]
        self.cases = tuple(self.manifest.cases[row] for row in chosen)
        ends = np.cumsum([case.slices for case in self.manifest.cases], dtype=np.int64)
        self._ends = ends[chosen]  # of each case in organ_pixels.npy
        self._starts = np.concatenate([[0], np.cumsum([case.slices for case in self.cases], dtype=np.int64)])
        self._table = self._open_table(int(ends[-1]) if len(ends) else 0)
        self._files: OrderedDict[int, dict[str, h5py.Dataset]] = OrderedDict()
        self._process = os.getpid()

    def _open_table(self, rows: int) -> NDArray[np.uint32]:
        path = self.root / "organ_pixels.npy"
        expected = (rows, len(self.manifest.organs))
        try:
            table: NDArray[np.uint32] = np.load(path, mmap_mode="r" if rows else None)
        except (OSError, ValueError) as error:
            raise InputRefusedError(f"{path}: missing or damaged; run 'meddelinea prepare' again") from error
        if table.shape != expected:
            raise InputRefusedError(f"{path}: shape {table.shape}, expected {expected}; run 'meddelinea prepare' again")
        return table

    def __getstate__(self) -> dict[str, Any]:
        # What a spawned process gets: neither open files nor, as a mapped array would be, a copy of the table.
        return {**self.__dict__, "_files": OrderedDict(), "_table": len(self._table)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table = self._open_table(state["_table"])

    def __len__(self) -> int:
        """Slices of all cases."""
        return int(self._starts[-1])

    def place(self, number: int) -> tuple[int, int]:
        """Case, and slice within it, of one of the slices of all cases, counted in their order."""
        case = int(np.searchsorted(self._starts, number, side="right")) - 1
        return case, int(number - self._starts[case])

    def organ_pixels(self, case: int) -> NDArray[np.uint32]:
        """For each slice of a case the pixels of each organ, (S, L)."""
        end = self._ends[case]
        return self._table[end - self.cases[case].slices : end]

    def image(self, case: int, index: int, reach: int, sides: int = 1) -> NDArray[np.uint8]:
        """A slice between `sides` neighbours on either side, (2 sides + 1, size, size) of 256 grey levels.

        They lie `reach` slices apart, the lowest first.

        Beyond the scan's ends, where `index` may lie too, the last slice stands for the others; with `reach` 0 the
        slice is repeated.

        Raises
        ------
        InputRefusedError
            If the case's file is missing or damaged.
        """
        last = self.cases[case].slices - 1
        wanted = [min(max(index + offset, 0), last) for offset in neighbour_offsets(reach, sides)]
        slices = {i: self._read(case, "image", i) for i in dict.fromkeys(wanted)}
        return np.stack([slices[i] for i in wanted])

    def mask(self, case: int, index: int) -> NDArray[np.uint8]:
        """Organ ids of a slice, (size, size); raises as `image` does."""
        return self._read(case, "mask", index)

    def slab(self, case: int, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Grey levels and organ ids of the slices start..stop-1, (stop - start, size, size) each; raises as `image`."""
        return self._read(case, "image", slice(start, stop)), self._read(case, "mask", slice(start, stop))

    def slice_mm(self, case: int) -> float:
        """About how far the slices of a case lie apart; what the store asks for, where nothing is known of the scan."""
        of_case = self.cases[case]
        if of_case.traits is None:
            return self.manifest.preprocessing.slice_mm
        grid = of_case.traits.grid
        return extent_mm(grid)[body_axis(grid)] / of_case.slices

    def _read(self, case: int, kind: str, index: int | slice) -> NDArray[np.uint8]:
        try:
            values: NDArray[np.uint8] = self._open(case)[kind][index]
        except (OSError, KeyError) as error:  # HDF5 checks each slice against its checksum
            path = case_file(self.root, self.cases[case].name)
            message = f"{path}: missing or damaged; prepare its dataset again and verify the stored cases"
            raise InputRefusedError(message, parameter="verify") from error
        return values

    def _open(self, case: int) -> dict[str, h5py.Dataset]:
        """The datasets of a case's file, by name: looking one up costs as much as reading a slice."""
        if self._process != os.getpid():  # forked: handles must not be shared with the parent
            self._files, self._process = OrderedDict(), os.getpid()
        if case not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1]["image"].file.close()
            # Case files never change: no lock, which network file systems may lack. A chunk is read once: no cache.
            file = h5py.File(case_file(self.root, self.cases[case].name), "r", locking=False, rdcc_nbytes=0)
            self._files[case] = {"image": file["image"], "mask": file["mask"]}
        self._files.move_to_end(case)
        return self._files[case]
