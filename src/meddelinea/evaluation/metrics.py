"""How well a predicted mask agrees with a reference: overlap and surface distances of one organ in 3D, in millimetres.

Definitions, because libraries differ on the same masks:

- **Surface**: the mask's voxels that have a face neighbour outside the mask (the mask without its erosion by the
  6-neighbourhood), as in MONAI and medpy. All that lies beyond the volume's edge is outside, so where the scan cuts an
  organ, the cut face is surface; both masks share it.
- **Surface distance**: from the centre of a surface voxel to the nearest centre of the other surface, Euclidean in the
  patient. Where a gantry was tilted the axes of the grid are not perpendicular, which spacings do not say: its affine
  does, and every function takes either.
- **Two directions**: prediction to reference, and reference to prediction. Each metric says how it joins them.
- **Empty masks**: both empty gives NaN: there is nothing to measure. One empty gives Dice 0, NSD 0 and infinite
  distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from meddelinea.errors import UsageError

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]
#: What a step of one voxel is: distances along perpendicular axes, or the (4, 4) affine of any grid. In millimetres.
VoxelSteps = Spacing | NDArray[np.float64]
Status = Literal["scored", "both_empty", "missed", "false_positive"]

#: Tolerance of the normalised surface Dice where none is asked for, in millimetres.
NSD_TOLERANCE_MM = 2.0

# Spacings are stored as float32, so a distance of exactly the tolerance may come out a little above it.
_ROUNDING_MM = 1e-4


@dataclass(frozen=True, kw_only=True)
class OrganScore:
    """All metrics of one organ in one case."""

    organ: str  # canonical name
    #: `"scored"` (both masks hold voxels), `"both_empty"` (leave it out of means, but count it), `"missed"` (only the
    #: reference holds voxels) or `"false_positive"` (only the prediction does).
    status: Status
    #: 0 to 1; NaN if both masks are empty.
    dice: float
    nsd: float
    #: 0 to infinity; infinite if one mask is empty, NaN if both are.
    hd95_mm: float
    hd95_pooled_mm: float
    assd_mm: float
    #: Volumes of the masks in millilitres.
    prediction_ml: float
    reference_ml: float
    nsd_tolerance_mm: float  # the tolerance that `nsd` was computed with


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances in millimetres of each surface voxel to the other surface, one array a direction.

    A direction is empty where its own mask is empty, and all infinite where only the other mask is.
    """

    to_reference_mm: NDArray[np.float64]
    to_prediction_mm: NDArray[np.float64]

    @property
    def pooled_mm(self) -> NDArray[np.float64]:
        """Both directions in one array, so the larger surface weighs more."""
        return np.concatenate([self.to_reference_mm, self.to_prediction_mm])

    @property
    def degenerate_mm(self) -> float | None:
        """What every distance metric is when a mask is empty: NaN for two, infinity for one, None for neither."""
        if self.to_reference_mm.size and self.to_prediction_mm.size:
            return None
        return math.inf if self.pooled_mm.size else math.nan


