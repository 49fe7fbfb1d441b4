"""NIfTI files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.volume import Volume

# Codes of the header's spatial unit that are neither millimetres (2) nor unstated (0), and their size in millimetres.
_UNIT_MM = {1: 1000.0, 3: 0.001}
_CHUNK_BYTES = 1 << 24
_SLICES = 16


def read_nifti(path: Path) -> Volume:
    """Read a `.nii` or `.nii.gz` file; the scale slope and intercept of its header are applied.

    Integer files without scaling keep their type, so a long CT stays int16 in memory; scaled files and floating-point
    files become float32. The affine is the sform where its code is set, else the qform where its code is set, else the
    spacings with the first axis to the left (`nibabel`'s best affine). A file that states no unit is in millimetres.

    Raises
    ------
    InputRefusedError
        If the file is empty, truncated, corrupt, not a NIfTI, not 3D, or holds colours or complex numbers.
    """
    try:
        if path.suffix.lower() == ".gz":
            _check_gzip(path)
        image = nib.load(path, mmap=False, keep_file_open=True)  # a gzip stream opened anew is read from its beginning
        stored = image.get_data_dtype()
        if stored.fields is not None or stored.kind == "c":
            kind = "complex numbers" if stored.kind == "c" else "colours (RGB)"
            raise InputRefusedError(f"{path}: the voxels are {kind}; expected one grey value each")
        if any(n != 1 for n in image.shape[3:]) or len(image.shape) < 3:
            raise InputRefusedError(f"{path}: {len(image.shape)} dimensions {image.shape}; expected one 3D volume")
        array = _values(image)
    except InputRefusedError:
        raise
    except Exception as error:  # the parser raises whatever a foreign or damaged file leads it to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputRefusedError(f"{path}: not a readable NIfTI file ({reason}); is it complete?") from error
    unit_mm = _UNIT_MM.get(int(image.header["xyzt_units"]) & 0b111, 1.0)
    try:
        return Volume(array, np.diag([unit_mm, unit_mm, unit_mm, 1.0]) @ image.affine)
    except InputRefusedError as error:
        raise InputRefusedError(f"{path}: {error}") from error


def write_nifti(volume: Volume, path: Path) -> None:
    """Write `volume` to a `.nii` or `.nii.gz` file with its affine as sform (code 1, scanner); bool becomes uint8.

    The qform says the same, except where the affine is sheared (a tilted gantry): a qform cannot hold a shear, so its
    code is then 0, unset.
    """
    array = volume.array.astype(np.uint8) if volume.array.dtype == np.bool_ else volume.array
    image = nib.Nifti1Image(array, volume.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    image.set_sform(volume.affine, code=1)
    image.set_qform(volume.affine, code=1)
    if not np.allclose(image.get_qform(), volume.affine, atol=1e-3):
        image.set_qform(None, code=0)
    nib.save(image, path)


def _check_gzip(path: Path) -> None:
    """Read the whole stream once, so that truncation and a wrong checksum raise, which a partial read leaves unseen."""
    with gzip.open(path) as stream:
        while stream.read(_CHUNK_BYTES):
            pass


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
