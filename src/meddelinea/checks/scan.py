"""May this scan be segmented? One answer for `check` and `predict`.

A network segments whatever it is given: grey values on another scale give an empty or an absurd mask without an error.
So a scan is refused, with its remedy, where its values or its grid cannot be those of the scans a model was trained on.
Each reason has a stable name; docs/checks.md explains them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.checks.grey_values import METAL_ABOVE_HU, check_grey_values, metal
from meddelinea.checks.limits import ScanLimits, ScanTraits, body_axis, extent_mm, slice_plane
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.findings import Finding, refuse, warn
from meddelinea.scan import Modality, Scan
from meddelinea.volume import Volume

#: Voxels that the distribution of values is judged on; a strided subset of this size is plenty.
SAMPLE_VOXELS = 1_000_000
#: Angle between a voxel axis and the perpendicular of the others that is named, and one that no gantry can have.
TILT_DEG, STEEPEST_TILT_DEG = 1.0, 40.0


def examine(scan: Scan, limits: ScanLimits, modality: Modality | None = None) -> Scan:
    """The scan with its modality decided, and with all that a user should know of it in `findings`, refusals first.

    The one place where a modality is decided: it is what the file says, else what the user says, else the only one that
    the model was trained on, else CT where the values are Hounsfield units. Where that leaves it open, the scan is
    refused.

    Parameters
    ----------
    scan
        As its reader made it.
    limits
        What the model takes: it follows from the scans that it was trained on.
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
    only = limits.modalities[0] if len(limits.modalities) == 1 else None
    scan = replace(scan, modality=scan.modality or modality or only)
    if scan.modality is None and "CT" in limits.modalities and _is_hounsfield(scan.volume.array):
        scan = replace(scan, modality="CT")
    found = [*scan.findings, *_grid(scan.volume, limits), *_values(scan, limits)]
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


def traits(scan: Scan, organ_ml: Mapping[str, float]) -> ScanTraits:
    """What a scan that a model is trained on, its modality known, tells of those that the model takes.

    Parameters
    ----------
    organ_ml
        Volume of each organ that is labelled in it.
    """
    array, is_ct = scan.volume.array, scan.modality == "CT"
    findings = _values(scan, ScanLimits(modalities=(scan.modality or "CT",)))
    low, high = np.percentile(_sample(array), (1, 99))
    return ScanTraits(
        shape=scan.volume.shape,
        affine=tuple(tuple(row) for row in scan.volume.affine.tolist()),
        values=(float(low), float(high)),
        refusal=next((finding for finding in findings if finding.level == "refuse"), None),
        border=_border_share(scan.volume) if is_ct else 0.0,
        dense_ml=_dense_ml(scan.volume) if is_ct else 0.0,
        organ_ml=organ_ml,
    )


def reasons_to_refuse(scan: ScanTraits, limits: ScanLimits) -> list[Finding]:
    """Why a model would refuse a scan that is known by its traits alone."""
    found = _grid(scan.grid, limits)
    if scan.refusal is not None and scan.refusal.code != limits.scale:
        found.append(scan.refusal)
    return [finding for finding in found if finding.level == "refuse"]


def _grid(volume: Volume, limits: ScanLimits) -> list[Finding]:
    """Findings about the shape and the spacing."""
    shape, spacing = volume.array.shape, volume.spacing_mm
    findings = []
    size = " x ".join(f"{mm:.3g}" for mm in spacing)
    if min(shape) < limits.fewest_voxels:
        count = " x ".join(map(str, shape))
        findings.append(
            refuse(
                "too_few_slices",
                f"the volume is {count} voxels; expected {limits.fewest_voxels} or more slices along each axis; "
                "pass the whole scan",
            )
        )
    if min(spacing) < limits.finest_mm or max(spacing) > limits.coarsest_mm:
        expected = f"expected {limits.finest_mm:g} to {limits.coarsest_mm:g} mm along each axis"
        findings.append(
            refuse("spacing", f"the voxel spacing is {size} mm; {expected}{_like(limits)}: repair the header")
        )
    else:
        if max(spacing) > limits.thick_mm:
            message = f"the voxel spacing is {size} mm: small organs fall between such slices"
            findings.append(warn("thick_slices", message))
        findings += _extent(volume, limits)
    findings += _axes(volume, limits)
    if np.array_equal(volume.affine, np.eye(4)):
        message = "the affine is the identity, as in a file that lost its header: left and right are guesses"
        findings.append(warn("no_geometry", message))
    return findings


def _like(limits: ScanLimits) -> str:
    """What is said of limits that come from a model's own training scans."""
    return f" by the {limits.scans} scans that the model was trained on" if limits.scans else ""


