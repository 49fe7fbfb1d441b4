"""Writing a slice store: each file appears whole or not at all, and the same cases give the same bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from meddelinea.data.preprocess import Preprocessing
from meddelinea.data.store import VERSION, Manifest, StoredCase, case_file, read_manifest, read_settings
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.files import remove_all_unfinished, whole, write_json, write_text
from meddelinea.locks import nobody_writes_in


def begin_store(root: Path, organs: tuple[str, ...], preprocessing: Preprocessing) -> None:
    """Make a store, or see that it is of these organs and this preprocessing; what a killed run left is removed.

    Raises
    ------
    UsageError
        If the store holds other organs or another preprocessing.
    """
    if (root / "store.json").is_file():
        existing = read_settings(root)
        if existing.organs != organs:
            raise UsageError(
                f"{root}: holds other organs than asked for: {','.join(existing.organs)}, not {','.join(organs)}; "
                "choose the same organs or another folder",
                parameter="organs",
            )
        if existing.preprocessing != preprocessing:
            raise UsageError(
                f"{root}: holds slices of another preprocessing than asked for: {existing.preprocessing}, not "
                f"{preprocessing}; choose the same size and spacing or another folder"
            )
    else:
        (root / "cases").mkdir(parents=True, exist_ok=True)
        content = {"version": VERSION, "organs": organs, "preprocessing": asdict(preprocessing)}
        write_json(content, root / "store.json")
    for folder in (root, root / "cases"):
        with nobody_writes_in(folder) as alone:
            if alone:
                remove_all_unfinished(folder)


def write_slices(root: Path, name: str, image: NDArray[np.float32], mask: NDArray[np.uint8], organs: int) -> str:
    """Write the slices of a case; returns the SHA-256 of its file.

    Parameters
    ----------
    image
        (S, size, size) in [-1, 1], stored in 256 steps.
    mask
        (S, size, size) ids of organs, 0 to `organs`.
    """
    levels = np.rint((image + 1.0) * 127.5).astype(np.uint8)
    pixels = np.array([np.bincount(ids.ravel(), minlength=organs + 1)[1:] for ids in mask], np.uint32)
    chunk = (1, *image.shape[1:])
    with whole(case_file(root, name)) as part:
        with h5py.File(part, "w") as file:
            for kind, values in (("image", levels), ("mask", mask)):
                # Not lzf, which is faster by a fifth: it reads memory that it never set, so its bytes vary.
                file.create_dataset(
                    kind, data=values, chunks=chunk, compression="gzip", compression_opts=1, fletcher32=True
                )
            file.create_dataset("organ_pixels", data=pixels)
        return _sha256(part)


def write_record(root: Path, case: StoredCase) -> None:
    """Write what is known of a case, after its slices: from then on the store holds it."""
    write_text(json.dumps(asdict(case)) + "\n", _record(root, case.name))


def find_record(root: Path, name: str) -> StoredCase | None:
    """What the store knows of a case; None where it does not hold it, or holds it damaged."""
    try:
        case = StoredCase.from_json(_record(root, name).read_text())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return case if case_file(root, name).is_file() else None


def is_intact(root: Path, case: StoredCase) -> bool:
    """Whether a case's file is the one that was written, byte for byte."""
    return _sha256(case_file(root, case.name)) == case.sha256


def compile_store(root: Path) -> Manifest:
    """Gather what is known of all cases into the two files that a reader opens.

    Raises
    ------
    InputRefusedError
        If a case is damaged.
    """
    organs = len(read_settings(root).organs)
    lines = sorted((path.stem, path.read_text()) for path in (root / "cases").glob("[!.]*.json"))
    try:
        cases = [StoredCase.from_json(line) for _, line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise InputRefusedError(f"{root / 'cases'}: a damaged .json ({error}); prepare its dataset again") from error
    with whole(root / "organ_pixels.npy") as table, whole(root / "cases.jsonl") as list_:
        with table.open("wb") as file:
            shape = (sum(case.slices for case in cases), organs)
            np.lib.format.write_array_header_1_0(file, {"descr": "<u4", "fortran_order": False, "shape": shape})
            for case in cases:
                file.write(_organ_pixels(case_file(root, case.name)).astype("<u4").tobytes())
        list_.write_text("".join(line for _, line in lines))
    return read_manifest(root)


def _organ_pixels(path: Path) -> NDArray[np.uint32]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            pixels: NDArray[np.uint32] = file["organ_pixels"][:]
    except (OSError, KeyError) as error:
        message = f"{path}: missing or damaged; prepare its dataset again and verify the stored cases"
        raise InputRefusedError(message, parameter="verify") from error
    return pixels


def _record(root: Path, name: str) -> Path:
    return root / "cases" / f"{name}.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
