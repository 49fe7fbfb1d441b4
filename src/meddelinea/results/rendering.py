"""A mask as a solid body: what is seen of the organs' surfaces from one side, shaded by depth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.labels import colour_of
from meddelinea.volume import Volume

#: Voxels are thinned out to about this size first: a pixel of the picture is no smaller.
THINNED_MM = 2.0
#: Where the light comes from, to the right, up and towards the eye: from its left, above and behind.
LIGHT = np.array([-0.4, 0.5, 0.77])
#: Brightness of a surface that faces away from the light.
AMBIENT = 0.35
#: Standard deviation in pixels of the smoothing that takes the voxels' steps off a surface.
SMOOTHING = 1.5


def surface_view(mask: Volume, labels: Mapping[str, int], azimuth_deg: float, pixels: int = 240) -> NDArray[np.uint8]:
    """Parallel projection of the organs.

    Parameters
    ----------
    mask
        Label ids, in any order of axes.
    labels
        Organ name -> id: which are drawn.
    azimuth_deg
        Where the eye stands: 0 in front of the patient, 90 at the patient's left, 180 behind.
    pixels
        Width of the picture. It holds the organs turned about the head in any way: views from all sides have one scale.

    Returns
    -------
    (height, pixels, 4) RGBA, the head up; transparent where no organ is.
    """
    mask = mask.reorient("RAS")
    drawn = np.zeros(256, np.uint8)
    drawn[list(labels.values())] = list(labels.values())
    thinned = [max(1, int(THINNED_MM // mm)) for mm in mask.spacing_mm]
    ids = drawn[mask.array[:: thinned[0], :: thinned[1], :: thinned[2]]]
    boxes = ndimage.find_objects((ids > 0).view(np.uint8))
    if not boxes:
        return np.zeros((1, pixels, 4), np.uint8)
    ids = ids[boxes[0]]
    spacing_mm = np.array(mask.spacing_mm) * thinned
    extent_mm = np.array(ids.shape) * spacing_mm
    step_mm = float(np.linalg.norm(extent_mm[:2])) / pixels
    size = (pixels, pixels, int(np.ceil(extent_mm[2] / step_mm)))
    # Picture axes (right, away from the eye, up) in the patient's (right, front, head), the eye turned about the head.
    turn = np.deg2rad(azimuth_deg)
    axes = np.array([[-np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), -np.cos(turn), 0.0], [0.0, 0.0, 1.0]]).T
    to_voxel = (axes * step_mm) / spacing_mm[:, None]
    to_middle = (np.array(ids.shape) - 1) / 2 - to_voxel @ ((np.array(size) - 1) / 2)
    seen = ndimage.affine_transform(ids, to_voxel, to_middle, size, order=0)
    depth = (seen > 0).argmax(axis=1)
    across, up = np.indices(depth.shape)
    front = seen[across, depth, up]  # (right, up) of the first voxel that is hit
    picture = np.zeros((*front.shape, 4), np.uint8)
    light = _brightness(depth.astype(np.float64), front)
    for name, index in labels.items():
        inside = front == index
        colour = np.array(colour_of(name))
        picture[inside, :3] = np.clip(light[inside, None] * colour, 0, 255)
        picture[inside, 3] = 255
    return picture.transpose(1, 0, 2)[::-1]


def _brightness(depth: NDArray[np.float64], front: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of the light that each surface point returns, 0 to 1, from the slope of the depth within its organ."""
    light = np.zeros(depth.shape)
    for index in np.unique(front[front > 0]):
        inside = front == index
        weight = ndimage.gaussian_filter(inside.astype(np.float64), SMOOTHING)
        smooth = ndimage.gaussian_filter(np.where(inside, depth, 0.0), SMOOTHING) / np.maximum(weight, 1e-6)
        filled = np.where(inside, smooth, smooth[inside].mean())
        normal = np.stack([np.gradient(filled, axis=0), np.gradient(filled, axis=1), np.ones(depth.shape)])
        facing = np.tensordot(LIGHT, normal / np.linalg.norm(normal, axis=0), axes=1)
        light[inside] = (AMBIENT + (1 - AMBIENT) * np.clip(facing, 0, 1))[inside]
    return light
