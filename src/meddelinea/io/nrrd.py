"""NRRD files (`.nrrd`, and `.nhdr` with its data beside it)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import nrrd
import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.io.nrrd_header import NrrdHeader, not_readable
from meddelinea.io.stored_voxels import Part, beside, read_voxels
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
#: Types that label ids are stored in, and what the format calls them.
MaskType = Literal["uint8", "uint16"]
_TYPES: Mapping[MaskType, str] = {"uint8": "unsigned char", "uint16": "unsigned short"}
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", ""}


def read_nrrd(path: Path) -> Scan:
    """Read a 3D NRRD whose header says where its axes point in the patient; a missing origin counts as zero.

    An axis of one voxel that is none of space, such as that of a list with one entry, is left out. A file without an
    anatomical `space` is refused: left and right would be a guess.

    Raises
    ------
    InputRefusedError
        If the file is unreadable, holds more or less than its header says or says it twice, is not 3D, has colours or
        vectors, lacks space or space directions, or has its voxels in a file outside its folder.
    """
    header = NrrdHeader.read(path)
    if any(header.sizes[axis] != 1 for axis in header.aside):
        raise InputRefusedError(f"{path}: {_dimensions(header)}", "not_3d")
    (volume,) = read_layers(path, header)
    return Scan(volume=volume, name=path.name, path=path)


def read_layers(path: Path, header: NrrdHeader) -> list[Volume]:
    """The volumes of a file: one for each entry of an axis that is none of space, so one where it has none.

    Raises
    ------
    InputRefusedError
        As `read_nrrd`.
    """
    try:
        affine, aside = _affine(header), header.aside
        array = np.moveaxis(_voxels(path, header), aside, range(len(aside)))
        layers = array.reshape(-1, *array.shape[-3:]) if aside else array[None]
        return [Volume(layer.astype(layer.dtype.newbyteorder("="), copy=False), affine) for layer in layers]
    except InputRefusedError as error:
        raise InputRefusedError(f"{path}: {error}", error.code) from error
    except Exception as error:
        raise not_readable(path, error) from error


def _affine(header: NrrdHeader) -> Affine:
    """The affine of the three axes that are of space, RAS."""
    fields = header.fields
    if len(header.sizes) - len(header.aside) != 3:
        raise InputRefusedError(_dimensions(header), "not_3d")
    space = str(fields.get("space", "none"))
    if space.lower() not in _TO_RAS:
        raise InputRefusedError(
            f"space {space}; expected an anatomical one such as left-posterior-superior; save it with one",
            "no_orientation",
        )
    along = np.delete(header.directions, header.aside, axis=0)
    if along.shape != (3, 3) or not np.isfinite(along).all():
        raise InputRefusedError(
            f"space directions {np.asarray(fields.get('space directions', ())).tolist()}; expected 3 vectors of 3 "
            "numbers; save it with them",
            "no_orientation",
        )
    units = [str(unit) for unit in fields.get("space units", ())]
    if not _MILLIMETRES.issuperset(units):
        raise InputRefusedError(f"space units {units}; expected mm; convert it", "unknown_units")
    affine = np.eye(4)
    affine[:3, :3] = along.T
    affine[:3, 3] = fields.get("space origin", np.zeros(3))
    affine[:3] *= np.array(_TO_RAS[space.lower()])[:, None]
    return affine


def _dimensions(header: NrrdHeader) -> str:
    return f"{len(header.sizes)} dimensions {header.sizes}; expected one 3D volume; split it"


def _voxels(path: Path, header: NrrdHeader) -> NDArray[Any]:
    """The voxels along all axes."""
    lines, skipped = (int(header.fields.get(field, 0)) for field in ("line skip", "byte skip"))
    at_end = skipped == -1 and header.packing == "raw"
    if lines < 0 or (skipped < 0 and not at_end):
        raise InputRefusedError(
            f"line skip {lines} and byte skip {skipped}; expected 0 or more, or -1 of raw bytes; repair the header",
            "unreadable",
        )
    files = beside(path, header.data_files) or [path]
    start = 0 if header.data_files else header.length
    parts = [Part(path=file, start=start, lines=lines, skipped=max(0, skipped), at_end=at_end) for file in files]
    return read_voxels(parts, header.dtype, header.sizes, header.packing)


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


def uncompressed_nrrd(mask: Volume, dtype: MaskType = "uint16") -> bytes:
    """A `.nrrd` file of label ids, not compressed, for readers that understand no other, such as OHIF's."""
    lps, stored = _in_lps(mask), np.dtype(dtype).newbyteorder("<")
    vectors = [f"({','.join(f'{mm:.9g}' for mm in vector)})" for vector in lps[:3].T]
    header = (
        f"NRRD0004\ntype: {_TYPES[dtype]}\ndimension: 3\nspace: {LPS}\n"
        f"sizes: {' '.join(map(str, mask.shape))}\nspace directions: {' '.join(vectors[:3])}\n"
        f"kinds: domain domain domain\nendian: little\nencoding: raw\n"
        f"space origin: {vectors[3]}\n\n"
    )
    return header.encode() + mask.array.astype(stored).tobytes(order="F")


def _in_lps(volume: Volume) -> Affine:
    """Its affine with patient coordinates to the left, the back and the head."""
    lps: Affine = np.diag([*_TO_RAS[LPS], 1.0]) @ volume.affine
    return lps
