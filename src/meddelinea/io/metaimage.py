"""MetaImage files (`.mha`, and `.mhd` with its data beside it), the format of ITK."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError, reason_of
from meddelinea.findings import Finding, warn
from meddelinea.io.stored_voxels import Packing, Part, beside, numbered, read_voxels
from meddelinea.scan import Scan
from meddelinea.volume import Affine, Volume

#: A header is no longer; one with a list of data files is the longest.
HEADER_BYTES = 1 << 20
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# The format has had several names for some fields.
_ALIASES = {
    "orientation": "transformmatrix",
    "rotation": "transformmatrix",
    "position": "offset",
    "origin": "offset",
    "elementbyteordermsb": "binarydatabyteordermsb",
}
_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: How far the length of a direction may be from 1.
_UNIT_TOLERANCE = 0.01


def read_metaimage(path: Path) -> Scan:
    """Read a 3D MetaImage; a missing `Offset` counts as zero, a missing `TransformMatrix` as the patient's axes.

    Raises
    ------
    InputRefusedError
        If the file is unreadable, holds more or less than its header says or says it twice, is not 3D, has several
        channels, has no or impossible voxel sizes or directions, or has its voxels in a file outside its folder.
    """
    try:
        with path.open("rb") as stream:
            fields, files, length = _parsed(stream.read(HEADER_BYTES))
        shape, affine = _shape(fields), _affine(fields)
        kind = np.dtype(_one_of(fields, "elementtype", _TYPES))
        binary, packed, big = (
            _one_of(fields, name, {"True": True, "False": False, "": default})
            for name, default in (("binarydata", True), ("compresseddata", False), ("binarydatabyteordermsb", False))
        )
        packing: Packing = "text" if not binary else "zlib" if packed else "raw"
        before = int(fields.get("headersize", "0"))
        if before < -1 or (before == -1 and packing != "raw"):
            raise _damaged(f"its HeaderSize is {before}; expected 0 or more, or -1 of raw bytes")
        data = beside(path, files) or [path]
        start = 0 if files else length
        parts = [Part(path=file, start=start + max(0, before), at_end=before == -1) for file in data]
        array = read_voxels(parts, kind.newbyteorder(">" if big else "<"), shape, packing)
        volume = Volume(array.astype(kind.newbyteorder("="), copy=False), affine)
        return Scan(volume=volume, name=path.name, path=path, findings=_findings(fields))
    except InputRefusedError as error:
        raise InputRefusedError(f"{path}: {error}", error.code) from error
    except Exception as error:  # whatever numbers that are none, or damaged data, lead to
        raise InputRefusedError(
            f"{path}: not a readable MetaImage file ({reason_of(error)}); expected a whole one: is it complete?",
            "unreadable",
        ) from error


def write_metaimage(volume: Volume, path: Path) -> None:
    """Write `volume` to a `.mha` file, compressed; bool becomes uint8."""
    array = volume.array.astype(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    lps = _TO_RAS @ volume.affine
    directions = (lps[:3, :3] / volume.spacing_mm).T
    kinds = {kind: name for name, kind in reversed(_TYPES.items())}
    packed = zlib.compress(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F"), level=1)
    fields = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": len(packed),
        "TransformMatrix": _written(directions.ravel()),
        "Offset": _written(lps[:3, 3]),
        "ElementSpacing": _written(np.array(volume.spacing_mm)),
        "DimSize": " ".join(map(str, volume.shape)),
        "ElementType": kinds[array.dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    header = "".join(f"{name} = {value}\n" for name, value in fields.items())
    path.write_bytes(header.encode() + packed)


def _written(numbers: NDArray[np.float64]) -> str:
    return " ".join(repr(float(number)) for number in numbers)


def _parsed(head: bytes) -> tuple[dict[str, str], list[str], int]:
    """The fields by their names in lower case, the names of data files, and the bytes before voxels that follow."""
    fields: dict[str, str] = {}
    lines = head.split(b"\n")
    for number, raw in enumerate(lines):
        name, mark, value = raw.decode("utf-8", "replace").partition("=")
        key = name.strip().lower()
        key = _ALIASES.get(key, key)
        if not mark or not key.isprintable():
            raise _damaged(f"a line of its header is {raw[:40]!r}; expected `Name = value`")
        if key in fields:
            raise _damaged(
                f"its header has '{key}' twice, with {fields[key]!r} and {value.strip()!r}; expected it once"
            )
        fields[key] = value.strip()
        if key == "elementdatafile":
            words = fields[key].split()
            if words[:1] == ["LIST"]:
                files = [line.decode("utf-8", "replace").strip() for line in lines[number + 1 :] if line.strip()]
                if not files:
                    raise _damaged("its header names no data file; expected some after LIST")
                return fields, files, 0
            if fields[key].upper() == "LOCAL":
                return fields, [], sum(len(line) + 1 for line in lines[: number + 1])
            is_pattern = "%" in words[0] and len(words) in (3, 4) if words else False
            return fields, numbered(words[0], words[1:]) if is_pattern else [fields[key]], 0
    raise _damaged("its header names no ElementDataFile; expected one")


def _shape(fields: Mapping[str, str]) -> tuple[int, int, int]:
    if fields.get("objecttype", "Image") != "Image":
        raise _damaged(f"its ObjectType is {fields['objecttype']}; expected Image")
    if fields.get("elementnumberofchannels", "1") != "1":
        channels = fields["elementnumberofchannels"]
        raise InputRefusedError(f"{channels} channels; expected one grey value each; convert it", "not_grey")
    scale = float(fields.get("elementtointensityfunctionslope", 1))
    moved = float(fields.get("elementtointensityfunctionoffset", 0))
    if (scale, moved) != (1, 0):  # ITK passes them over
        raise _damaged(f"its values are to be scaled by {scale:g} and moved by {moved:g}; expected 1 and 0")
    sizes = [int(size) for size in fields.get("dimsize", "").split()]
    if len(sizes) != int(fields.get("ndims", "0")) or min(sizes, default=0) < 1:
        raise _damaged(f"its NDims is {fields.get('ndims')} and its DimSize {fields.get('dimsize')}; expected as many")
    if len(sizes) < 3 or any(size != 1 for size in sizes[3:]):
        raise InputRefusedError(f"{len(sizes)} dimensions {sizes}; expected one 3D volume; split it", "not_3d")
    return sizes[0], sizes[1], sizes[2]


def _affine(fields: Mapping[str, str]) -> Affine:
    """Where the voxels lie, RAS."""
    count = int(fields["ndims"])
    if fields.get("distanceunits", "mm") not in ("mm", "?", ""):
        raise InputRefusedError(f"DistanceUnits {fields['distanceunits']}; expected mm; convert it", "unknown_units")
    spacing = _numbers(fields, "elementspacing" if "elementspacing" in fields else "elementsize", count, None)
    offset = _numbers(fields, "offset", count, np.zeros(count))
    directions = _numbers(fields, "transformmatrix", count**2, np.eye(count)).reshape(count, count)
    lengths = np.linalg.norm(directions[:3, :3], axis=1)
    if not (spacing[:3] > 0).all() or not (abs(lengths - 1) < _UNIT_TOLERANCE).all():
        raise InputRefusedError(
            f"voxels of {spacing[:3].tolist()} mm along directions {directions.tolist()}; expected sizes above 0, and "
            "directions of length 1; repair the header",
            "bad_affine",
        )
    affine = np.eye(4)
    affine[:3, :3] = (directions[:3, :3] * spacing[:3, None]).T
    affine[:3, 3] = offset[:3]
    placed: Affine = _TO_RAS @ affine
    return placed


def _numbers(
    fields: Mapping[str, str], name: str, count: int, default: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    if name not in fields and default is not None:
        return default
    numbers = np.array([float(number) for number in fields.get(name, "").split()])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise InputRefusedError(
            f"its {name} is {fields.get(name)}; expected {count} numbers; repair the header", "bad_affine"
        )
    return numbers


def _findings(fields: Mapping[str, str]) -> tuple[Finding, ...]:
    if "transformmatrix" in fields:
        return ()
    message = "a MetaImage without a TransformMatrix: its axes are taken for the patient's; convert the scan again"
    return (warn("no_geometry", message),)


def _one_of(fields: Mapping[str, str], name: str, values: Mapping[str, Any]) -> Any:
    value = fields.get(name, "")
    known = {key.lower(): meant for key, meant in values.items()}
    if value.lower() not in known:
        expected = ", ".join(key for key in values if key)
        raise _damaged(f"its {name} is '{value}'; expected one of {expected}")
    return known[value.lower()]


def _damaged(what: str) -> InputRefusedError:
    return InputRefusedError(f"not a readable MetaImage file: {what}; is it complete?", "unreadable")
