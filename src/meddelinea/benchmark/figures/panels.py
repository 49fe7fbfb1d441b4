"""Masks of several methods on slices of scans, beside the truth: the paper's Figures 3, 4 and 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.benchmark.figures.page import PAGE_INCHES, heading, legend_below, new_page, type_points
from meddelinea.results.figures import Section, draw_section, organ_colour

Box = tuple[slice, slice]
#: Side of the region of interest that is looked for, and what an organ's has around it.
REGION_MM, MARGIN_MM = 80.0, 12.0
#: A cell's least width, and the most columns of a legend.
CELL_INCHES, LEGEND_COLUMNS = 0.9, 5
#: Of the frame around the region of interest: no organ, and no grey value, has it.
FRAME = "#FFFFFF"


@dataclass(frozen=True, kw_only=True)
class PanelRow:
    """A slice, its truth, and what methods made of it."""

    name: str
    truth: Section
    #: Method -> (rows, columns) label ids on the pixels of `truth`; a method that has none is left out.
    masks: Mapping[str, NDArray[np.uint8]]
    window: tuple[float, float]  # grey values that are black and white


def panels_figure(rows: Sequence[PanelRow], labels: Mapping[str, int], organ: str | None = None) -> Figure:
    """For each slice a strip of whole slices, with the region of interest framed, and one of that region enlarged.

    Columns are the scan alone, the methods in the order in which the rows name them, and the truth.

    Parameters
    ----------
    labels
        Organ name -> id in all masks.
    organ
        The region holds this organ; where None, or where the slice has none of it, it is where the methods are most
        often wrong: the same for all.
    """
    methods = list(dict.fromkeys(method for row in rows for method in row.masks))
    titles = ["scan", *methods, "truth"]
    cells = [_cut(row, _body(row)) for row in rows]
    width = max(PAGE_INCHES, CELL_INCHES * len(titles))
    cell = width / len(titles)
    shown = {int(index) for row in cells for mask in (row.truth.mask, *row.masks.values()) for index in np.unique(mask)}
    keys = [Patch(color=organ_colour(name), label=name) for name, index in labels.items() if index in shown]

    heights = [height for row in cells for height in (cell * _aspect(row.truth), cell)]
    points = type_points(width)
    lines = 3 + -(-len(keys) // LEGEND_COLUMNS)
    figure = new_page(sum(heights) + lines * 1.5 * points / 72.0, width)
    axes = figure.subplots(len(heights), len(titles), squeeze=False, height_ratios=heights)
    for place, row in enumerate(cells):
        box = region(row, labels.get(organ) if organ else None)
        near = _cut(row, box)
        for column, title in enumerate(titles):
            whole, enlarged = axes[2 * place][column], axes[2 * place + 1][column]
            _draw(whole, row, title, labels, 0.5)
            _draw(enlarged, near, title, labels, 1.0)
            if title in ("scan", "truth", *row.masks):
                _frame(whole, row.truth, box)
        axes[2 * place][0].set_ylabel(row.name, fontsize=points)
    for axis, title in zip(axes[0], titles, strict=True):
        text, fitting = heading(title, cell, points)
        axis.set_title(text, fontsize=fitting)
    legend_below(figure, keys, LEGEND_COLUMNS)
    return figure


def region(row: PanelRow, organ_id: int | None = None) -> Box:
    """The square of pixels that is enlarged, see `panels_figure`."""
    mask, masks = row.truth.mask, list(row.masks.values())
    size_mm = np.array(row.truth.pixel_mm[::-1])  # of a row and a column
    held = mask == organ_id
    if organ_id is not None and held.any():
        low, high = (
            np.array([getattr(side, end) for side in ndimage.find_objects(held.view(np.uint8))[0]])
            for end in ("start", "stop")
        )
        middle, side_mm = (low + high) / 2, float(((high - low) * size_mm).max()) + 2 * MARGIN_MM
    else:
        wrong = np.sum([each != mask for each in masks], axis=0, dtype=np.float64) if masks else mask > 0
        wrong = wrong if np.any(wrong) else mask > 0
        reach = np.maximum(1, np.round(REGION_MM / size_mm)).astype(int)
        density = ndimage.uniform_filter(np.asarray(wrong, np.float64), tuple(reach), mode="constant")
        middle, side_mm = np.array(np.unravel_index(density.argmax(), density.shape)) + 0.5, REGION_MM
    pixels = np.minimum(np.maximum(2, np.round(side_mm / size_mm)).astype(int), mask.shape)
    start = np.clip(np.round(middle - pixels / 2).astype(int), 0, np.array(mask.shape) - pixels)
    return slice(start[0], start[0] + pixels[0]), slice(start[1], start[1] + pixels[1])


def _cut(row: PanelRow, box: Box) -> PanelRow:
    truth = replace(row.truth, image=row.truth.image[box], mask=row.truth.mask[box])
    return replace(row, truth=truth, masks={method: mask[box] for method, mask in row.masks.items()})


def _body(row: PanelRow) -> Box:
    """The box around the largest thing in the slice that is not black, all masks included."""
    ids, (low, high) = [row.truth.mask, *row.masks.values()], row.window
    darkest = max(low, float(row.truth.image.min())) + 0.05 * (high - low)
    pieces, count = ndimage.label(ndimage.binary_opening(row.truth.image > darkest, iterations=2))
    largest = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]) if count else np.ones(pieces.shape, bool)
    rows, columns = ndimage.find_objects((largest | np.any(ids, axis=0)).view(np.uint8))[0]
    return rows, columns


def _aspect(cut: Section) -> float:
    """Height over width in millimetres."""
    rows, columns = cut.image.shape
    return float(rows * cut.pixel_mm[1] / (columns * cut.pixel_mm[0]))


def _draw(axis: Axes, row: PanelRow, title: str, labels: Mapping[str, int], line_width: float) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(color="0.2", linewidth=0.5)
    if title in ("scan", "truth"):
        draw_section(axis, row.truth, labels if title == "truth" else {}, row.window, line_width)
    elif title in row.masks:
        draw_section(axis, replace(row.truth, mask=row.masks[title]), labels, row.window, line_width)
    else:
        axis.text(0.5, 0.5, "no mask", transform=axis.transAxes, ha="center", va="center", color="0.4", fontsize=7)
        axis.spines[:].set_visible(False)


def _frame(axis: Axes, cut: Section, box: Box) -> None:
    (height, width), (x_mm, y_mm) = ((side.stop - side.start for side in box), cut.pixel_mm)
    corner = (box[1].start * x_mm, box[0].start * y_mm)
    axis.add_patch(Rectangle(corner, width * x_mm, height * y_mm, fill=False, edgecolor=FRAME, linewidth=0.8))
    axis.spines[:].set_visible(False)
