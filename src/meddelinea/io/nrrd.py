"""NRRD files (`.nrrd`, and `.nhdr` with its data beside it)."""

from __future__ import annotations

from pathlib import Path

import nrrd
import numpy as np

from meddelinea.errors import InputRefusedError, reason_of
from meddelinea.scan import Scan
from meddelinea.volume import Affine, Volume

LPS = "left-posterior-superior"
# Signs that turn a space's x, y and z to RAS. The format defines scanner-xyz to coincide with LPS for a patient who
# lies on the back, head first, which is all that a file of that kind can say.
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
    "scanner-xyz": (-1, -1, 1),
}
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", ""}


def read_nrrd(path: Path) -> Scan:
    """Read a 3D NRRD whose header says where its axes point in the patient; a missing origin counts as zero.

    A file without an anatomical `space` is refused: left and right would be a guess.

    Raises
    ------
    InputRefusedError
        If the file is unreadable or incomplete, not 3D, has colours or vectors, or lacks space or space directions.
    """
    try:
        array, header = nrrd.read(str(path))
    except Exception as error:  # the parser raises whatever a foreign or damaged header leads it to
        raise InputRefusedError(
            f"{path}: not a readable NRRD file ({reason_of(error)}); expected a whole one: is it complete?",
            "unreadable",
        ) from error
    if array.ndim != 3:
        raise InputRefusedError(
            f"{path}: {array.ndim} dimensions {array.shape}; expected one 3D volume; split it", "not_3d"
        )
    space = str(header.get("space", "none"))
    if space.lower() not in _TO_RAS:
        raise InputRefusedError(
            f"{path}: space {space}; expected an anatomical one such as left-posterior-superior; save it with one",
            "no_orientation",
        )
    directions = np.asarray(header.get("space directions", ()), np.float64)
    if directions.shape != (3, 3) or not np.isfinite(directions).all():
        raise InputRefusedError(
            f"{path}: space directions {directions.tolist()}; expected 3 vectors of 3 numbers; save it with them",
            "no_orientation",
        )
    units = [str(unit) for unit in header.get("space units", ())]
    if not _MILLIMETRES.issuperset(units):
        raise InputRefusedError(f"{path}: space units {units}; expected mm; convert it", "unknown_units")
    affine = np.eye(4)
    affine[:3, :3] = directions.T
    affine[:3, 3] = header.get("space origin", np.zeros(3))
    try:
        volume = Volume(
            array.astype(array.dtype.newbyteorder("="), copy=False), np.diag([*_TO_RAS[space.lower()], 1]) @ affine
        )
    except InputRefusedError as error:
        raise InputRefusedError(f"{path}: {error}", error.code) from error
    return Scan(volume=volume, name=path.name, path=path)


def write_nrrd(volume: Volume, path: Path) -> None:
    """Write `volume` to a `.nrrd` file, compressed, in the space left-posterior-superior; bool becomes uint8."""
    lps = _in_lps(volume)
    header = {
        "space": LPS,
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip",
    }
    array = volume.array.astype(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    # Level 1: an eighth of the default's time for a file hardly larger.
    nrrd.write(str(path), array, header, compression_level=1)


def uncompressed_nrrd(mask: Volume) -> bytes:
    """A `.nrrd` file of label ids in 16 bits, not compressed, for readers that understand no other, such as OHIF's."""
    lps = _in_lps(mask)
    vectors = [f"({','.join(f'{mm:.9g}' for mm in vector)})" for vector in lps[:3].T]
    header = (
        f"NRRD0004\ntype: unsigned short\ndimension: 3\nspace: {LPS}\n"
        f"sizes: {' '.join(map(str, mask.shape))}\nspace directions: {' '.join(vectors[:3])}\n"
        f"kinds: domain domain domain\nendian: little\nencoding: raw\n"
        f"space origin: {vectors[3]}\n\n"
    )
    return header.encode() + mask.array.astype("<u2").tobytes(order="F")


def _in_lps(volume: Volume) -> Affine:
    """Its affine with patient coordinates to the left, the back and the head."""
    lps: Affine = np.diag([*_TO_RAS[LPS], 1.0]) @ volume.affine
    return lps
