"""From a scan in any orientation and spacing to the square axial slices that a network sees, and back.

`to_model_grid` resamples a scan to the model's grid, `to_source_grid` maps a mask on that grid to the scan's voxels.
Both are volumes with an affine, so the way back needs no record of the way there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy import ndimage

from meddelinea.data.resample import Shape, block_mean, resample_labels, resample_linear
from meddelinea.scan import Scan
from meddelinea.volume import Affine, Volume, apply_affine, box_corners

#: Index directions of a model slice: columns run to the patient's left, rows to the back, slices to the head. Shown
#: with rows downwards this is the radiological view.
ORIENTATION = "LPS"

#: A scan turned further than this from the patient's axes is resampled along them.
OBLIQUE_DEG = 5.0

BODY_SEARCH_MM = 4.0
#: Up to this share of a CT's window, or of an MR's range, a grey value is air.
AIR_SHARE = 0.05

Millimetres = Annotated[float, Field(strict=True, ge=0.01, le=100.0)]
Level = Annotated[float, Field(strict=True)]
Percentile = Annotated[float, Field(strict=True, ge=0.0, le=100.0)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(allow_inf_nan=False))
class Preprocessing:
    """How a scan becomes slices, checked when it is made; stored beside the weights as `preprocessing.json`."""

    size: Annotated[int, Field(strict=True, ge=8, le=4096)] = 256  # rows and columns of a slice
    spacing_mm: Millimetres = 1.5  # size of its pixels; larger only for a patient who would not fit into the slice
    #: Thinner slices are averaged in whole numbers until they come closest to this; thicker ones stay.
    slice_mm: Millimetres = 3.0
    window_hu: tuple[Level, Level] = (-125.0, 275.0)  # CT values mapped to -1 and 1; values beyond are clipped
    percentiles: tuple[Percentile, Percentile] = (0.5, 99.5)  # the same for an MR, as percentiles of its voxels
    #: Of which voxels: those of the patient, so that the share of air in a scan does not matter, or all.
    percentiles_of: Literal["body", "scan"] = "body"
    #: What lies in the middle of a slice: the patient's body, or the field of view, of scans that a body fills.
    centre: Literal["body", "field"] = "body"

    def __post_init__(self) -> None:
        for name, (low, high) in (("window_hu", self.window_hu), ("percentiles", self.percentiles)):
            if low >= high:
                raise ValueError(f"{name} from {low:g} to {high:g}; expected the lower value first")

    def shrunk(self, factor: int) -> Preprocessing:
        """The same field of view with `factor` times fewer and larger pixels along each side."""
        return replace(self, size=self.size // factor, spacing_mm=self.spacing_mm * factor)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Preprocessing:
        """From what `dataclasses.asdict` and JSON made of one; one without `percentiles_of` is of the whole scan.

        Raises
        ------
        KeyError, ValueError
            If another key is missing, or a value out of range.
        """
        known = {"percentiles_of": "scan", "centre": "body", **content}  # which models of older versions do not state
        return cls(**{field.name: known[field.name] for field in fields(cls)})


def intensity_window(scan: Scan, preprocessing: Preprocessing) -> tuple[float, float]:
    """Grey values that become -1 and 1: the CT window, or percentiles of an MR's voxels."""
    if scan.modality != "MR":
        return preprocessing.window_hu
    few = _few(scan)
    if preprocessing.percentiles_of == "body":
        few = few[few >= air_level(scan, preprocessing)]
    low, high = np.percentile(few, preprocessing.percentiles)
    return float(low), float(max(high, low + 1e-6))


def air_level(scan: Scan, preprocessing: Preprocessing) -> float:
    """Grey value below which a voxel is air."""
    is_mr = scan.modality == "MR"
    low, high = np.percentile(_few(scan), (0.5, 99.5)) if is_mr else preprocessing.window_hu
    return float(low + AIR_SHARE * (high - low))


def _few(scan: Scan) -> NDArray[Any]:
    """About two million voxels on a regular grid."""
    array = scan.volume.array
    step = max(1, round((array.size / 2e6) ** (1 / 3)))
    few: NDArray[Any] = array[::step, ::step, ::step]
    return few


