"""A mask as solid bodies: what is seen of the organs' surfaces from one side, shaded by their slope."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.volume import Volume, box_corners

#: Voxels are thinned out to about this size first.
THINNED_MM = 2.0
#: Where the light comes from, to the right, up and towards the eye: from its left, above and behind.
LIGHT = np.array([-0.4, 0.5, 0.77])
#: Brightness of a surface that faces away from the light.
AMBIENT = 0.35
#: Standard deviations of the smoothing that takes the voxels' steps off a body, in voxels, and off its slope.
BODY_SMOOTHING = 0.8
SLOPE_SMOOTHING_MM = 2.0
#: Voxels around a body, in which its smoothed share falls to nothing.
MARGIN = 2

Colours = Mapping[int, tuple[int, int, int]]


def surface_view(
    mask: Volume, colours: Colours, azimuth_deg: float, pixels: int = 240, frame: Volume | None = None
) -> NDArray[np.uint8]:
    """Parallel projection of the bodies of a mask, each bounded where its smoothed share of a place is one half.

    Parameters
    ----------
    mask
        Label ids, in any order of axes.
    colours
        Id -> RGB, 0 to 255, of those that are drawn.
    azimuth_deg
        Where the eye stands: 0 in front of the patient, 90 at the patient's left, 180 behind.
    pixels
        Width of the picture. It holds the bodies turned about the head in any way: views from all sides have one scale.
    frame
        A mask on the same grid whose bodies, of any id, the picture holds in their place: masks that are drawn with one
        frame have one scale.

    Returns
    -------
    (height, pixels, 4) RGBA, the head up; transparent where no body is.
    """
    mask = thinned(mask).reorient("RAS")
    drawn = np.zeros(256, np.uint8)
    drawn[list(colours)] = list(colours)
    ids = drawn[mask.array]
    boxes = {index: box for index, box in enumerate(ndimage.find_objects(ids), start=1) if box is not None}
    if not boxes:
        return np.zeros((1, pixels, 4), np.uint8)

    # View axes (right, away from the eye, up) in the patient's (right, front, head), the eye turned about the head.
    spacing_mm = np.array(mask.spacing_mm)
    framed = ids if frame is None else thinned(frame).reorient("RAS").array
    (held,) = ndimage.find_objects((framed > 0).view(np.uint8))
    low, high = (np.array([getattr(side, end) for side in held]) for end in ("start", "stop"))
    extent_mm = (high - low) * spacing_mm
    step_mm = float(np.linalg.norm(extent_mm[:2])) / pixels
    depth_mm = max(step_mm, THINNED_MM)  # surfaces lie between the samples along the line of sight
    turn = np.deg2rad(azimuth_deg)
    axes = np.array([[-np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), -np.cos(turn), 0.0], [0.0, 0.0, 1.0]]).T
    to_voxel = axes * (step_mm, depth_mm, step_mm) / spacing_mm[:, None]
    size = (pixels, int(np.ceil(pixels * step_mm / depth_mm)), int(np.ceil(extent_mm[2] / step_mm)))
    to_middle = (low + high - 1) / 2 - to_voxel @ ((np.array(size) - 1) / 2)

    picture = np.zeros((size[0], size[2], 4), np.uint8)  # (right, up)
    nearest = np.full(picture.shape[:2], np.inf)
    for index, box in boxes.items():
        # The body in a box of its own, and the part of the view that it can be seen in.
        body = ndimage.gaussian_filter(np.pad((ids[box] == index).astype(np.float32), MARGIN), BODY_SMOOTHING)
        first = np.array([side.start - MARGIN for side in box])
        corners = np.linalg.solve(to_voxel, (box_corners(first, first + body.shape - 1) - to_middle).T).T
        start = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, None)
        stop = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, size)
        if (start >= stop).any():  # outside the frame
            continue
        offset = to_middle + to_voxel @ start - first
        share = ndimage.affine_transform(body, to_voxel, offset, tuple(stop - start), order=1)
        hit, depth = _first_surface(share)
        where = (slice(start[0], stop[0]), slice(start[2], stop[2]))
        depth = (depth + start[1]) * depth_mm / step_mm  # in pixels
        seen = hit & (depth < nearest[where])
        light = _brightness(depth, hit, SLOPE_SMOOTHING_MM / step_mm)
        nearest[where][seen] = depth[seen]
        picture[where][seen] = np.column_stack([light[seen, None] * colours[index], np.full(seen.sum(), 255)])
    return picture.transpose(1, 0, 2)[::-1]


def thinned(mask: Volume) -> Volume:
    """Every so manieth voxel of a mask along each axis, so that none is much smaller than `THINNED_MM`."""
    steps = [max(1, int(THINNED_MM // mm)) for mm in mask.spacing_mm]
    affine = mask.affine @ np.diag([*steps, 1.0])
    return Volume(mask.array[:: steps[0], :: steps[1], :: steps[2]], affine)


def _first_surface(share: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether, and how far along the second axis, a share (right, away, up) first rises to one half."""
    inside = share >= 0.5
    after = inside.argmax(axis=1)[:, None]
    here, before = (np.take_along_axis(share, np.maximum(at, 0), axis=1) for at in (after, after - 1))
    rise = np.maximum(here - before, 1e-6)
    depth = after - np.where(after > 0, np.clip((here - 0.5) / rise, 0.0, 1.0), 0.0)
    return np.asarray(inside.any(axis=1)), depth[:, 0]


def _brightness(depth: NDArray[np.float64], inside: NDArray[np.bool_], smoothing: float) -> NDArray[np.float64]:
    """Share of the light that each surface point returns, 0 to 1, from the slope of the depth within its body."""
    weight = ndimage.gaussian_filter(inside.astype(np.float64), smoothing)
    smooth = ndimage.gaussian_filter(np.where(inside, depth, 0.0), smoothing) / np.maximum(weight, 1e-6)
    filled = np.where(inside, smooth, smooth[inside].mean() if inside.any() else 0.0)
    normal = np.stack([*np.gradient(filled), np.ones(depth.shape)])
    facing = np.tensordot(LIGHT, normal / np.linalg.norm(normal, axis=0), axes=1)
    light: NDArray[np.float64] = AMBIENT + (1 - AMBIENT) * np.clip(facing, 0, 1)
    return light
