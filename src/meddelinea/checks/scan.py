"""May this scan be segmented? One answer for `check` and `predict`.

A network segments whatever it is given: grey values on another scale give an empty or an absurd mask without an error.
So a scan is refused, with its remedy, where its values or its grid cannot be those of the scans a model was trained on.
Each reason has a stable name; docs/checks.md explains them all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.checks.grey_values import METAL_ABOVE_HU, check_grey_values, metal
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.findings import Finding, refuse, warn
from meddelinea.scan import Modality, Scan
from meddelinea.volume import Volume

#: Voxels that the distribution of values is judged on; a strided subset of this size is plenty.
SAMPLE_VOXELS = 1_000_000
#: Angle between a voxel axis and the perpendicular of the others that is named, and one that no gantry can have.
TILT_DEG, STEEPEST_TILT_DEG = 1.0, 40.0
#: A volume lower than this, from feet to head, shows parts of organs only.
SHORT_MM = 20.0
#: Share of a CT's outermost columns and rows that are body, from which on the scan is a cut-out of one.
CROPPED_SHARE = 0.5


def examine(scan: Scan, trained: tuple[Modality, ...], modality: Modality | None = None) -> Scan:
    """The scan with its modality decided, and with all that a user should know of it in `findings`, refusals first.

    The one place where a modality is decided: it is what the file says, else what the user says, else the only one that
    the model was trained on. Where that leaves it open, the scan is refused.

    Parameters
    ----------
    scan
        As its reader made it.
    trained
        What the model was trained on.
    modality
        What the user says that the scan is, for files that do not say it.

    Raises
    ------
    UsageError
        If the file says another modality than the user.
    """
    if modality is not None and scan.modality not in (None, modality):
        raise UsageError(
            f"{scan.place}: the file says {scan.modality}; leave modality {modality} out", parameter="modality"
        )
    only = trained[0] if len(trained) == 1 else None
    scan = replace(scan, modality=scan.modality or modality or only)
    found = [*scan.findings, *_grid(scan.volume), *_values(scan, trained)]
    return replace(scan, findings=tuple(sorted(found, key=lambda finding: finding.level != "refuse")))


def require_accepted(scan: Scan) -> None:
    """Raise InputRefusedError, with all findings, where one of those of an examined scan is a refusal."""
    refusals = [finding for finding in scan.findings if finding.level == "refuse"]
    if refusals:
        message = "; ".join(finding.message for finding in refusals)
        unknown = any(finding.code == "modality_unknown" for finding in refusals)
        raise InputRefusedError(
            f"{scan.place}: {message}", findings=scan.findings, parameter="modality" if unknown else None
        )


def _grid(volume: Volume) -> list[Finding]:
    """Findings about the shape and the spacing."""
    shape, spacing = volume.array.shape, volume.spacing_mm
    findings = []
    size = " x ".join(f"{mm:.3g}" for mm in spacing)
    if min(shape) < 3:
        count = " x ".join(map(str, shape))
        findings.append(
            refuse(
                "too_few_slices",
                f"the volume is {count} voxels; expected 3 or more slices along each axis; pass the whole scan",
            )
        )
    if min(spacing) < 0.1 or max(spacing) > 20.0:
        findings.append(
            refuse(
                "spacing", f"the voxel spacing is {size} mm; expected 0.1 to 20 mm along each axis: repair the header"
            )
        )
    else:
        if max(spacing) > 10.0:
            message = f"the voxel spacing is {size} mm: small organs fall between such slices"
            findings.append(warn("thick_slices", message))
        findings += _extent(volume)
    findings += _axes(volume)
    if np.array_equal(volume.affine, np.eye(4)):
        message = "the affine is the identity, as in a file that lost its header: left and right are guesses"
        findings.append(warn("no_geometry", message))
    return findings


def _extent(volume: Volume) -> list[Finding]:
    """Findings about how much of a body the grid can hold."""
    extent_mm = [n * mm for n, mm in zip(volume.array.shape, volume.spacing_mm, strict=True)]
    seen = " x ".join(f"{mm:.0f}" for mm in extent_mm)
    if sorted(extent_mm)[1] < 60.0:
        return [
            refuse(
                "small_extent",
                f"the volume covers {seen} mm; expected at least 60 x 60 mm of a body: check the spacing in the header",
            )
        ]
    if max(extent_mm) > 2500.0:
        message = f"the volume covers {seen} mm; expected no more than 2500 mm: check the spacing in the header"
        return [refuse("large_extent", message)]
    if extent_mm[_body_axis(volume)] < SHORT_MM:
        return [
            warn(
                "short_scan",
                f"the scan is {extent_mm[_body_axis(volume)]:.0f} mm high: organs are seen in part, and their volumes "
                "are those of the parts",
            )
        ]
    return []


def _body_axis(volume: Volume) -> int:
    """The voxel axis that runs between feet and head."""
    return next(axis for axis, direction in enumerate(volume.orientation) if direction in "SI")


def _axes(volume: Volume) -> list[Finding]:
    """Findings about the directions of the voxel axes."""
    findings = []
    directions = volume.affine[:3, :3] / volume.spacing_mm
    across = np.cross(directions.T[[1, 2, 0]], directions.T[[2, 0, 1]])
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    cosines = np.abs(np.sum(directions.T * across, axis=1))
    tilt_deg = float(np.rad2deg(np.arccos(np.clip(cosines, 0.0, 1.0))).max())
    if tilt_deg > STEEPEST_TILT_DEG:
        message = f"the voxel axes are {tilt_deg:.0f} degrees from perpendicular; expected 0, or up to 30 of a gantry"
        findings.append(refuse("sheared", f"{message}: repair the affine"))
    elif tilt_deg > TILT_DEG:
        message = (
            f"slices tilted by {tilt_deg:.1f} degrees (gantry): resampled for the model, the mask lies on the scan"
        )
        findings.append(warn("gantry_tilt", message))
    spacing = volume.spacing_mm
    thick = int(np.argmax(spacing))
    if spacing[thick] >= 2.0 * sorted(spacing)[1] and thick != _body_axis(volume):
        plane = "sagittal" if volume.orientation[thick] in "LR" else "coronal"
        message = f"{plane} slices {spacing[thick]:.3g} mm apart: the model was trained on axial ones; look twice"
        findings.append(warn("not_axial", message))
    return findings


def _values(scan: Scan, trained: tuple[Modality, ...]) -> list[Finding]:
    """Findings about the modality and the grey values."""
    array = scan.volume.array
    if array.dtype.kind not in "iuf":
        return [refuse("not_numbers", f"the voxels are {array.dtype}; expected real numbers; convert it")]
    lowest, highest = float(array.min()), float(array.max())  # NaN and infinity surface here, without a second array
    if not np.isfinite([lowest, highest]).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        message = (
            f"{count} of {array.size} voxels are NaN or infinite; expected numbers; replace them, by -1024 in a CT"
        )
        return [refuse("not_finite", message)]
    if lowest == highest:
        return [refuse("constant", f"every voxel is {lowest:g}; expected a picture; export the scan again")]
    if scan.modality is None:
        message = f"the file names no modality; expected {' or '.join(trained)}, as the model was trained on both"
        return [refuse("modality_unknown", f"{message}; say which it is")]
    if scan.modality not in trained:
        message = f"the scan is {scan.modality}, expected {' and '.join(trained)}, which the model was trained on"
        return [refuse("modality", f"{message}; use a model for {scan.modality}")]
    findings = check_grey_values(_sample(array), lowest, highest, scan.modality)
    if scan.modality == "CT" and all(finding.level == "warn" for finding in findings):
        if highest > METAL_ABOVE_HU:
            findings += metal(int(np.count_nonzero(array > METAL_ABOVE_HU)) * scan.volume.voxel_ml)
        findings += _border(scan.volume)
    return findings


def _sample(array: NDArray[Any]) -> NDArray[np.float64]:
    """About `SAMPLE_VOXELS` voxels on a regular grid, flattened."""
    step = max(1, round((array.size / SAMPLE_VOXELS) ** (1 / 3)))
    return np.asarray(array[::step, ::step, ::step], np.float64).ravel()


def _border(volume: Volume) -> list[Finding]:
    """A remark where the outermost voxels of a CT's axial slices are body rather than air or table."""
    array = volume.reorient("RAS").array
    sides = (array[0], array[-1], array[:, 0], array[:, -1])
    share = float(np.mean(np.concatenate([side.ravel() for side in sides]) > -100.0))
    if share <= CROPPED_SHARE:
        return []
    message = f"{100 * share:.0f} % of the slices' border is body: a cut-out; the model was trained on whole slices"
    return [warn("cropped", f"{message}; pass the whole scan")]