def to_model_grid(scan: Scan, preprocessing: Preprocessing) -> Volume:
    """The scan on the model's grid: (size, size, S) float32 in [-1, 1], axes L, P, S; -1 (air) beyond the scan.

    Axes are the scan's own, or the patient's where the scan is oblique by more than 5 degrees.
    """
    low, high = intensity_window(scan, preprocessing)
    canonical = scan.volume.reorient(ORIENTATION)
    i_mm, j_mm, k_mm = canonical.spacing_mm
    columns, rows = (max(1, int(preprocessing.spacing_mm / mm + 0.05)) for mm in (i_mm, j_mm))
    coarse = block_mean(canonical, (columns, rows, max(1, round(preprocessing.slice_mm / k_mm))))
    affine, shape = _model_grid(coarse, preprocessing, air_level(scan, preprocessing))
    model = resample_linear(coarse, affine, shape, outside=low)
    scaled = np.clip((model.array - low) * (2.0 / (high - low)) - 1.0, -1.0, 1.0)
    return Volume(scaled.astype(np.float32, copy=False), affine)


def mask_to_model_grid(mask: Volume, model: Volume) -> Volume:
    """A reference mask on the grid of `model`, uint8."""
    return resample_labels(mask, model.affine, model.shape)


def to_source_grid(mask: Volume, source: Volume) -> Volume:
    """A mask on any grid mapped to the voxels of `source`, uint8: the inverse of `to_model_grid`."""
    # Resampled in canonical axes, where the result is the same for each orientation, into a view of the mask: a turned
    # copy of a long scan's would take hundreds of megabytes.
    made = np.empty(source.shape, np.uint8)
    canonical = Volume(made, source.affine).reorient(ORIENTATION)
    resample_labels(mask, canonical.affine, canonical.shape, out=canonical.array)
    return Volume(made, source.affine)


def _model_grid(scan: Volume, preprocessing: Preprocessing, air: float) -> tuple[Affine, Shape]:
    """The grid whose slices hold the patient's body, or the field of view, in their centre."""
    if scan.obliqueness_deg > OBLIQUE_DEG:
        axes = np.diag([-1.0, -1.0, 1.0])
        slice_mm = max(scan.spacing_mm[2], preprocessing.slice_mm)
    else:
        axes = scan.affine[:3, :3] / scan.spacing_mm
        slice_mm = scan.spacing_mm[2]
    to_axes = np.linalg.inv(axes).T
    extent = scan.corners_mm() @ to_axes
    low, high = extent.min(axis=0), extent.max(axis=0)
    slices = int(np.floor((high[2] - low[2]) / slice_mm + 1e-3)) + 1

    held = scan.corners_mm() if preprocessing.centre == "field" else body_corners_mm(scan, air)
    held_low, held_high = (held @ to_axes).min(axis=0)[:2], (held @ to_axes).max(axis=0)[:2]
    spacing_mm = max(preprocessing.spacing_mm, float((held_high - held_low).max()) / (preprocessing.size - 1))
    origin = np.array([*((held_low + held_high) / 2 - spacing_mm * (preprocessing.size - 1) / 2), low[2]])

    affine = np.eye(4)
    affine[:3, :3] = axes * (spacing_mm, spacing_mm, slice_mm)
    affine[:3, 3] = axes @ origin
    return affine, (preprocessing.size, preprocessing.size, slices)


def body_corners_mm(scan: Volume, air: float) -> NDArray[np.float64]:
    """(8, 3) corners, in RAS+ millimetres, of the box around the largest thing that is not air.

    Found on a coarse grid, after an opening that cuts thin bridges to the table; the whole scan if nothing is left.
    """
    steps = [max(1, int(BODY_SEARCH_MM / s)) for s in scan.spacing_mm]
    solid = scan.array[:: steps[0], :: steps[1], :: steps[2]] > air
    components, count = ndimage.label(ndimage.binary_opening(solid, np.ones((3, 3, 1), bool)))
    if not count:
        return scan.corners_mm()
    largest = 1 + int(np.argmax(np.bincount(components.ravel())[1:]))
    box = ndimage.find_objects(components)[largest - 1]
    low = [s.start * step for s, step in zip(box, steps, strict=True)]
    high = [(s.stop - 1) * step for s, step in zip(box, steps, strict=True)]
    return apply_affine(scan.affine, box_corners(low, high))


def neighbour_offsets(reach: int, sides: int) -> list[int]:
    """Where a slice's channels lie beside it, in slices: `sides` on either side, `reach` apart."""
    return [reach * side for side in range(-sides, sides + 1)]
