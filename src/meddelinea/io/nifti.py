"""NIfTI files."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError, reason_of
from meddelinea.findings import Finding, refuse, warn
from meddelinea.scan import Scan
from meddelinea.volume import Volume

# Codes of the header's spatial unit that are neither millimetres (2) nor unstated (0), and their size in millimetres.
_UNIT_MM = {1: 1000.0, 3: 0.001}
_CHUNK_BYTES = 1 << 24
_SLICES = 16
#: Voxel sizes that two places of a header give may differ by this fraction: both are rounded to single precision.
_SIZE_TOLERANCE = 0.01


def read_nifti(path: Path) -> Scan:
    """Read a `.nii` or `.nii.gz` file; the scale slope and intercept of its header are applied.

    Integer files without scaling keep their type, so a long CT stays int16 in memory; scaled files and floating-point
    files become float32. The affine is the sform where its code is set, else the qform where its code is set, else the
    spacings with the first axis to the left (`nibabel`'s best affine). A file that states no unit is in millimetres.
    What the header leaves open or says twice, and differently, is among the scan's findings.

    Raises
    ------
    InputRefusedError
        If the file is empty, truncated, corrupt, not a NIfTI, not 3D, or holds colours or complex numbers.
    """
    try:
        held = _unzipped_bytes(path) if path.suffix.lower() == ".gz" else path.stat().st_size
        image = nib.load(path, mmap=False, keep_file_open=True)  # a gzip stream opened anew is read from its beginning
        _check_length(path, image.dataobj, held)
        _check_kind(str(path), image)
        array = _values(image)
    except InputRefusedError:
        raise
    except Exception as error:  # the parser raises whatever a foreign or damaged file leads it to
        raise InputRefusedError(
            f"{path}: not a readable NIfTI file ({reason_of(error)}); expected a whole one: is it complete?",
            "unreadable",
        ) from error
    try:
        volume = _placed(array, image)
    except InputRefusedError as error:
        raise InputRefusedError(f"{path}: {error}", error.code) from error
    return Scan(volume=volume, name=path.name, path=path, findings=_findings(image.header))


def from_nibabel(image: nib.Nifti1Image) -> Scan:
    """The scan of an image that nibabel loaded or made, with voxels and affine as `read_nifti` has them.

    Raises
    ------
    InputRefusedError
        If it is not 3D, or holds colours or complex numbers.
    """
    _check_kind("the image", image)
    if hasattr(image.dataobj, "slope"):  # still in its file
        array = _values(image)
    else:
        array = np.asarray(image.dataobj).reshape(image.shape[:3])
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
    return Scan(volume=_placed(array, image), findings=_findings(image.header))


def to_nibabel(volume: Volume) -> nib.Nifti1Image:
    """A volume as an image of nibabel's, with the header that `write_nifti` gives it."""
    array = volume.array.astype(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    image = nib.Nifti1Image(array, volume.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    if not np.allclose(image.get_qform(), volume.affine, atol=1e-3):
        image.set_qform(None, code=0)
    return image


def write_nifti(volume: Volume, path: Path) -> None:
    """Write `volume` to a `.nii` or `.nii.gz` file with its affine as sform (code 1, scanner); bool becomes uint8.

    The qform says the same, except where the affine is sheared (a tilted gantry): a qform cannot hold a shear, so its
    code is then 0, unset.
    """
    nib.save(to_nibabel(volume), path)


def _check_kind(name: str, image: Any) -> None:
    """One grey value at each of the voxels of one volume."""
    stored = image.get_data_dtype()
    if stored.fields is not None or stored.kind == "c":
        kind = "complex numbers" if stored.kind == "c" else "colours (RGB)"
        raise InputRefusedError(f"{name}: the voxels are {kind}; expected one grey value each; convert it", "not_grey")
    if any(n != 1 for n in image.shape[3:]) or len(image.shape) < 3:
        raise InputRefusedError(
            f"{name}: {len(image.shape)} dimensions {image.shape}; expected one 3D volume; split it", "not_3d"
        )


def _placed(array: NDArray[Any], image: Any) -> Volume:
    """The voxels where the header of their image says, in millimetres."""
    unit_mm = _UNIT_MM.get(int(image.header["xyzt_units"]) & 0b111, 1.0)
    return Volume(array, np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ image.affine)


def _unzipped_bytes(path: Path) -> int:
    """Read the whole stream once, so that truncation and a wrong checksum raise, which a partial read leaves unseen."""
    held = 0
    with gzip.open(path) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            held += len(chunk)
    return held


def _check_length(path: Path, stored: Any, held: int) -> None:
    """The file holds as many bytes as its header promises; asked before memory is taken for them."""
    shape = stored.shape
    promised = int(stored.offset) + math.prod(map(int, shape)) * stored.dtype.itemsize
    if held < promised:
        raise InputRefusedError(
            f"{path}: {held} bytes; expected {promised} for the {' x '.join(map(str, shape))} voxels that the header "
            "promises; is it complete?",
            "unreadable",
        )


def _findings(header: Any) -> tuple[Finding, ...]:
    """What a header leaves open, or says twice and differently, about where the voxels lie.

    Programs differ in which of the two forms they read, so a scan whose forms disagree on the directions has been
    mirrored or turned for some of them.
    """
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not sform and not qform:
        message = "neither sform nor qform is set in the header: left and right are a guess; convert the scan again"
        return (warn("no_geometry", message),)
    if not sform:
        return ()
    affine = header.get_sform()
    if qform:
        try:
            other = header.get_qform()
        except Exception as error:  # a quaternion that is no rotation; nibabel raises a class of its own for it
            return (
                refuse(
                    "orientation_conflict",
                    f"the qform cannot be read ({error}); expected a rotation; repair or unset it",
                ),
            )
        axes, others = (nib.orientations.aff2axcodes(a) for a in (affine, other))
        if axes != others:
            return (
                refuse(
                    "orientation_conflict",
                    f"the axes run {''.join(axes)} by the sform and {''.join(others)} by the qform: left and right, or "
                    "others, are exchanged in one of them; expected one answer; find out which, and unset the other",
                ),
            )
    size = np.linalg.norm(affine[:3, :3], axis=0)
    zooms = np.asarray(header.get_zooms()[:3], np.float64)
    if not np.allclose(size, zooms, rtol=_SIZE_TOLERANCE):
        said, stated = (" x ".join(f"{mm:.4g}" for mm in sizes) for sizes in (size, zooms))
        message = f"the sform gives voxels of {said}, pixdim of {stated}: the sform is used; check the volumes"
        return (warn("spacing_conflict", message),)
    return ()


def _values(image: Any) -> NDArray[Any]:
    """(I, J, K) scaled values of an image in native byte order, read from the file now.

    Read some slices at a time, as scaling makes 64-bit numbers: four times the size of a stored CT.
    """
    stored = image.dataobj  # it alone keeps the scaling: the header of a loaded image has it blanked
    whole = (stored.slope, stored.inter) == (1, 0) and stored.dtype.kind in "iu"
    array = np.empty(image.shape[:3], stored.dtype.newbyteorder("=") if whole else np.float32, order="F")
    for first in range(0, array.shape[2], _SLICES):
        there = array[:, :, first : first + _SLICES]
        there[...] = stored[:, :, first : first + _SLICES].reshape(there.shape)
    return array
