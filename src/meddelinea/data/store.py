"""The slice store: preprocessed slices on disk, read at random without loading a volume.

A store is a folder with `manifest.json` and one HDF5 file a case, in which image and mask are chunked slice by slice.
A case's file appears whole or not at all, and the manifest is rewritten after each, so that preparation resumes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from meddelinea.data.preprocess import Preprocessing
from meddelinea.errors import InputRefusedError

VERSION = 1


@dataclass(frozen=True)
class StoredCase:
    """What the manifest knows of a case.

    Parameters
    ----------
    name, dataset, modality
        Where it comes from.
    fingerprint
        SHA-256 of its grey values, which finds the same scan elsewhere.
    slices
        Number of slices S.
    organ_pixels
        For each slice, the pixels of each organ in the order of the manifest's `organs`: S lists of L numbers.
    """

    name: str
    dataset: str
    modality: str
    fingerprint: str
    slices: int
    organ_pixels: list[list[int]]
    patient: str = ""


@dataclass(frozen=True)
class Manifest:
    """Contents of a store: the organs behind its mask ids 1..L, how scans became slices, and the cases."""

    organs: tuple[str, ...]
    preprocessing: Preprocessing
    cases: tuple[StoredCase, ...] = ()

    def with_case(self, case: StoredCase) -> Manifest:
        """The manifest with one more case, in order of names."""
        others = (c for c in self.cases if c.name != case.name)
        return replace(self, cases=tuple(sorted((*others, case), key=lambda c: c.name)))


def read_manifest(store: Path) -> Manifest:
    """Read `manifest.json`.

    Raises
    ------
    InputRefusedError
        If the folder is no slice store, a damaged one, or one of another version.
    """
    path = store / "manifest.json"
    if not path.is_file():
        raise InputRefusedError(f"{store}: no manifest.json, so not a slice store; make one with 'meddelinea prepare'")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputRefusedError(f"{path}: not readable JSON ({error}); prepare the store again") from error
    if content.get("version") != VERSION:
        raise InputRefusedError(f"{path}: store version {content.get('version')}, expected {VERSION}; prepare it again")
    cases = tuple(StoredCase(**case) for case in content["cases"])
    return Manifest(tuple(content["organs"]), Preprocessing.from_json(content["preprocessing"]), cases)


def write_manifest(manifest: Manifest, store: Path) -> None:
    """Write `manifest.json`, whole or not at all."""
    temporary = store / "manifest.json.part"
    temporary.write_text(json.dumps({"version": VERSION, **asdict(manifest)}))
    temporary.replace(store / "manifest.json")


def write_case(store: Path, name: str, image: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
    """Write the slices of a case, whole or not at all.

    Parameters
    ----------
    image
        (S, size, size) in [-1, 1], stored in 256 steps.
    mask
        (S, size, size) organ ids.
    """
    path = store / f"{name}.h5"
    temporary = path.with_suffix(".h5.part")
    chunk = (1, *image.shape[1:])
    with h5py.File(temporary, "w") as file:
        levels = np.rint((image + 1.0) * 127.5).astype(np.uint8)
        file.create_dataset("image", data=levels, chunks=chunk, compression="lzf", fletcher32=True)
        file.create_dataset("mask", data=mask, chunks=chunk, compression="lzf", fletcher32=True)
    temporary.replace(path)


class SliceStore:
    """Random access to the slices of some cases of a store.

    Parameters
    ----------
    root
        The store's folder.
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
        known = {case.name: case for case in self.manifest.cases}
        missing = [name for name in names or () if name not in known]
        if missing:
            raise InputRefusedError(f"{root}: cases {', '.join(missing)} are not in the store; prepare them first")
        self.cases = tuple(known[name] for name in (known if names is None else names))
        self._files: dict[int, h5py.File] = {}

    def _file(self, case: int) -> h5py.File:
        if case not in self._files:  # opened where it is first read, so that each worker process has its own handle
            path = self.root / f"{self.cases[case].name}.h5"
            try:
                self._files[case] = h5py.File(path, "r")
            except OSError as error:
                raise InputRefusedError(f"{path}: missing or damaged; prepare a new store") from error
        return self._files[case]

    def image(self, case: int, index: int, reach: int) -> NDArray[np.uint8]:
        """A slice between its neighbours `reach` slices below and above, (3, size, size) of 256 grey levels.

        Beyond the scan's ends the last slice stands for its neighbour; with `reach` 0 the slice is repeated.
        """
        last = self.cases[case].slices - 1
        wanted = [min(max(index + offset, 0), last) for offset in (-reach, 0, reach)]
        dataset = self._file(case)["image"]
        slices = {i: dataset[i] for i in set(wanted)}
        return np.stack([slices[i] for i in wanted])

    def mask(self, case: int, index: int) -> NDArray[np.uint8]:
        """Organ ids of a slice, (size, size)."""
        mask: NDArray[np.uint8] = self._file(case)["mask"][index]
        return mask
