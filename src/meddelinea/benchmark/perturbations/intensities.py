"""Perturbations of grey values: window, noise, reconstruction kernel, table, contrast phase. Masks stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.benchmark.perturbations.geometry import body
from meddelinea.data.case import LabelledScan
from meddelinea.data.fingerprint import fingerprint

#: Typical mean attenuation in HU without contrast medium, rounded from what radiology textbooks give for adults, and
#: about 25 to 30 s after the injection: arteries full, veins and liver hardly enhanced.
_TYPICAL_HU = {
    "liver": (58.0, 70.0),
    "spleen": (48.0, 120.0),
    "right kidney": (33.0, 150.0),
    "left kidney": (33.0, 150.0),
    "pancreas": (40.0, 100.0),
    "aorta": (42.0, 300.0),
    "inferior vena cava": (42.0, 60.0),
    "portal and splenic vein": (42.0, 60.0),
    "right adrenal gland": (25.0, 70.0),
    "left adrenal gland": (25.0, 70.0),
}
UNENHANCED_HU = {organ: unenhanced for organ, (unenhanced, _) in _TYPICAL_HU.items()}
ARTERIAL_HU = {organ: arterial for organ, (_, arterial) in _TYPICAL_HU.items()}

_EDGE_MM = 1.5
_REACH = 4.0  # Gaussian widths after which an edge has ended


def windowed(case: LabelledScan, low_hu: float, high_hu: float) -> LabelledScan:
    """Values beyond a window lost: scans exported as they were looked at, or published clipped."""
    return case.with_grey(np.clip(case.volume.array, low_hu, high_hu))


def noisy(case: LabelledScan, sigma_hu: float) -> LabelledScan:
    """White Gaussian noise: a low dose, or a large patient. Scanners' noise is coarser, and streaks.

    The same for the same scan, and the same pattern at each strength. The scan's lowest and highest value stay: where
    it was clipped, what lies far beyond would not come back with noise.
    """
    grey = case.volume.array
    draw = np.random.default_rng(int(fingerprint(case.volume)[:16], 16))
    noise = draw.standard_normal(grey.shape, np.float32) * np.float32(sigma_hu)
    clipped = (grey == grey.min()) | (grey == grey.max())
    return case.with_grey(np.where(clipped, grey, grey + noise))


def smooth_kernel(case: LabelledScan, sigma_mm: float) -> LabelledScan:
    """Blurred in plane by a Gaussian: a soft reconstruction kernel, or a large field of view stored in few pixels."""
    return case.with_grey(_blurred(case, sigma_mm))


def sharp_kernel(case: LabelledScan, sigma_mm: float, amount: float) -> LabelledScan:
    """Unsharp masking in plane, edges and noise raised: a sharp kernel, as for bone or lung.

    `amount` times the difference from a Gaussian blur is added.
    """
    grey = case.volume.array
    return case.with_grey(grey + np.float32(amount) * (grey - _blurred(case, sigma_mm)))


def without_table(case: LabelledScan) -> LabelledScan:
    """All outside the body set to air: a scan that was cleaned or defaced before it was shared."""
    return case.with_grey(np.where(body(case.volume), case.volume.array, np.float32(case.air)))


def contrast_phase(case: LabelledScan, mean_hu: Mapping[str, float]) -> LabelledScan:
    """Another contrast phase, SIMULATED from the labels: each organ's mean moved to a typical one, its texture kept.

    A real phase differs within organs (cortex and medulla of a kidney, the mottled arterial spleen), and in vessels,
    bowel walls and tumours that no label tells of, none of which is changed here. The result says how much a model
    leans on organs' brightness, not how it does on such scans.

    The field that is added is a sum of the organs' masks, blurred by 1.5 mm so that no edge lies where the label's
    does, with factors that solve for the means: those of the organs in `mean_hu` come out exactly.

    Parameters
    ----------
    mean_hu
        Canonical organ name -> its mean in HU. Organs that are not in it keep their values but near the others' edges.
    """
    ids = case.mask.array
    voxels = np.bincount(ids.ravel(), minlength=len(case.organs) + 1)
    wanted = [index for index, organ in enumerate(case.organs, start=1) if organ in mean_hu and voxels[index]]
    if not wanted:
        return case
    sigma = [_EDGE_MM / mm for mm in case.volume.spacing_mm]
    boxes = ndimage.find_objects(ids)
    fields = {index: _blurred_organ(ids, index, boxes[index - 1], sigma) for index in wanted}
    # What a field of height 1 over each organ adds to the mean of each.
    shares = np.empty((len(wanted), len(wanted)))
    for column, (box, field) in enumerate(fields.values()):
        sums = np.bincount(ids[box].ravel(), weights=field.ravel(), minlength=len(voxels))
        shares[:, column] = sums[wanted] / voxels[wanted]
    means = np.bincount(ids.ravel(), weights=case.volume.array.ravel(), minlength=len(voxels))[wanted] / voxels[wanted]
    targets = np.array([mean_hu[case.organs[index - 1]] for index in wanted])
    grey = case.volume.array.copy()
    for height, (box, field) in zip(np.linalg.solve(shares, targets - means), fields.values(), strict=True):
        grey[box] += np.float32(height) * field
    return case.with_grey(grey)


def _blurred(case: LabelledScan, sigma_mm: float) -> NDArray[np.float32]:
    i_mm, j_mm, _ = case.volume.spacing_mm
    blurred: NDArray[np.float32] = ndimage.gaussian_filter(
        case.volume.array, (sigma_mm / i_mm, sigma_mm / j_mm, 0.0), mode="nearest"
    )
    return blurred


def _blurred_organ(
    ids: NDArray[np.uint8], index: int, box: tuple[slice, ...], sigma: list[float]
) -> tuple[tuple[slice, ...], NDArray[np.float32]]:
    """The box that an organ's blurred mask reaches into, and the mask there: 0 to 1."""
    reach = [int(np.ceil(_REACH * s)) for s in sigma]
    wide = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(box, reach, strict=True))
    mask = (ids[wide] == index).astype(np.float32)
    return wide, ndimage.gaussian_filter(mask, sigma, mode="constant", truncate=_REACH)
