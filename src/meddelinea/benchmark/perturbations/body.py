"""The order of axes that perturbations work in, and where in a scan the patient is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.data.case import LabelledScan
from meddelinea.data.preprocess import ORIENTATION
from meddelinea.errors import InputRefusedError
from meddelinea.volume import Volume

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
    """(I, J, K) where the patient is, gas inside included; table, clothes and air around are not.

    The largest piece above a threshold between air and skin, after an opening in plane, filled slice by slice. The
    whole scan where nothing is left.

    Parameters
    ----------
    scan
        (I, J, K) Hounsfield units, slices along K.
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
