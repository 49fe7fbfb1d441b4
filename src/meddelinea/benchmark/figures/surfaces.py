"""Organs of several methods in three dimensions, beside the truth: the paper's Figure 8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.benchmark.figures.page import PAGE_INCHES, heading, legend_below, new_page, type_points
from meddelinea.labels import colour_of
from meddelinea.results.figures import organ_colour
from meddelinea.results.rendering import surface_view, thinned
from meddelinea.volume import Volume

#: What a voxel of `error_bodies` is, and its colour; the two errors are Okabe and Ito's orange-red and blue.
AGREED, EXTRA, MISSED = 1, 2, 3
ERROR_COLOURS = {AGREED: (205, 205, 205), EXTRA: (213, 94, 0), MISSED: (0, 114, 178)}
#: How far a voxel may lie outside an organ before it counts as an error.
TOLERANCE_MM = 3.0
CELL_INCHES, LEGEND_COLUMNS = 1.1, 5
#: Pixels of a rendered view: somewhat more than are printed.
VIEW_PIXELS = 400


@dataclass(frozen=True)
class SurfaceRow:
    """A case: its true mask, and methods' masks on the same grid; a method that has none is left out."""

    name: str
    truth: Volume
    masks: Mapping[str, Volume]


def surfaces_figure(
    rows: Sequence[SurfaceRow], labels: Mapping[str, int], *, errors: bool = False, azimuth_deg: float = 0.0
) -> Figure:
    """A row of views for each case, from one side and at one scale: the methods, then the truth.

    Parameters
    ----------
    labels
        Organ name -> id of the organs that are drawn.
    errors
        Show of each method what is too much and what is missing, see `error_bodies`, in place of its organs.
    azimuth_deg
        Where the eye stands, see `surface_view`.
    """
    methods = list(dict.fromkeys(method for row in rows for method in row.masks))
    titles = [*methods, "truth"]
    organs = set(labels.values())
    width = max(PAGE_INCHES, CELL_INCHES * len(titles))
    cell, points = width / len(titles), type_points(width)

    views = []
    for row in rows:
        drawn = np.isin(np.stack([row.truth.array, *(mask.array for mask in row.masks.values())]), list(organs))
        held = np.asarray(drawn.any(axis=0))
        frame = Volume(held.view(np.uint8), row.truth.affine)
        views.append([_view(row, title, labels, errors, azimuth_deg, frame) for title in titles])
    ratios = [max(view.shape[0] / view.shape[1] for view in line if view is not None) for line in views]
    keys = [Patch(color=organ_colour(name), label=name) for name, index in labels.items() if _in_any(rows, index)]
    if errors:
        names = {AGREED: "right", EXTRA: "too much", MISSED: "missing"}
        shades = {kind: np.array(colour) / 255.0 for kind, colour in ERROR_COLOURS.items()}
        keys = [Patch(color=tuple(shades[kind]), label=f"{name}") for kind, name in names.items()] + keys
    lines = 3 + -(-len(keys) // LEGEND_COLUMNS)
    figure = new_page(sum(ratios) * cell + lines * 1.5 * points / 72.0, width)
    axes = figure.subplots(len(rows), len(titles), squeeze=False, height_ratios=ratios)
    for line, row, pictures in zip(axes, rows, views, strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if picture is not None:
                axis.imshow(picture)
            else:
                axis.text(0.5, 0.5, "no mask", transform=axis.transAxes, ha="center", va="center", color="0.4")
        line[0].set_ylabel(row.name, fontsize=points)
    for axis, title in zip(axes[0], titles, strict=True):
        text, fitting = heading(title, cell, points)
        axis.set_title(text, fontsize=fitting)
    legend_below(figure, keys, LEGEND_COLUMNS)
    return figure


def error_bodies(prediction: Volume, truth: Volume, labels: Mapping[str, int]) -> Volume:
    """What is right and what is wrong in a mask, as bodies: `AGREED`, `EXTRA` or `MISSED`, and 0 elsewhere.

    A predicted voxel is `EXTRA` where it lies more than `TOLERANCE_MM` outside the same organ of the truth, and
    `AGREED` otherwise; a true voxel that far outside the same organ of the prediction is `MISSED`, unless a voxel of
    another organ was predicted there. Distances are between voxels' centres.

    Parameters
    ----------
    prediction, truth
        Masks on one grid.
    labels
        Organ name -> id of the organs that are compared.
    """
    bodies = np.zeros(truth.shape, np.uint8)
    within = _ball(np.array(truth.spacing_mm))
    for index in labels.values():
        either = (prediction.array == index) | (truth.array == index)
        if not either.any():
            continue
        box = ndimage.find_objects(either.view(np.uint8))[0]
        predicted, true, part = prediction.array[box] == index, truth.array[box] == index, bodies[box]
        part[true & ~_grown(predicted, within) & (part == 0)] = MISSED
        part[predicted] = AGREED
        part[predicted & ~_grown(true, within)] = EXTRA
    return Volume(bodies, truth.affine)


def _grown(inside: NDArray[np.bool_], within: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels that have one inside at most so far away."""
    grown: NDArray[np.bool_] = ndimage.binary_dilation(inside, within)
    return grown


def _ball(spacing_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The voxels at most `TOLERANCE_MM` from the middle one."""
    reach = [int(TOLERANCE_MM / mm) for mm in spacing_mm]
    offsets = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1) * spacing_mm
    ball: NDArray[np.bool_] = np.linalg.norm(offsets, axis=-1) <= TOLERANCE_MM
    return ball


def _view(
    row: SurfaceRow, title: str, labels: Mapping[str, int], errors: bool, azimuth_deg: float, frame: Volume
) -> NDArray[np.uint8] | None:
    """The picture of a cell; None where the method has no mask of the case."""
    if title not in row.masks and title != "truth":
        return None
    mask = thinned(row.truth if title == "truth" else row.masks[title])
    colours = {index: colour_of(name) for name, index in labels.items()}
    if errors and title in row.masks:
        mask, colours = error_bodies(mask, thinned(row.truth), labels), ERROR_COLOURS
    return surface_view(mask, colours, azimuth_deg, VIEW_PIXELS, thinned(frame))


def _in_any(rows: Sequence[SurfaceRow], index: int) -> bool:
    return any((mask.array == index).any() for row in rows for mask in (row.truth, *row.masks.values()))
