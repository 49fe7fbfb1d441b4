"""One scan's result as a page that needs nothing else: pictures, measurements, checks, and how it was made."""

from __future__ import annotations

import base64
import io
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from meddelinea.files import write_text
from meddelinea.labels import colour_of
from meddelinea.results.figures import plane_pictures
from meddelinea.results.rendering import surface_view
from meddelinea.results.result import Result

#: From where the rendered organs are seen, in degrees as `surface_view` has them.
VIEWS = {"from the front": 0.0, "from the left": 90.0, "from behind": 180.0, "from the right": 270.0}
#: Libraries whose versions a result may depend on.
LIBRARIES = ("torch", "diffusers", "numpy", "scipy", "nibabel", "pydicom")


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
    pictures = {plane: _embedded(png) for plane, png in plane_pictures(scan, mask, labels).items()}
    bodies = {index: colour_of(organ) for organ, index in labels.items()}
    views = {title: _embedded(_png(surface_view(mask, bodies, azimuth_deg))) for title, azimuth_deg in VIEWS.items()}
    environment = Environment(
        loader=PackageLoader("meddelinea.results", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("page.html.j2").render(
        name=result.name,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        shape=" x ".join(map(str, scan.volume.shape)),
        spacing=" x ".join(f"{mm:.3g}" for mm in scan.volume.spacing_mm),
        orientation=scan.volume.orientation,
        modality=scan.modality,
        unit="" if scan.modality == "MR" else "HU",
        findings=result.findings,
        pictures=pictures,
        views=views,
        organs=result.statistics,
        colours={organ: "#{:02x}{:02x}{:02x}".format(*colour_of(organ)) for organ in result.statistics},
        segmentation=result.segmentation,
        confidence=result.segmentation.confidence,
        reviews=result.reviews,
        level=result.segmentation.calibration and result.segmentation.calibration.level,
        libraries={"Python": platform.python_version(), **{library: version(library) for library in LIBRARIES}},
        card=card,
    )
    write_text(page, path)


def _png(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="png")
    return stream.getvalue()


def _embedded(png: bytes) -> str:
    """A picture as the address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
