"""Two results of the same scan, organ by organ."""

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
        Its volume in either, in millilitres; 0 where it was not found, None where that result does not know the organ.
    dice
        Overlap of both, 0 to 1; None where neither found it.
    """

    volume_ml: float | None
    earlier_ml: float | None
    dice: float | None


def compare_masks(
    mask: Volume, labels: Mapping[str, int], earlier: Volume, earlier_labels: Mapping[str, int]
) -> dict[str, OrganChange]:
    """Compare two masks of one grid by the names of the organs, since models number them differently.

    Parameters
    ----------
    mask, earlier
        Label ids on the scan's grid.
    labels, earlier_labels
        Organ name -> id in either.
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
