"""Single planes of a mask on its scan, each a picture of its own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from meddelinea.results.figures import Section, draw_framed, grey_window, section, telling_slices
from meddelinea.scan import Scan
from meddelinea.volume import Volume

#: Width of a plane's picture, of a close-up and of a thumbnail.
PLANE_INCHES, CLOSE_INCHES, THUMBNAIL_INCHES = 6.0, 3.0, 1.2
#: Least side of a close-up.
CLOSE_MM = 120.0


@dataclass(frozen=True)
class Plane:
    """A plane through a scan as a PNG, and how wide what it shows is."""

    png: bytes
    width_mm: float


def plane_pictures(scan: Scan, mask: Volume, labels: Mapping[str, int]) -> dict[str, Plane]:
    """The planes that show the organs best: `axial`, `coronal`, `sagittal`, drawn as `preview` does.

    Parameters
    ----------
    scan, mask, labels
        As of `preview`, with shapes that are equal.
    """
    image, mask = scan.volume.reorient("LAS"), mask.reorient("LAS")
    window = grey_window(image, scan.modality)
    pictures = {}
    for axis, plane in ((2, "axial"), (1, "coronal"), (0, "sagittal")):
        (index,) = telling_slices(mask.array, axis, 1)
        cut = section(image, mask, plane, index)
        pictures[plane] = Plane(_picture(cut, labels, window, PLANE_INCHES), cut.image.shape[1] * cut.pixel_mm[0])
    return pictures


def thumbnail(scan: Scan, mask: Volume, labels: Mapping[str, int]) -> bytes:
    """The coronal plane that shows the organs best, small, as a PNG; arguments as of `plane_pictures`."""
    image, mask = scan.volume.reorient("LAS"), mask.reorient("LAS")
    (index,) = telling_slices(mask.array, 1, 1)
    cut = replace(section(image, mask, "coronal", index), letters="")
    return _picture(cut, labels, grey_window(image, scan.modality), THUMBNAIL_INCHES)


def close_up(scan: Scan, mask: Volume, labels: Mapping[str, int], organ: str) -> bytes:
    """The axial plane in which an organ is largest, as a PNG of a square around it.

    Parameters
    ----------
    scan, mask, labels
        As of `preview`, with shapes that are equal.
    organ
        One of `labels` that the mask holds.
    """
    image, mask = scan.volume.reorient("LAS"), mask.reorient("LAS")
    inside = mask.array == labels[organ]
    index = int(np.count_nonzero(inside, axis=(0, 1)).argmax())
    cut = section(image, mask, "axial", index)
    held = [np.flatnonzero(inside[:, :, index].any(axis=axis)) for axis in (0, 1)]  # rows, columns of the section
    spans = [(at[-1] + 1 - at[0]) * mm for at, mm in zip(held, cut.pixel_mm[::-1], strict=True)]
    side_mm = max(CLOSE_MM, 1.5 * max(spans))
    windows = []
    for at, mm, size in zip(held, cut.pixel_mm[::-1], cut.image.shape, strict=True):
        pixels = min(round(side_mm / mm), size)
        first = min(max(int(at[0] + at[-1] + 1 - pixels) // 2, 0), size - pixels)
        windows.append(slice(first, first + pixels))
    rows, columns = windows
    part = Section(cut.image[rows, columns], cut.mask[rows, columns], cut.pixel_mm, "")
    return _picture(part, labels, grey_window(image, scan.modality), CLOSE_INCHES)


def _picture(cut: Section, labels: Mapping[str, int], window: tuple[float, float], inches: float) -> bytes:
    """One plane as a PNG of so many inches across, without a border."""
    rows, columns = cut.image.shape
    figure = Figure(
        figsize=(inches, inches * rows * cut.pixel_mm[1] / (columns * cut.pixel_mm[0])), dpi=100, facecolor="black"
    )
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    draw_framed(ax, cut, labels, window)
    ax.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="black")
    return stream.getvalue()
