"""A comparison of two results of the same scan, organ by organ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meddelinea.evaluation.metrics import dice
from meddelinea.volume import Volume


@dataclass(frozen=True)
class OrganChange:
    """An organ in this result and in an earlier one.

    Parameters
    ----------
    volume_ml, earlier_ml
        Its volume in each result, in millilitres: 0 if it was not found, None if the result's model does not know it.
    dice
        Dice overlap of the two masks, 0 to 1; None if it was found in neither.
    """

    volume_ml: float | None
    earlier_ml: float | None
    dice: float | None


def compare_masks(
    mask: Volume, labels: Mapping[str, int], earlier: Volume, earlier_labels: Mapping[str, int]
) -> dict[str, OrganChange]:
    """Compare two masks on one grid by the names of their organs, because models number them differently.

    Parameters
    ----------
    mask, earlier
        Label ids on the scan's grid.
    labels, earlier_labels
        Organ name -> id in the respective mask.
    """
    changes = {}
    for name in dict.fromkeys([*labels, *earlier_labels]):
        ours = mask.array == labels.get(name, -1)
        theirs = earlier.array == earlier_labels.get(name, -1)
        found = bool(ours.any() or theirs.any())
        changes[name] = OrganChange(
            float(ours.sum()) * mask.voxel_ml if name in labels else None,
            float(theirs.sum()) * mask.voxel_ml if name in earlier_labels else None,
            dice(ours, theirs) if found else None,
        )
    return changes
