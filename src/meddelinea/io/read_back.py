"""After writing, the file is read back and compared with what it was to hold.

A mask that is right in memory and wrong on disk looks right until someone acts on it, so the check costs its second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from meddelinea.errors import InputRefusedError
from meddelinea.volume import Volume, apply_affine

#: How far the centroid of an organ may be from where it was, in millimetres.
CENTROID_TOLERANCE_MM = 0.1
#: How much the volume of an organ may differ, as a fraction.
VOLUME_TOLERANCE = 1e-3


def require_same(
    path: Path, mask: Volume, labels: Mapping[str, int], read: Volume, read_labels: Mapping[str, int]
) -> None:
    """Refuse a written file whose organs are not those of the mask: names, voxels, centroids and volumes.

    Centroids and volumes are taken from each side's own affine, so an error in the header shows where voxels do not.

    Parameters
    ----------
    path
        The name that the file was to have, for the message.
    mask, labels
        What was to be written: label ids and their names.
    read, read_labels
        What the file says; it may cover only the part of the mask that holds organs, and number them otherwise.

    Raises
    ------
    InputRefusedError
        With the first difference that was found.
    """
    # Which voxel is which is clear at a quarter of one; how far it is off in millimetres is measured below.
    on_grid = read.onto(mask.affine, mask.array.shape, tolerance_mm=min(mask.spacing_mm) / 4)
    if on_grid is None:
        raise _differs(path, "its voxels lie elsewhere in the patient")
    named = {name for name in labels if name not in read_labels}
    if named or set(read_labels) - set(labels):
        raise _differs(path, f"it names {', '.join(read_labels) or 'no organ'} for {', '.join(labels)}")
    names = {index: name for name, index in labels.items()}
    table = np.zeros(np.iinfo(read.array.dtype).max + 1, mask.array.dtype)
    table[[read_labels[name] for name in names.values()]] = list(names)
    for k in range(mask.array.shape[2]):  # slice by slice: nothing else as large as the scan
        wanted, found = mask.array[:, :, k], table[on_grid.array[:, :, k]]
        if not np.array_equal(wanted, found):
            index = int(np.maximum(wanted, found)[wanted != found][0])
            raise _differs(path, f"{names.get(index, f'id {index}')} has other voxels")
    ours, theirs = _measures(mask), _measures(read)
    for name, index in labels.items():
        volume_ml, centroid_mm = ours.get(index, (0.0, None))
        read_ml, read_mm = theirs.get(read_labels[name], (0.0, None))
        if abs(read_ml - volume_ml) > VOLUME_TOLERANCE * volume_ml:
            raise _differs(path, f"{name} measures {read_ml:.3f} ml in place of {volume_ml:.3f} ml")
        if centroid_mm is not None and read_mm is not None:
            away_mm = float(np.linalg.norm(read_mm - centroid_mm))
            if away_mm > CENTROID_TOLERANCE_MM:
                raise _differs(path, f"the centre of {name} lies {away_mm:.2f} mm away")


def _measures(volume: Volume) -> dict[int, tuple[float, np.ndarray]]:
    """Volume in millilitres and centroid in patient millimetres (RAS) of each label id that occurs."""
    found = {}
    for index, box in enumerate(ndimage.find_objects(volume.array), start=1):
        if box is not None:
            voxels = np.argwhere(volume.array[box] == index)
            centre = voxels.mean(axis=0) + [side.start for side in box]
            found[index] = len(voxels) * volume.voxel_ml, apply_affine(volume.affine, centre)
    return found


def _differs(path: Path, how: str) -> InputRefusedError:
    return InputRefusedError(
        f"{path}: read back after writing, the file differs from the mask ({how}), so it was not kept; write nifti, "
        "and report the scanner and the version"
    )
