"""Pictures of a mask on its scan, drawn the way radiologists look at scans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.files import whole
from meddelinea.labels import colour_of
from meddelinea.scan import Modality, Scan
from meddelinea.volume import Volume

#: Abdominal soft-tissue window: level 40, width 400 HU.
WINDOW_HU = (-160.0, 240.0)
#: Axial levels in a preview.
AXIAL_LEVELS = 3
#: A plane that is flatter than so many times its width has no letters at top and bottom: they would hide what it shows.
FLAT = 0.25


@dataclass(frozen=True)
class Section:
    """A plane through a volume as it is drawn: row 0 at the bottom, column 0 at the left.

    Parameters
    ----------
    image, mask
        (rows, columns) grey values and label ids.
    pixel_mm
        Width and height of a pixel in millimetres.
    letters
        Patient directions at the left, right, bottom and top border: R, L, A(nterior), P(osterior), H(ead), F(eet);
        empty for a part of a plane.
    """

    image: NDArray[Any]
    mask: NDArray[Any]
    pixel_mm: tuple[float, float]
    letters: str


def section(image: Volume, mask: Volume, plane: str, index: int) -> Section:
    """Cut a plane in radiological orientation: the patient's right at the picture's left, front or head on top.

    Parameters
    ----------
    image, mask
        Volumes of one shape, oriented LAS (`Volume.reorient("LAS")`).
    plane
        `"axial"`, `"coronal"` or `"sagittal"` (front at the picture's left).
    index
        Slice along the plane's normal.
    """
    x_mm, y_mm, z_mm = image.spacing_mm
    a, m = image.array, mask.array
    if plane == "axial":
        return Section(a[:, :, index].T, m[:, :, index].T, (x_mm, y_mm), "RLPA")
    if plane == "coronal":
        return Section(a[:, index, :].T, m[:, index, :].T, (x_mm, z_mm), "RLFH")
    return Section(a[index, ::-1, :].T, m[index, ::-1, :].T, (y_mm, z_mm), "APFH")


def telling_slices(mask: NDArray[Any], axis: int, count: int) -> list[int]:
    """The `count` slices along `axis` that together show the organs best, in ascending order.

    A slice shows an organ by its area there, relative to the organ's largest area in any slice. Slices are added one
    by one, each the one that raises the sum over organs of the best view so far the most. An empty mask gives evenly
    spread slices.
    """
    slices = np.moveaxis(mask, axis, 0)
    areas = np.stack([np.bincount(plane.ravel(), minlength=256)[1:256] for plane in slices]).astype(np.float64)
    areas = areas[:, areas.any(axis=0)]
    if areas.shape[1] == 0:
        return [int((place + 0.5) / count * len(slices)) for place in range(count)]
    views = areas / areas.max(axis=0)
    best = np.zeros(views.shape[1])
    chosen: list[int] = []
    for _ in range(min(count, len(slices))):
        gain = np.maximum(views, best).sum(axis=1)
        gain[chosen] = -1.0
        chosen.append(int(gain.argmax()))
        best = np.maximum(best, views[chosen[-1]])
    return sorted(chosen)


def preview(scan: Scan, mask: Volume, labels: Mapping[str, int], path: Path, title: str) -> None:
    """Draw a mask on its scan: three axial levels, a coronal and a sagittal plane, and a legend with volumes.

    Parameters
    ----------
    scan
        A CT is shown in the abdominal soft-tissue window, an MR between its 1st and 99th percentile.
    mask
        Label ids (uint8) on the scan's grid.
    labels
        Organ name -> id.
    path
        The PNG to write; it appears complete or not at all.
    title
        One line above the picture.

    Raises
    ------
    InputRefusedError
        If the two shapes differ.
    """
    if scan.volume.shape != mask.shape:
        raise InputRefusedError(f"the mask is {mask.shape} voxels, the scan {scan.volume.shape}; expected equal")
    image, mask = scan.volume.reorient("LAS"), mask.reorient("LAS")
    window = grey_window(image, scan.modality)
    axial = telling_slices(mask.array, 2, AXIAL_LEVELS)[::-1]  # from the head down, as one pages through a scan
    (coronal,) = telling_slices(mask.array, 1, 1)
    (sagittal,) = telling_slices(mask.array, 0, 1)

    figure = Figure(figsize=(15, 10), dpi=110, facecolor="black")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color="white", fontsize=16, y=0.985)
    axes = figure.subplots(
        2, 3, gridspec_kw={"left": 0.02, "right": 0.98, "bottom": 0.02, "top": 0.92, "wspace": 0.04, "hspace": 0.09}
    )
    for number, (ax, index) in enumerate(zip(axes[0], axial, strict=False), start=1):
        draw_framed(ax, section(image, mask, "axial", index), labels, window)
        ax.set_title(f"axial {number}, z = {_height_mm(image, index):.0f} mm", color="white", fontsize=13)
    for ax, plane, index in ((axes[1, 0], "coronal", coronal), (axes[1, 1], "sagittal", sagittal)):
        draw_framed(ax, section(image, mask, plane, index), labels, window)
        ax.set_title(plane, color="white", fontsize=13)
        for number, level in enumerate(axial, start=1):
            height = (level + 0.5) * image.spacing_mm[2]
            ax.axhline(height, color="white", linewidth=0.6, linestyle=(0, (2, 6)))
            ax.text(
                0.985, height, str(number), transform=ax.get_yaxis_transform(), color="white", fontsize=9, ha="right"
            )
    for ax in axes.flat:
        ax.set_axis_off()
    _legend(axes[1, 2], mask, labels)

    with whole(path) as part:
        figure.savefig(part, format="png", facecolor="black")


def grey_window(image: Volume, modality: Modality | None) -> tuple[float, float]:
    """Grey values that are black and white."""
    if modality != "MR":
        return WINDOW_HU
    low, high = np.percentile(image.array[::4, ::4, ::2], (1, 99))
    return float(low), float(max(high, low + 1e-6))


def _height_mm(volume: Volume, index: int) -> float:
    """Patient z of the middle of axial slice `index`, in millimetres."""
    i, j, _ = (np.array(volume.array.shape) - 1) / 2
    return float((volume.affine @ np.array([i, j, index, 1.0]))[2])


def organ_colour(name: str) -> tuple[float, float, float]:
    """RGB of an organ, each channel 0 to 1."""
    red, green, blue = colour_of(name)
    return red / 255, green / 255, blue / 255


def draw_section(
    ax: Axes, cut: Section, labels: Mapping[str, int], window: tuple[float, float], line_width: float = 1.3
) -> None:
    """Draw one plane in millimetres: the scan, and each organ faintly filled and outlined."""
    rows, columns = cut.image.shape
    extent = (0.0, columns * cut.pixel_mm[0], 0.0, rows * cut.pixel_mm[1])
    ax.imshow(cut.image, cmap="gray", vmin=window[0], vmax=window[1], origin="lower", extent=extent, aspect="equal")
    centres = [(np.arange(n) + 0.5) * mm for n, mm in zip((columns, rows), cut.pixel_mm, strict=True)]
    fill = np.zeros((rows, columns, 4), np.float32)  # one for all organs: the picture keeps it until it is saved
    for name, index in labels.items():
        inside = cut.mask == index
        if not inside.any():
            continue
        colour = organ_colour(name)
        fill[inside] = (*colour, 0.28)
        if min(rows, columns) > 1 and not inside.all():
            # Only where it is, one pixel around included: the picture keeps the grid of each contour until it is saved.
            held = [np.flatnonzero(inside.any(axis=axis)) for axis in (0, 1)]
            across, up = (slice(max(0, int(at[0]) - 1), int(at[-1]) + 2) for at in held)
            outline = inside[up, across].astype(float)
            ax.contour(
                centres[0][across], centres[1][up], outline, levels=[0.5], colors=[colour], linewidths=line_width
            )
    ax.imshow(fill, origin="lower", extent=extent, aspect="equal", interpolation="nearest")


def draw_framed(ax: Axes, cut: Section, labels: Mapping[str, int], window: tuple[float, float]) -> None:
    """Draw one plane as `draw_section` does, and the border letters."""
    draw_section(ax, cut, labels, window)
    left, right = (0.01, 0.5, "left", "center"), (0.99, 0.5, "right", "center")
    bottom, top = (0.5, 0.01, "center", "bottom"), (0.5, 0.99, "center", "top")
    rows, columns = cut.image.shape
    flat = rows * cut.pixel_mm[1] < FLAT * columns * cut.pixel_mm[0]
    borders = (left, right) if flat else (left, right, bottom, top)
    for letter, (x, y, horizontal, vertical) in zip(cut.letters, borders, strict=False):
        ax.text(
            *(x, y, letter),
            transform=ax.transAxes,
            color="white",
            fontsize=13,
            fontweight="bold",
            ha=horizontal,
            va=vertical,
            bbox={"facecolor": "black", "alpha": 0.5, "pad": 1.5, "linewidth": 0},
        )


def _legend(ax: Axes, mask: Volume, labels: Mapping[str, int]) -> None:
    """List every organ with its colour and volume; those not found are named as such."""
    counts = np.zeros(256, np.int64)
    for index in range(mask.array.shape[2]):  # counting all at once would copy it as 64-bit numbers
        counts += np.bincount(mask.array[:, :, index].ravel(), minlength=256)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    step = min(0.075, 0.96 / max(len(labels), 1))
    for row, (name, index) in enumerate(labels.items()):
        y = 0.98 - (row + 0.5) * step
        found = counts[index] > 0
        text = f"{counts[index] * mask.voxel_ml:,.1f} ml" if found else "not found"
        ink = "white" if found else "0.6"
        ax.add_patch(
            Rectangle((0.04, y - 0.3 * step), 0.05, 0.6 * step, color=organ_colour(name), alpha=1 if found else 0.35)
        )
        ax.text(0.13, y, name, color=ink, fontsize=14, va="center")
        ax.text(0.96, y, text, color=ink, fontsize=14, va="center", ha="right")