def _extent(volume: Volume, limits: ScanLimits) -> list[Finding]:
    """Findings about how much of a body the grid can hold."""
    extent = extent_mm(volume)
    height_mm = extent[body_axis(volume)]
    seen = " x ".join(f"{mm:.0f}" for mm in extent)
    if sorted(extent)[1] < limits.smallest_mm:
        size = f"{limits.smallest_mm:.3g}"
        expected = f"expected at least {size} x {size} mm{_like(limits) or ' of a body'}"
        return [refuse("small_extent", f"the volume covers {seen} mm; {expected}: check the spacing in the header")]
    if max(extent) > limits.largest_mm:
        expected = f"expected no more than {limits.largest_mm:.0f} mm{_like(limits)}"
        return [refuse("large_extent", f"the volume covers {seen} mm; {expected}: check the spacing in the header")]
    if height_mm < limits.short_mm:
        message = (
            f"the scan is {height_mm:.0f} mm high: organs are seen in part, and their volumes are those of the parts"
        )
        return [warn("short_scan", message)]
    return []


def _axes(volume: Volume, limits: ScanLimits) -> list[Finding]:
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
    plane = slice_plane(volume)
    if plane is not None and plane not in limits.planes:
        message = (
            f"{plane} slices {max(volume.spacing_mm):.3g} mm apart: the model was trained on "
            f"{' and '.join(limits.planes)} ones; look twice"
        )
        findings.append(warn("other_plane" if plane == "axial" else "not_axial", message))
    return findings


def _values(scan: Scan, limits: ScanLimits) -> list[Finding]:
    """Findings about the modality and the grey values."""
    array, trained = scan.volume.array, limits.modalities
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
        return _undecided(check_grey_values(_sample(array), lowest, highest, "CT"), trained)
    if scan.modality not in trained:
        message = f"the scan is {scan.modality}, expected {' and '.join(trained)}, which the model was trained on"
        return [refuse("modality", f"{message}; use a model for {scan.modality}")]
    sample = _sample(array)
    findings = check_grey_values(sample, lowest, highest, scan.modality)
    if limits.scale is not None:
        findings = _other_scale(findings, sample, limits)
    if scan.modality == "CT" and all(finding.level == "warn" for finding in findings):
        if highest > METAL_ABOVE_HU:
            findings += metal(_dense_ml(scan.volume), limits.dense_ml)
        findings += _border(scan.volume, limits)
    return findings


def _undecided(as_ct: Sequence[Finding], trained: Sequence[Modality]) -> list[Finding]:
    """What is said of a scan that may be of either modality and is no CT as it stands, whose findings are given.

    Where they say what was done to a CT, that is what is wrong: of an MR they say only that it is none.
    """
    done = [finding for finding in as_ct if finding.level == "refuse" and finding.code != "not_hounsfield"]
    if done:
        return [replace(finding, message=f"{finding.message}; or say that it is an MR") for finding in done]
    message = f"the file names no modality; expected {' or '.join(trained)}, as the model was trained on both"
    return [refuse("modality_unknown", f"{message}; say which it is")]


def _is_hounsfield(array: NDArray[Any]) -> bool:
    """Whether nothing about the grey values contradicts a CT."""
    if array.dtype.kind not in "iuf":
        return False
    sample, lowest, highest = _sample(array), float(array.min()), float(array.max())
    if not np.isfinite([lowest, highest]).all() or lowest == highest:
        return False
    return all(finding.level == "warn" for finding in check_grey_values(sample, lowest, highest, "CT"))


def _other_scale(findings: list[Finding], values: NDArray[np.float64], limits: ScanLimits) -> list[Finding]:
    """The findings for a model whose training scans were not on the scale of their modality: theirs is expected."""
    low, high = limits.values
    found_low, found_high = np.percentile(values, (1, 99))
    margin = (high - low) / 2
    alike = low - margin <= found_low and found_high <= high + margin and 10 * (found_high - found_low) >= high - low
    refused = [finding for finding in findings if finding.level == "refuse"]
    if [finding.code for finding in refused] == [limits.scale] and alike:
        return []
    if not refused and "MR" not in limits.modalities:
        message = f"the values run from {found_low:.4g} to {found_high:.4g} (1st and 99th percentile)"
        expected = f"expected {low:.4g} to {high:.4g}{_like(limits)}; export it as those were"
        return [refuse("rescaled", f"{message}; {expected}")]
    return findings


def _sample(array: NDArray[Any]) -> NDArray[np.float64]:
    """About `SAMPLE_VOXELS` voxels on a regular grid, flattened."""
    step = max(1, round((array.size / SAMPLE_VOXELS) ** (1 / 3)))
    return np.asarray(array[::step, ::step, ::step], np.float64).ravel()


def _dense_ml(volume: Volume) -> float:
    """Millilitres that are denser than any bone."""
    return int(np.count_nonzero(volume.array > METAL_ABOVE_HU)) * volume.voxel_ml


def _border_share(volume: Volume) -> float:
    """Share of the outermost voxels of a CT's axial slices that are body rather than air or table."""
    array = volume.reorient("RAS").array
    sides = (array[0], array[-1], array[:, 0], array[:, -1])
    return float(np.mean(np.concatenate([side.ravel() for side in sides]) > -100.0))


def _border(volume: Volume, limits: ScanLimits) -> list[Finding]:
    """A remark where a CT is a cut-out of one, and the model was trained on whole slices."""
    share = _border_share(volume)
    if share <= limits.border:
        return []
    message = f"{100 * share:.0f} % of the slices' border is body: a cut-out; the model was trained on whole slices"
    return [warn("cropped", f"{message}; pass the whole scan")]
