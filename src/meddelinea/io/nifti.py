"""NIfTI files, in one file or as a pair of header and voxels, and the Analyze files that they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.fileholders import FileHolder
from numpy.typing import NDArray

from meddelinea.endings import ending, stem
from meddelinea.errors import InputRefusedError, reason_of
from meddelinea.findings import Finding, warn
from meddelinea.io.content import PAIR_SUFFIXES, first_bytes, packing_of, unpacking
from meddelinea.io.nifti_forms import affine_mm, carry, find_disagreements, forms_of
from meddelinea.io.room import require_room
from meddelinea.scan import Scan
from meddelinea.volume import Affine, Volume

_CHUNK_BYTES = 1 << 24
_SLICES = 16


def read_nifti(path: Path) -> Scan:
    """Read a NIfTI (`.nii`, or `.hdr` with its `.img`) or an Analyze file, zipped or not, whatever its ending says.

    Its scale slope and intercept are applied. Integer files without scaling keep their type, so a long CT stays int16
    in memory; scaled files and floating-point files become float32. `nifti_forms.affine_mm` says where the voxels lie.
    A file that states no unit is in millimetres. What the header leaves open or says twice, and differently, is among
    the scan's findings.

    Raises
    ------
    InputRefusedError
        If the file is empty, truncated, corrupt, longer than its header says, not a NIfTI, not 3D, or holds colours or
        complex numbers; or as `affine_mm`.
    """
    try:
        with _opened(path) as (header, stored, affine, held):
            _check_kind(stored)
            _check_length(stored, held)
            array = _values(stored)
        volume = Volume(array, affine_mm(header) if affine is None else affine)
        return Scan(volume=volume, name=path.name, path=path, findings=_findings(header), forms=_forms(header))
    except InputRefusedError as error:
        raise InputRefusedError(f"{path}: {error}", error.code) from error
    except Exception as error:  # the parser raises whatever a foreign or damaged file leads it to
        raise InputRefusedError(
            f"{path}: not a readable NIfTI file ({reason_of(error)}); expected a whole one: is it complete?",
            "unreadable",
        ) from error


def from_nibabel(image: Any) -> Scan:
    """The scan of an image that nibabel loaded or made, with voxels and affine as `read_nifti` has them.

    Raises
    ------
    InputRefusedError
        If it is not 3D, or holds colours or complex numbers.
    """
    _check_kind(image.dataobj)
    if hasattr(image.dataobj, "slope"):  # still in its file
        array = _values(image.dataobj)
    else:
        array = np.asarray(image.dataobj).reshape(image.shape[:3])
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
    header = image.header
    if not isinstance(header, nib.Nifti1Header):
        return Scan(volume=Volume(array, image.affine), findings=_findings(header))
    if image.affine is None or np.allclose(image.affine, header.get_best_affine()):
        affine = affine_mm(header)
        return Scan(volume=Volume(array, affine), findings=_findings(header), forms=_forms(header))
    changed = header.copy()  # the image has been moved since its header was made
    changed.set_sform(image.affine, code=int(header["sform_code"]) or 1)
    changed.set_qform(None, code=0)
    return Scan(volume=Volume(array, affine_mm(changed)), findings=_findings(changed))


def to_nibabel(volume: Volume, forms: Mapping[str, Any] | None = None) -> nib.Nifti1Image:
    """A volume as an image of nibabel's, with the header that `write_nifti` gives it."""
    image = _image(volume, forms)
    return image if forms is None else nib.Nifti1Image(image.dataobj, image.header.get_best_affine(), image.header)


def write_nifti(volume: Volume, path: Path, forms: Mapping[str, Any] | None = None) -> None:
    """Write `volume` to a `.nii` or `.nii.gz` file; bool becomes uint8.

    Parameters
    ----------
    forms
        `Scan.forms` of the scan on whose grid the volume lies: the header places it by the same fields. Without them
        its affine becomes sform and qform (code 1, scanner), but for a sheared one (a tilted gantry): a qform cannot
        hold a shear, so its code is then 0, unset.
    """
    nib.save(_image(volume, forms), path)


def _image(volume: Volume, forms: Mapping[str, Any] | None) -> nib.Nifti1Image:
    array = volume.array.astype(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    if forms is not None:
        image = nib.Nifti1Image(array, None, dtype=array.dtype)  # without an affine nibabel leaves the header alone
        carry(forms, image.header)
        return image
    image = nib.Nifti1Image(array, volume.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    if not np.allclose(image.get_qform(), volume.affine, atol=1e-3):
        image.set_qform(None, code=0)
    return image


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, ArrayProxy, Affine | None, int]]:
    """The header as it is stored, the voxels, still in their open file, and the bytes of that file, unpacked.

    The third is the affine of an Analyze file; None for a NIfTI, whose header says it.
    """
    head = first_bytes(path)
    single = _version(head, b"n+1\0", b"n+2\0")
    first, second = (path, path) if single else _pair(path)
    head = head if first == path else first_bytes(first)
    version = single or _version(head, b"ni1\0", b"ni2\0")
    held = _length(second)
    with unpacking(second) as stream:
        if version:
            header = version(head[: version.sizeof_hdr], check=False)
            _check_header(header)
            yield header, ArrayProxy(stream, header, mmap=False), None, held
        else:
            with unpacking(first) as beginning:
                files = {"header": FileHolder(fileobj=beginning), "image": FileHolder(fileobj=stream)}
                files["mat"] = FileHolder(str(first.with_suffix(".mat")))  # where SPM puts what the header cannot say
                image = nib.Spm2AnalyzeImage.from_file_map(files)
                _check_header(image.header)
                yield image.header, image.dataobj, image.affine, held


