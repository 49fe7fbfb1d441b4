"""One scan's result as a page that needs nothing else: pictures, measurements, checks, and how it was made."""

from __future__ import annotations

import base64
import io
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from meddelinea.files import write_text
from meddelinea.labels import colour_of
from meddelinea.results.page_style import STYLE, STYLE_SOURCE
from meddelinea.results.pictures import close_up, plane_pictures
from meddelinea.results.rendering import surface_view
from meddelinea.results.result import Result
from meddelinea.results.sides import LETTERS

#: From where the rendered organs are seen, in degrees as `surface_view` has them.
VIEWS = {"from the front": 0.0, "from the left": 90.0, "from behind": 180.0, "from the right": 270.0}
#: Libraries whose versions a result may depend on.
LIBRARIES = ("torch", "diffusers", "numpy", "scipy", "nibabel", "pydicom")
#: Width of the three planes side by side, of a close-up and of a view of the organs, in pixels of a screen.
PLANES_PIXELS, CLOSE_PIXELS, VIEW_PIXELS = 1200, 185, 290
#: Masks to be reviewed that are shown, the least sure first.
SHOWN = 6


@dataclass(frozen=True)
class Picture:
    """A picture of the page: what it shows, the address that holds it, and its width in pixels of a screen."""

    title: str
    source: str
    width: int


def write_scan_report(path: Path, result: Result, card: str) -> None:
    """Write a page of HTML that opens without a network and holds all its pictures.

    Parameters
    ----------
    path
        The `.html` to write; it appears complete or not at all.
    result
        The scan, its mask, the measurements of its organs, and what is to be known of it.
    card
        The model's card, Markdown; its text is shown as it stands.
    """
    scan, mask, labels = result.scan, result.mask, result.labels
    doubtful = _doubtful(result)
    bodies = {index: colour_of(organ) for organ, index in labels.items()}
    environment = Environment(
        loader=PackageLoader("meddelinea.results", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("page.html.j2").render(
        name=result.name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=STYLE,
        style_source=STYLE_SOURCE,
        shape=" x ".join(map(str, scan.volume.shape)),
        spacing=" x ".join(f"{mm:.3g}" for mm in scan.volume.spacing_mm),
        orientation=scan.volume.orientation,
        modality=scan.modality,
        unit="" if scan.modality == "MR" else "HU",
        summary=_summary(result),
        findings=result.findings,
        planes=_planes(result),
        close=[
            Picture(title, _embedded(close_up(scan, mask, labels, organ)), CLOSE_PIXELS)
            for organ, title in list(doubtful.items())[:SHOWN]
        ],
        left_out=max(len(doubtful) - SHOWN, 0),
        views=[
            Picture(title, _embedded(_png(surface_view(mask, bodies, azimuth_deg))), VIEW_PIXELS)
            for title, azimuth_deg in VIEWS.items()
        ],
        organs=result.statistics,
        letters=LETTERS,
        legend=_legend(result),
        colours={organ: "#{:02x}{:02x}{:02x}".format(*colour_of(organ)) for organ in result.statistics},
        segmentation=result.segmentation,
        confidence=result.segmentation.confidence,
        reviews=result.reviews,
        level=result.segmentation.calibration and result.segmentation.calibration.level,
        libraries={"Python": platform.python_version(), **{library: version(library) for library in LIBRARIES}},
        card=card,
    )
    write_text(page, path)


def _planes(result: Result) -> list[Picture]:
    """The three planes at one scale."""
    planes = plane_pictures(result.scan, result.mask, result.labels)
    scale = PLANES_PIXELS / sum(plane.width_mm for plane in planes.values())
    return [Picture(name, _embedded(plane.png), round(plane.width_mm * scale)) for name, plane in planes.items()]


def _doubtful(result: Result) -> dict[str, str]:
    """The organs whose masks are to be reviewed, the least sure first, each with a title."""
    stated, reviews = result.segmentation.confidence, result.reviews
    sure = {
        organ: stated[organ].expected_dice or 0.0
        for organ, measured in result.statistics.items()
        if measured.found and reviews[organ].needs_review
    }
    return {organ: f"{organ}, expected Dice {sure[organ]:.2f}" for organ in sorted(sure, key=lambda name: sure[name])}


def _summary(result: Result) -> list[str]:
    """How many organs were found, are to be reviewed, and are cut by the scan's edge."""
    found = {organ: measured for organ, measured in result.statistics.items() if measured.found}
    missing = [organ for organ in result.statistics if organ not in found]
    parts = [f"{len(found)} of {len(result.statistics)} organs found"]
    if missing:
        parts.append(f"not found: {', '.join(missing)}")
    if reviewed := sum(result.reviews[organ].needs_review for organ in found):
        parts.append(f"{reviewed} to be reviewed")
    if cut := sum(bool(measured.touches_edge) for measured in found.values()):
        parts.append(f"{cut} cut by the scan's edge")
    return parts


def _legend(result: Result) -> dict[str, str]:
    """The marks of the table -> what they mean."""
    found = {organ: measured for organ, measured in result.statistics.items() if measured.found}
    remarks = dict.fromkeys(result.reviews[organ].remark for organ in found if result.reviews[organ].needs_review)
    touched = {side for measured in found.values() for side in measured.touches_edge}
    cut = {
        LETTERS[side]: f"cut by the scan's edge ({side}): at least this volume" for side in LETTERS if side in touched
    }
    return {**({"!": "; ".join(remarks)} if remarks else {}), **cut}


def _png(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="png")
    return stream.getvalue()


def _embedded(png: bytes) -> str:
    """A picture as the address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
