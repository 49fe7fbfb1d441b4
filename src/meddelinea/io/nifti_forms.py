"""The two affines of a NIfTI header, its sform and its qform: which counts, where they disagree, and carrying them on.

Programs differ in which of the two they read. A mask that carries both as its scan does lies on the scan for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.findings import Finding, refuse, warn
from meddelinea.volume import Affine, Volume

# Codes of the header's spatial unit that are neither millimetres (2) nor unstated (0), and their size in millimetres.
_UNIT_MM = {1: 1000.0, 3: 0.001}
_UNIT_BITS = 0b111
_QUATERNION = ("quatern_b", "quatern_c", "quatern_d")
_OFFSET = ("qoffset_x", "qoffset_y", "qoffset_z")
_ROWS = ("srow_x", "srow_y", "srow_z")
_PLACING = ("qform_code", "sform_code", *_QUATERNION, *_OFFSET, *_ROWS)
#: The largest code of a form that the format knows: another template.
_LAST_CODE = 5
#: Voxel sizes that two places of a header give may differ by this fraction: both are rounded to single precision.
_SIZE_TOLERANCE = 0.01
#: A quaternion may be longer than 1 by this much, as single precision and programs that print decimals make it.
_LENGTH_TOLERANCE = 0.01


def affine_mm(header: nib.Nifti1Header) -> Affine:
    """The sform where its code is set, else the qform where its code is set, else the voxel sizes; in millimetres.

    The last has the first axis to the left (`nibabel`'s best affine).

    Raises
    ------
    InputRefusedError
        If a code is none of the format's, or what counts is a qform that is no rotation or lacks voxel sizes.
    """
    codes = {name: int(header[name]) for name in ("sform_code", "qform_code")}
    for name, code in codes.items():
        if not 0 <= code <= _LAST_CODE:
            raise InputRefusedError(
                f"the header's {name} is {code}; expected 0 to {_LAST_CODE}; repair the header", "bad_affine"
            )
    if codes["sform_code"]:
        affine = _sform(header)
    else:
        sizes = np.asarray(header["pixdim"][1:4], np.float64)
        if not (np.isfinite(sizes) & (sizes > 0)).all():
            raise InputRefusedError(
                f"the header's pixdim gives voxels of {_times(sizes)}; expected sizes above 0; repair the header",
                "bad_affine",
            )
        affine = _qform(header, sizes) if codes["qform_code"] else header.get_base_affine()
    placed: Affine = np.array(affine, np.float64)
    placed[:3] *= _unit_mm(header)
    return placed


def forms_of(header: nib.Nifti1Header) -> dict[str, Any]:
    """The fields of a header that place its voxels, as they are stored."""
    sizes = np.array(header["pixdim"][:4], np.float64)
    unit = int(header["xyzt_units"]) & _UNIT_BITS
    return {name: np.array(header[name]) for name in _PLACING} | {"pixdim": sizes, "xyzt_units": unit}


def carry(forms: Mapping[str, Any], header: nib.Nifti1Header) -> None:
    """Write the fields that `forms_of` read into the header of a volume on the same grid."""
    for name in _PLACING:
        header[name] = forms[name]
    header["pixdim"][:4] = forms["pixdim"]
    header["xyzt_units"] = forms["xyzt_units"]


def find_disagreements(header: nib.Nifti1Header) -> tuple[Finding, ...]:
    """What a header leaves open, or says twice and differently, about where the voxels lie.

    Programs differ in which of the two forms they read, so a scan whose forms disagree on the directions has been
    mirrored or turned for some of them, and one whose forms lie apart is elsewhere for some.
    """
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if not sform_code and not qform_code:
        message = "neither sform nor qform is set in the header: left and right are a guess; convert the scan again"
        return (warn("no_geometry", message),)
    if not sform_code:
        return ()
    sform, findings = _sform(header), []
    size = np.linalg.norm(sform[:3, :3], axis=0)
    stated = np.asarray(header["pixdim"][1:4], np.float64)
    if not np.allclose(size, stated, rtol=_SIZE_TOLERANCE):
        message = f"the sform gives voxels of {_times(size)}, pixdim of {_times(stated)}: the sform is used"
        findings.append(warn("spacing_conflict", f"{message}; check the volumes"))
    if qform_code:
        try:
            qform = _qform(header, size)  # the voxel sizes have a remark of their own
        except InputRefusedError as error:
            return (refuse("orientation_conflict", f"{error}, or unset it, as there is a sform"),)
        if nib.orientations.aff2axcodes(np.linalg.inv(qform) @ sform) != ("R", "A", "S"):
            axes, others = ("".join(nib.orientations.aff2axcodes(affine)) for affine in (sform, qform))
            message = (
                f"the axes run {axes} by the sform and {others} by the qform: left and right, or others, are exchanged "
                "in one of them; expected one answer; find out which, and unset the other"
            )
            return (refuse("orientation_conflict", message),)
        findings += _apart(sform, qform, header)
    return tuple(findings)


def _apart(sform: Affine, qform: Affine, header: nib.Nifti1Header) -> list[Finding]:
    """A remark where the forms place a corner more than a voxel apart."""
    shape = header.get_data_shape()[:3]
    corners = Volume(np.broadcast_to(np.uint8(0), shape), sform)  # no memory for the voxels
    away = corners.corner_distance_mm(qform)
    if away <= np.linalg.norm(sform[:3, :3], axis=0).max():
        return []
    unit_mm = _unit_mm(header)
    places = [f"({', '.join(f'{mm:.1f}' for mm in unit_mm * form[:3, 3])}) mm" for form in (sform, qform)]
    return [
        warn(
            "forms_differ",
            f"the first voxel lies at {places[0]} by the sform (code {int(header['sform_code'])}) and at {places[1]} "
            f"by the qform (code {int(header['qform_code'])}), and corners up to {unit_mm * away:.1f} mm apart: the "
            "sform is used, and the mask carries both; other programs may read the qform",
        )
    ]


def _sform(header: nib.Nifti1Header) -> Affine:
    return np.array([*(header[row] for row in _ROWS), [0, 0, 0, 1]], np.float64)


def _qform(header: nib.Nifti1Header, sizes: NDArray[np.float64]) -> Affine:
    """The qform as the reference implementation reads it, for voxels of these sizes.

    A quaternion that is a little too long is shortened, and a first pixdim of 0 means 1.
    """
    imaginary = np.array([header[part] for part in _QUATERNION], np.float64)
    squared = float(imaginary @ imaginary)
    if not squared <= (1 + _LENGTH_TOLERANCE) ** 2:  # NaN is not
        raise InputRefusedError(
            f"the qform's quaternion ({', '.join(f'{part:.4g}' for part in imaginary)}) is no rotation; expected a "
            "length of at most 1; repair it",
            "bad_affine",
        )
    rotation = quat2mat([np.sqrt(max(0.0, 1.0 - squared)), *imaginary])
    affine = np.eye(4)
    affine[:3, :3] = rotation * sizes * (1, 1, -1 if header["pixdim"][0] < 0 else 1)
    affine[:3, 3] = [header[part] for part in _OFFSET]
    return affine


def _unit_mm(header: nib.Nifti1Header) -> float:
    return _UNIT_MM.get(int(header["xyzt_units"]) & _UNIT_BITS, 1.0)


def _times(sizes: Any) -> str:
    return " x ".join(f"{mm:.4g}" for mm in sizes)