def surface_distances(prediction: Mask, reference: Mask, steps_mm: VoxelSteps) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    Works inside the box that holds both masks and searches surface voxels in a k-d tree, so time and memory grow with
    the organs' surfaces and not with the scan.

    Parameters
    ----------
    prediction, reference
        (I, J, K) masks.
    steps_mm
        Distance between voxel centres along I, J, K where these are perpendicular, or the (4, 4) affine of the grid.

    Raises
    ------
    UsageError
        If the masks are not boolean, not 3D, or of different shapes, or the steps are neither three positive numbers
        nor an affine that can be inverted.
    """
    _require_masks(prediction, reference)
    axes_mm = _axes_mm(steps_mm)
    boxes = ndimage.find_objects((prediction | reference).view(np.uint8))
    if not boxes:
        return SurfaceDistances(np.zeros(0), np.zeros(0))
    predicted_mm = _surface_points_mm(prediction[boxes[0]], axes_mm)
    referred_mm = _surface_points_mm(reference[boxes[0]], axes_mm)
    return SurfaceDistances(_nearest_mm(predicted_mm, referred_mm), _nearest_mm(referred_mm, predicted_mm))


def dice(prediction: Mask, reference: Mask) -> float:
    """Twice the shared volume of two masks (I, J, K) over the sum of both: 0 to 1, NaN if both are empty."""
    _require_masks(prediction, reference)
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / total if total else math.nan


def hd95_mm(distances: SurfaceDistances) -> float:
    """95th percentile of the surface distances in each direction; the larger of the two (MONAI's convention)."""
    if distances.degenerate_mm is not None:
        return distances.degenerate_mm
    return float(max(np.percentile(d, 95) for d in (distances.to_reference_mm, distances.to_prediction_mm)))


def hd95_pooled_mm(distances: SurfaceDistances) -> float:
    """95th percentile of both directions' surface distances pooled (medpy's convention).

    Far smaller than `hd95_mm` when a stray blob is less than 5 % of the two surfaces together.
    """
    if distances.degenerate_mm is not None:
        return distances.degenerate_mm
    return float(np.percentile(distances.pooled_mm, 95))


def assd_mm(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance: the mean of both directions' distances pooled (MONAI's `symmetric=True`).

    medpy averages the two directions' means instead, which differs when the surfaces differ in size.
    """
    if distances.degenerate_mm is not None:
        return distances.degenerate_mm
    return float(distances.pooled_mm.mean())


def nsd(distances: SurfaceDistances, tolerance_mm: float = NSD_TOLERANCE_MM) -> float:
    """Normalised surface Dice: the share of both surfaces' voxels within `tolerance_mm` of the other surface.

    Each surface voxel counts once, as in MONAI without sub-voxels; DeepMind's `surface-distance` weighs them by area.

    Raises
    ------
    UsageError
        If the tolerance is not a finite distance of at least 0.
    """
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UsageError(f"the NSD tolerance is {tolerance_mm} mm; expected a finite distance of at least 0")
    pooled_mm = distances.pooled_mm
    return float((pooled_mm <= tolerance_mm + _ROUNDING_MM).mean()) if pooled_mm.size else math.nan


def score_organ(
    organ: str, prediction: Mask, reference: Mask, steps_mm: VoxelSteps, nsd_tolerance_mm: float = NSD_TOLERANCE_MM
) -> OrganScore:
    """Every metric of one organ in one case.

    Parameters
    ----------
    organ
        Canonical name.
    prediction, reference
        (I, J, K) masks on the same grid.
    steps_mm
        Distance between voxel centres along I, J, K where these are perpendicular, or the (4, 4) affine of the grid.
    nsd_tolerance_mm
        Tolerance of the normalised surface Dice.

    Raises
    ------
    UsageError
        As `surface_distances` and `nsd`.
    """
    distances = surface_distances(prediction, reference, steps_mm)
    voxel_ml = abs(float(np.linalg.det(_axes_mm(steps_mm)))) / 1000
    return OrganScore(
        organ=organ,
        status=_status(bool(prediction.any()), bool(reference.any())),
        dice=dice(prediction, reference),
        nsd=nsd(distances, nsd_tolerance_mm),
        hd95_mm=hd95_mm(distances),
        hd95_pooled_mm=hd95_pooled_mm(distances),
        assd_mm=assd_mm(distances),
        prediction_ml=int(np.count_nonzero(prediction)) * voxel_ml,
        reference_ml=int(np.count_nonzero(reference)) * voxel_ml,
        nsd_tolerance_mm=nsd_tolerance_mm,
    )


def _require_masks(prediction: Mask, reference: Mask) -> None:
    if prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise UsageError(f"masks of type {prediction.dtype} and {reference.dtype}; expected boolean: `labels == id`")
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise UsageError(f"masks of shapes {prediction.shape} and {reference.shape}; expected one shape (I, J, K)")


def _status(predicted: bool, referred: bool) -> Status:
    if predicted and referred:
        return "scored"
    if referred:
        return "missed"
    return "false_positive" if predicted else "both_empty"


def _axes_mm(steps_mm: VoxelSteps) -> NDArray[np.float64]:
    """(3, 3) whose columns are the steps of one voxel along I, J and K."""
    steps = np.asarray(steps_mm, np.float64)
    if steps.shape == (4, 4) and np.isfinite(steps).all() and np.linalg.det(steps[:3, :3]) != 0:
        return steps[:3, :3]
    if steps.shape == (3,) and np.isfinite(steps).all() and (steps > 0).all():
        return np.diag(steps)
    raise UsageError(
        f"steps_mm is {steps.tolist()}; expected three positive distances in millimetres, or an affine of shape (4, 4)"
    )


def _surface_points_mm(mask: Mask, axes_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P, 3) centres of the surface voxels; the box may be tight because erosion takes all beyond it as outside."""
    surface = mask & ~ndimage.binary_erosion(mask, border_value=0)
    points_mm: NDArray[np.float64] = np.argwhere(surface).astype(np.float64) @ axes_mm.T
    return points_mm


def _nearest_mm(points_mm: NDArray[np.float64], others_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) distance of each point to the nearest of the others, infinite where there are none."""
    if not len(points_mm) or not len(others_mm):
        return np.full(len(points_mm), math.inf)
    nearest_mm: NDArray[np.float64] = np.asarray(KDTree(others_mm).query(points_mm)[0])
    return nearest_mm
