"""Curves, the architecture, and the files that figures are written to."""

from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest
from PIL import Image

from meddelinea.benchmark.figures.architecture import architecture_figure, sizes_of
from meddelinea.benchmark.figures.curves import curves_figure
from meddelinea.benchmark.figures.page import PAGE_INCHES, PRINT_DPI, line_of, new_page, require_formats, write_figure
from meddelinea.errors import UsageError
from meddelinea.models.presets import parameter_counts

LOG = [{"step": step, "cpu_seconds": 36.0 * step, "total": 2.0 / step, "dice": step / 100} for step in range(1, 41)]


def test_curves_are_drawn_by_step_and_by_hour() -> None:
    figure = curves_figure({"first": LOG, "second": LOG[:20], "empty": [{"step": 1, "total": 1.0}]}, "dice")
    by_step, by_hour = figure.axes
    for axes, unit in ((by_step, 1.0), (by_hour, 0.01)):
        first, second = axes.lines
        np.testing.assert_allclose(first.get_xdata(), unit * np.arange(1, 41))
        np.testing.assert_allclose(first.get_ydata(), np.arange(1, 41) / 100)
        assert len(second.get_xdata()) == 20
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "second"]
    assert (by_step.get_xlabel(), by_hour.get_xlabel()) == ("optimiser steps", "hours of processor time")
    assert by_step.get_ylabel() == "validation Dice"
    assert curves_figure({"first": LOG}, "total").axes[0].get_yscale() == "log"


def test_lines_of_many_methods_differ() -> None:
    assert len({line_of(place) for place in range(21)}) == 21


def test_the_architecture_has_the_presets_own_shapes_and_counts() -> None:
    sizes, counts = sizes_of("paper", 13), parameter_counts("paper", 13)
    assert {part: sizes.parameters[part] for part in ("codec", "control")} == {
        "codec": counts["codec"],
        "control": counts["control"],
    }
    assert sizes.shapes["tokens"] == (16 * 16, 624)
    assert sizes.shapes["mask"] == (14, 256, 256)
    figure = architecture_figure(sizes)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert any("15 blocks, 117.0 M" in text for text in texts)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text()]
    overlaps = [one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place]]
    assert not any(overlaps)


def test_files_are_of_print_resolution_and_the_same_every_time(tmp_path: Path) -> None:
    written = []
    for folder in ("a", "b"):
        figure = new_page(1.0)
        figure.subplots().plot([0, 1], [0, 1])
        written.append(write_figure(figure, tmp_path / folder / "figure-1", ("png", "svg")))
    png, svg = written[0]
    with Image.open(png) as picture:
        assert picture.size == (round(PAGE_INCHES * PRINT_DPI), PRINT_DPI)
        assert picture.info["dpi"] == pytest.approx((PRINT_DPI, PRINT_DPI), rel=1e-3)
    assert matplotlib.image.imread(png).min() < 0.5
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]


def test_unknown_formats_are_refused() -> None:
    for formats in (("tiff",), ()):
        with pytest.raises(UsageError, match="expected some of png, svg, pdf"):
            require_formats(formats)
