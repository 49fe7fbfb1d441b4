"""Panels: methods in columns, cases in rows, each cell with its own mask, and the region where they are wrong."""

from itertools import pairwise

import numpy as np
import pytest

from meddelinea.benchmark.figures.panels import MARGIN_MM, REGION_MM, PanelRow, panels_figure, region
from meddelinea.results.figures import Section

LABELS = {"liver": 1, "spleen": 2}


def row(name: str, methods: tuple[str, ...] = ("first", "second")) -> PanelRow:
    """200 x 240 pixels of 1 mm: a liver at the left, a spleen at the right that every method has elsewhere."""
    image = np.full((200, 240), -200.0)
    image[20:180, 20:220] = 40.0
    truth = np.zeros(image.shape, np.uint8)
    truth[60:100, 40:90] = 1
    wrong = truth.copy()
    truth[120:130, 180:190] = 2
    wrong[120:130, 195:205] = 2
    return PanelRow(
        name=name,
        truth=Section(image, truth, (1.0, 1.0), "RLPA"),
        masks=dict.fromkeys(methods, wrong),
        window=(-160.0, 240.0),
    )


def test_columns_are_methods_between_the_scan_and_the_truth_and_rows_are_cases() -> None:
    figure = panels_figure([row("case 1"), row("case 2", ("first",))], LABELS)
    axes = np.array(figure.axes).reshape(4, 4)
    assert [axis.get_title() for axis in axes[0]] == ["scan", "first", "second", "truth"]
    assert [axis.get_ylabel() for axis in axes[::2, 0]] == ["case 1", "case 2"]
    assert [text.get_text() for axis in axes[2:, 2] for text in axis.texts] == ["no mask", "no mask"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["liver", "spleen"]
    outlines = [len(axis.collections) for axis in axes[0]]
    assert outlines == [0, 2, 2, 2]
    fills = [np.array(axis.images[-1].get_array()) for axis in axes[0, 1:]]
    assert np.array_equal(fills[0], fills[1])
    assert not np.array_equal(fills[0], fills[2])


def test_the_region_is_where_methods_are_wrong_or_holds_the_organ_that_is_asked_for() -> None:
    rows, columns = region(row("a"))
    assert rows.stop - rows.start == columns.stop - columns.start == REGION_MM
    assert rows.start <= 120
    assert rows.stop >= 130
    assert columns.start <= 180
    assert columns.stop >= 205
    rows, columns = region(row("a"), LABELS["liver"])
    assert (columns.start, columns.stop) == (40 - MARGIN_MM, 90 + MARGIN_MM)
    assert rows.start < 60
    assert rows.stop > 100


def test_the_enlarged_region_is_the_one_that_is_framed() -> None:
    figure = panels_figure([row("a")], LABELS, "liver")
    whole, enlarged = figure.axes[0], figure.axes[4]
    (frame,) = whole.patches
    assert frame.get_width() == pytest.approx(enlarged.images[0].get_extent()[1])
    assert frame.get_height() == pytest.approx(enlarged.images[0].get_extent()[3])


def test_many_methods_are_no_smaller_than_can_be_read_on_the_page() -> None:
    names = tuple(f"a method of number {place}" for place in range(10))
    few, many = (panels_figure([row("a", methods)], LABELS) for methods in (names[:2], names))
    sizes = [figure.axes[0].yaxis.label.get_size() / figure.get_figwidth() for figure in (few, many)]
    assert sizes[0] == pytest.approx(sizes[1])
    many.canvas.draw()
    boxes = [axes.title.get_window_extent() for axes in many.axes[:12]]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
