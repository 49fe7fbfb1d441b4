"""How sure a model is: of each organ of a mask as a whole, and of each voxel.

A network gives each voxel shares of the organs that sum to one; averaged over samples they are its probabilities, as
far as it is calibrated. From them follow how much of a mask may be wrong, and how large an organ may be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meddelinea.data.preprocess import ORIENTATION
from meddelinea.data.resample import resample_linear
from meddelinea.volume import Volume

#: Shares above which a voxel surely, and possibly, belongs to an organ.
SURELY, POSSIBLY = 0.75, 0.25
#: Slices of a scan that its uncertainty is interpolated for at a time.
SLAB = 32


@dataclass(frozen=True)
class OrganConfidence:
    """How sure a model is of one organ.

    Parameters
    ----------
    expected_dice
        Dice that the mask has on average, 0 to 1: as its shares state it, and where the model was calibrated, as that
        came to on other scans; None where the organ was not found.
    expected_ml
        Mean volume under the shares, in millilitres.
    surely_ml, possibly_ml
        Volume of the voxels whose share is above `SURELY`, and above `POSSIBLY`.
    """

    expected_dice: float | None
    expected_ml: float
    surely_ml: float
    possibly_ml: float


class Shares:
    """What is kept of the shares of all organs, a batch of slices after the other; L + 1 numbers and two maps.

    Parameters
    ----------
    shape
        Slices, rows and columns.
    channels
        L + 1, the background's first.
    """

    def __init__(self, shape: tuple[int, int, int], channels: int) -> None:
        self.largest = np.zeros(shape, np.float16)
        self.likeliest = np.zeros(shape, np.float16)
        self.label = np.zeros(shape, np.uint8)
        self._sums = np.zeros((3, channels))

    def add(self, start: int, shares: Tensor, probabilities: Tensor) -> None:
        """Take in the shares (B, L + 1, rows, columns) of the slices from `start` on, and their probabilities."""
        largest, label = shares.max(dim=1)
        self.likeliest[start : start + len(shares)] = probabilities.amax(dim=1).cpu().numpy()
        self.largest[start : start + len(shares)] = largest.cpu().numpy()
        self.label[start : start + len(shares)] = label.cpu().numpy()
        for row, part in enumerate((shares, shares > SURELY, shares > POSSIBLY)):
            for slice_sums in part.sum(dim=(2, 3), dtype=torch.float64).cpu().numpy():  # in order, whatever the batch
                self._sums[row] += slice_sums

    def confidence(
        self, kept: NDArray[np.bool_], labels: Mapping[str, int], voxel_ml: float
    ) -> dict[str, OrganConfidence]:
        """Of each organ of `labels`, in whose mask a voxel is where it has the largest share and is `kept`.

        With calibrated shares p the truth holds a voxel of the mask m with probability p, so that the expected Dice is
        2 sum(m p) / (sum(m) + sum(p)), but for the ratio's being taken of the means.
        """
        found = {}
        for name, index in labels.items():
            inside = kept & (self.label == index)
            voxels, total = int(np.count_nonzero(inside)), float(self._sums[0, index])
            overlap = float(self.largest[inside].sum(dtype=np.float64))
            dice = 2.0 * overlap / (voxels + total) if voxels else None
            expected, surely, possibly = (float(number) * voxel_ml for number in self._sums[:, index])
            found[name] = OrganConfidence(dice, expected, surely, possibly)
        return found

    def uncertainty(self) -> NDArray[np.float32]:
        """(slices, rows, columns) probability that the label with the largest share is not the true one."""
        return 1.0 - self.likeliest.astype(np.float32)


def uncertainty_percent(uncertainty: Volume, scan: Volume) -> Volume:
    """The uncertainty on the scan's own grid in per cent, uint8; 0 beyond where the model looked.

    Parameters
    ----------
    uncertainty
        On the model's grid, 0 to 1, as `Segmentation.uncertainty` is.
    scan
        The scan that was segmented.
    """
    canonical = scan.reorient(ORIENTATION)
    i, j, k = canonical.array.shape
    percent = np.empty((i, j, k), np.uint8)
    for first in range(0, k, SLAB):  # a float copy of a long scan would take gigabytes
        slices = min(SLAB, k - first)
        moved = canonical.affine.copy()
        moved[:3, 3] += first * canonical.affine[:3, 2]
        slab = resample_linear(uncertainty, moved, (i, j, slices), outside=0.0).array
        percent[:, :, first : first + slices] = np.rint(100.0 * slab)
    there = Volume(percent, canonical.affine).reorient(scan.orientation)
    return Volume(np.ascontiguousarray(there.array), scan.affine)
