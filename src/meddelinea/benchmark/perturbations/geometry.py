"""Where things lie, and perturbations of it: slices, position, field of view.

Where a scan is cropped or cut into other slices, a point of the anatomy keeps its millimetres; where the patient lies
otherwise in the scanner, the grid stays and the anatomy moves. The mask follows the scan.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from meddelinea.data.case import LabelledScan
from meddelinea.data.preprocess import ORIENTATION
from meddelinea.data.resample import resample_labels, resample_linear
from meddelinea.errors import InputRefusedError
from meddelinea.volume import Affine, Volume

#: Between air and skin.
BODY_HU = -300.0
#: Where a scan was clipped above that: how far above its lowest value. Air is then flat, and fat but little above it.
_ABOVE_LOWEST_HU = 5.0
#: The opening that cuts what joins the patient to the table, such as a sheet.
_OPENING_MM = 4.0


def canonical(case: LabelledScan) -> LabelledScan:
    """A labelled CT as perturbations take and return it: float32, axes to the left, the back and the head (`LPS`).

    Raises
    ------
    InputRefusedError
        If scan and mask lie on different grids, or the scan is not a CT: perturbations are in Hounsfield units.
    """
    scan, mask, modality = case.volume, case.mask, case.scan.modality
    if modality != "CT":
        raise InputRefusedError(f"modality {modality}; expected a CT: the perturbations are in Hounsfield units")
    if scan.shape != mask.shape or not np.allclose(scan.affine, mask.affine, atol=1e-3):
        raise InputRefusedError(
            f"a scan of {scan.shape} voxels and a mask of {mask.shape}; expected one grid; resample the mask to it"
        )
    turned = scan.reorient(ORIENTATION)
    grey = np.ascontiguousarray(turned.array, np.float32)
    ids = np.ascontiguousarray(Volume(mask.array, scan.affine).reorient(ORIENTATION).array, np.uint8)
    return case.with_voxels(Volume(grey, turned.affine), Volume(ids, turned.affine))


def body(scan: Volume) -> NDArray[np.bool_]:
    """(I, J, K) where the patient is in a CT with slices along K, gas inside included; table, clothes and air are not.

    The largest piece above a threshold between air and skin, after an opening in plane, filled slice by slice. The
    whole scan where nothing is left.
    """
    threshold = max(BODY_HU, float(scan.array.min()) + _ABOVE_LOWEST_HU)
    i_mm, j_mm, _ = scan.spacing_mm
    # Fat lies near the threshold of a clipped scan: its noise would tear it into pieces, which cannot be filled where
    # the field of view cuts the skin.
    smooth = ndimage.gaussian_filter(np.asarray(scan.array, np.float32), (2.0 / i_mm, 2.0 / j_mm, 0.0))
    opened = ndimage.binary_opening(smooth > threshold, _disc(_OPENING_MM, i_mm, j_mm))
    pieces, count = ndimage.label(opened)
    if not count:
        return np.ones(scan.array.shape, np.bool_)
    largest = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    for index in range(largest.shape[2]):
        largest[:, :, index] = ndimage.binary_fill_holes(largest[:, :, index])
    return np.asarray(largest, np.bool_)


def _disc(radius_mm: float, i_mm: float, j_mm: float) -> NDArray[np.bool_]:
    """(2a + 1, 2b + 1, 1) voxels within a radius in plane, at least the face neighbours."""
    a, b = max(1, int(radius_mm / i_mm)), max(1, int(radius_mm / j_mm))
    i, j = np.mgrid[-a : a + 1, -b : b + 1]
    inside: NDArray[np.bool_] = (i / a) ** 2 + (j / b) ** 2 <= 1.0
    return inside[:, :, None]


def thin_slices(case: LabelledScan, slice_mm: float) -> LabelledScan:
    """Slices interpolated to a smaller distance: thin reconstructions of modern scanners, as to number and size.

    Linear along K, from the first slice's centre to the last one's; a slice takes the labels of the nearest.
    """
    i, j, k = case.volume.array.shape
    step = slice_mm / case.volume.spacing_mm[2]
    slices = int((k - 1) / step + 1e-6) + 1
    affine = case.volume.affine @ np.diag([1.0, 1.0, step, 1.0])
    scan = resample_linear(case.volume, affine, (i, j, slices), outside=case.air)
    return case.with_voxels(scan, resample_labels(case.mask, affine, (i, j, slices)))


def thick_slices(case: LabelledScan, slice_mm: float) -> LabelledScan:
    """Slabs averaged: the thick reconstructions of older protocols and archives.

    Slabs lie side by side from the lower face of the first slice; an incomplete last one is left out. Each is the mean
    of the slices in it, weighed by how far they reach into it, and takes the labels at its centre (halfway between two
    slices, those of either). A scan with slices at least as thick is returned as it is, and one that is thinner than a
    slab becomes a single slice.
    """
    i, j, k = case.volume.array.shape
    thickness = slice_mm / case.volume.spacing_mm[2]  # in slices
    if thickness <= 1.0:
        return case
    slabs = max(1, int(k / thickness + 1e-6))
    low = np.arange(slabs)[:, None] * thickness  # in slices from the lower face of the first
    reach = np.minimum(low + thickness, np.arange(1, k + 1)) - np.maximum(low, np.arange(k))
    weights = np.clip(reach, 0.0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    mean = np.matmul(case.volume.array, weights.T.astype(np.float32))
    place = np.diag([1.0, 1.0, thickness, 1.0])
    place[2, 3] = (min(thickness, k) - 1.0) / 2.0
    affine = case.volume.affine @ place
    mask = resample_labels(case.mask, affine, (i, j, slabs))
    return case.with_voxels(Volume(mean, affine), mask)


def turned(case: LabelledScan, angle_deg: float) -> LabelledScan:
    """The patient turned about the long axis through the scan's centre: lying on a side by a cushion, or in pain.

    Positive angles are anticlockwise seen from the head. Linear; what comes from outside the scan is air.
    """
    affine = case.volume.affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    rotation = Rotation.from_rotvec(normal / np.linalg.norm(normal) * angle_deg, degrees=True).as_matrix()
    centre = affine[:3, :3] @ ((np.array(case.volume.array.shape) - 1) / 2) + affine[:3, 3]
    motion = np.eye(4)
    motion[:3, :3] = rotation
    motion[:3, 3] = centre - rotation @ centre
    moved: Affine = motion @ affine
    shape = case.volume.shape
    scan = resample_linear(Volume(case.volume.array, moved), affine, shape, outside=case.air)
    return case.with_voxels(scan, resample_labels(Volume(case.mask.array, moved), affine, shape))


def off_centre(case: LabelledScan, shift_mm: float) -> LabelledScan:
    """The patient too far to the patient's own left in the field of view, by a whole number of voxels.

    Nothing is interpolated. What leaves the field is lost, with its labels; air comes in.
    """
    shift = round(shift_mm / case.volume.spacing_mm[0])
    kept = max(0, len(case.volume.array) - shift)
    grey, ids = np.full_like(case.volume.array, case.air), np.zeros_like(case.mask.array)
    grey[shift:], ids[shift:] = case.volume.array[:kept], case.mask.array[:kept]
    mask = Volume(ids, case.mask.affine)
    return case.with_voxels(Volume(grey, case.volume.affine), mask)


def square_field(case: LabelledScan, side_mm: float) -> LabelledScan:
    """A square field of view about the body's centre: a reconstruction that leaves the flanks out.

    The grid becomes smaller; a scan that is smaller already is not enlarged.
    """
    return _cropped(case, *_square(case, _body_centre(case), side_mm))


def round_field(case: LabelledScan, diameter_mm: float) -> LabelledScan:
    """A round field of view about the body's centre, with air in the corners: the scanner's circle of measurement."""
    centre = _body_centre(case)
    i_mm, j_mm, _ = case.volume.spacing_mm
    i, j = np.ogrid[: case.volume.array.shape[0], : case.volume.array.shape[1]]
    inside = ((i - centre[0]) * i_mm) ** 2 + ((j - centre[1]) * j_mm) ** 2 <= (diameter_mm / 2) ** 2
    grey = np.where(inside[:, :, None], case.volume.array, np.float32(case.air))
    ids = np.where(inside[:, :, None], case.mask.array, np.uint8(0))
    scan = Volume(grey, case.volume.affine)
    padded = case.with_voxels(scan, Volume(ids, case.mask.affine))
    return _cropped(padded, *_square(case, centre, diameter_mm))


def half_of_slices(case: LabelledScan, part: Literal["lower", "middle", "upper"]) -> LabelledScan:
    """Half of the slices, as of a scan that was planned for a neighbouring region, such as a chest or a pelvis."""
    slices = case.volume.array.shape[2]
    half = (slices + 1) // 2
    start = {"lower": 0, "middle": (slices - half) // 2, "upper": slices - half}[part]
    return _cropped(case, slice(None), slice(None), slice(start, start + half))


def _body_centre(case: LabelledScan) -> tuple[float, float]:
    """Centre of the box around the body, as indices along I and J."""
    inside = body(case.volume)
    i, j = (np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2)))
    return (i[0] + i[-1]) / 2, (j[0] + j[-1]) / 2


def _square(case: LabelledScan, centre: tuple[float, float], side_mm: float) -> tuple[slice, slice, slice]:
    """The box of a square about a place, cut to the scan."""
    sides = []
    for middle, mm in zip(centre, case.volume.spacing_mm, strict=False):
        voxels = max(1, round(side_mm / mm))
        start = round(middle - (voxels - 1) / 2)
        sides.append(slice(max(0, start), max(0, start + voxels)))
    return sides[0], sides[1], slice(None)


def _cropped(case: LabelledScan, i: slice, j: slice, k: slice) -> LabelledScan:
    """The voxels of a box, where they are in the patient."""
    move = np.eye(4)
    move[:3, 3] = [side.start or 0 for side in (i, j, k)]
    affine = case.volume.affine @ move
    scan = Volume(np.ascontiguousarray(case.volume.array[i, j, k]), affine)
    return case.with_voxels(scan, Volume(np.ascontiguousarray(case.mask.array[i, j, k]), affine))
