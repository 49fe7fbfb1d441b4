"""Small label volumes and their files."""

import json

import numpy as np

from meddelinea.io.volumes import write_volume
from meddelinea.volume import Volume

AFFINE = np.diag([2.0, 1.0, 3.0, 1.0])


def mask(*boxes, shape=(12, 12, 12), affine=AFFINE):
    """Label volume with id n in the n-th (start, stop) cube; None leaves the id out."""
    array = np.zeros(shape, np.uint8)
    for index, limits in enumerate(boxes, start=1):
        if limits is not None:
            array[(slice(*limits),) * 3] = index
    return Volume(array, affine)


def save(volume, path, labels=None):
    """Write a volume, and the names of its ids beside it."""
    path.parent.mkdir(exist_ok=True)
    write_volume(volume, path)
    if labels is not None:
        path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps({"labels": labels}))


def by_organ(scores):
    """Scores by the name of their organ."""
    return {score.organ: score for score in scores}