def _version(head: bytes, first: bytes, second: bytes) -> Any:
    """The class of the header by its mark: that of version 1, that of version 2, or None."""
    if head[344:348] == first:
        return nib.Nifti1Header
    return nib.Nifti2Header if head[4:8] == second else None


def _pair(path: Path) -> tuple[Path, Path]:
    """The header and the voxels of a scan in two files, of which one is named."""
    suffix = ending(path, PAIR_SUFFIXES)
    if suffix is None:
        with path.open("rb") as stream:
            begins = stream.read(12)
        raise InputRefusedError(
            f"not a readable NIfTI file: it begins with {begins!r}; expected a header or a gzip: is it complete?",
            "unreadable",
        )
    start = stem(path, PAIR_SUFFIXES)
    beside = {entry.name.lower(): entry for entry in path.parent.iterdir()}
    found = []
    for part in (".hdr", ".img"):
        names = [f"{start}{part}{packed}".lower() for packed in (suffix[4:], "", ".gz")]
        there = path if suffix[:4] == part else next((beside[name] for name in names if name in beside), None)
        if there is None or not there.is_file():
            raise InputRefusedError(
                f"no {start}{part} beside it; expected header and voxels in one folder; copy both", "unreadable"
            )
        found.append(there)
    return found[0], found[1]


def _length(path: Path) -> int:
    """Bytes of a file, unpacked: it is read whole, as truncation and a wrong checksum stay unseen in a partial read."""
    if packing_of(path) is None:
        return path.stat().st_size
    held = 0
    with unpacking(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            held += len(chunk)
            require_room(held, "the file unpacks to")
    return held


def _check_header(header: Any) -> None:
    """What a header says of its voxels is possible, and not contradicted by itself."""
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7:
        raise InputRefusedError(f"dim[0] gives {dimensions} dimensions; expected 3; export it again", "unreadable")
    bits, stored = int(header["bitpix"]), header.get_data_dtype().itemsize * 8
    if bits not in (0, stored):  # 0 is unstated
        raise InputRefusedError(
            f"bitpix gives a voxel {bits} bits and datatype {int(header['datatype'])} gives it {stored}; expected one "
            "answer; export it again",
            "unreadable",
        )
    if not isinstance(header, nib.Nifti1Header):
        if header["orient"].item() not in (b"", b"\0"):
            raise InputRefusedError(
                f"an Analyze file with orient {header['orient'].item()!r}; expected 0, axial; convert it to NIfTI",
                "no_orientation",
            )
        return
    least = header.single_vox_offset if header["magic"].item() == header.single_magic else 0
    offset = float(header["vox_offset"])
    if not least <= offset < 2**63 or offset % 1:
        raise InputRefusedError(
            f"vox_offset is {offset:g}; expected a whole number of at least {least}; export it again", "unreadable"
        )
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if np.isinf(slope) or (slope and np.isfinite(slope) and not np.isfinite(intercept)):  # NaN and 0 are unstated
        raise InputRefusedError(
            f"values are scaled by {slope:g} and moved by {intercept:g}; expected numbers; repair the header",
            "unreadable",
        )


def _check_kind(stored: Any) -> None:
    """One grey value at each of the voxels of one volume."""
    kind, shape = np.dtype(stored.dtype), stored.shape
    if kind.fields is not None or kind.kind == "c":
        said = "complex numbers" if kind.kind == "c" else "colours (RGB)"
        raise InputRefusedError(f"the voxels are {said}; expected one grey value each; convert it", "not_grey")
    if any(n != 1 for n in shape[3:]) or len(shape) < 3:
        raise InputRefusedError(f"{len(shape)} dimensions {shape}; expected one 3D volume; split it", "not_3d")


def _check_length(stored: Any, held: int) -> None:
    """The file holds just as many bytes as its header promises; asked before memory is taken for them."""
    shape = stored.shape
    promised = int(stored.offset) + math.prod(map(int, shape)) * stored.dtype.itemsize
    if held != promised:
        wrong = "is it complete?" if held < promised else "where it holds more, its header is damaged: export it again"
        raise InputRefusedError(
            f"{held} bytes; expected {promised} for the {' x '.join(map(str, shape))} voxels that the header promises; "
            f"{wrong}",
            "unreadable",
        )


def _findings(header: Any) -> tuple[Finding, ...]:
    if isinstance(header, nib.Nifti1Header):
        return find_disagreements(header)
    if isinstance(header, nib.MGHImage.header_class) and header["goodRASFlag"] == 1:
        return ()
    message = "an Analyze or MGH file that does not say its directions: left and right are a guess; convert the scan"
    return (warn("no_geometry", f"{message} again, to NIfTI"),)


def _forms(header: Any) -> dict[str, Any] | None:
    return forms_of(header) if isinstance(header, nib.Nifti1Header) else None


def _values(stored: Any) -> NDArray[Any]:
    """(I, J, K) scaled values in native byte order, read from the file now.

    Read some slices at a time, as scaling makes 64-bit numbers: four times the size of a stored CT.
    """
    whole = (stored.slope, stored.inter) == (1, 0) and stored.dtype.kind in "iu"
    kind = np.dtype(stored.dtype.newbyteorder("=") if whole else np.float32)
    require_room(math.prod(map(int, stored.shape)) * kind.itemsize, "its voxels take")
    array = np.empty(stored.shape[:3], kind, order="F")
    for first in range(0, array.shape[2], _SLICES):
        there = array[:, :, first : first + _SLICES]
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused as such
            there[...] = stored[:, :, first : first + _SLICES].reshape(there.shape)
    return array
