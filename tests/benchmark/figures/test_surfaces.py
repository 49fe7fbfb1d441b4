"""Bodies of several methods: each stands under its name, at one scale, and errors are coloured where they are."""

import numpy as np

from meddelinea.benchmark.figures.surfaces import (
    AGREED,
    ERROR_COLOURS,
    EXTRA,
    MISSED,
    SurfaceRow,
    error_bodies,
    surfaces_figure,
)
from meddelinea.volume import Volume

LABELS = {"liver": 1, "spleen": 2}
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def blocks(*places: tuple[int, slice]) -> Volume:
    """Along I, blocks of 12 x 12 voxels."""
    ids = np.zeros((40, 20, 20), np.uint8)
    for index, along in places:
        ids[along, 4:16, 4:16] = index
    return Volume(ids, AFFINE)


def test_errors_are_exactly_what_lies_further_off_than_the_tolerance() -> None:
    truth = blocks((1, slice(5, 15)), (2, slice(20, 30)))
    bodies = error_bodies(blocks((1, slice(5, 18)), (2, slice(24, 30))), truth, LABELS).array[:, 10, 10]
    assert set(bodies[5:16]) == {AGREED}  # one voxel of 2 mm too far is within 3 mm
    assert set(bodies[16:18]) == {EXTRA}
    assert set(bodies[20:23]) == {MISSED}
    assert bodies[23] == 0  # missing, within the tolerance
    assert set(bodies[24:30]) == {AGREED}
    assert not bodies[30:].any()


def test_another_organ_in_an_organs_place_is_too_much_of_it() -> None:
    truth = blocks((1, slice(5, 25)))
    bodies = error_bodies(blocks((2, slice(5, 25))), truth, LABELS).array
    assert set(np.unique(bodies)) == {0, EXTRA}
    same = error_bodies(truth, truth, LABELS).array
    assert np.array_equal(same == AGREED, truth.array > 0)


def test_methods_stand_beside_the_truth_and_only_errors_are_in_their_colours() -> None:
    truth, wrong = blocks((1, slice(5, 25))), blocks((1, slice(5, 32)))
    rows = [SurfaceRow("a", truth, {"first": truth, "second": wrong}), SurfaceRow("b", truth, {"second": truth})]
    figure = surfaces_figure(rows, LABELS, errors=True)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["first", "second", "truth"]
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["a", "b"]
    assert [text.get_text() for text in figure.axes[3].texts] == ["no mask"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["right", "too much", "missing", "liver"]
    right, extra = (np.array(figure.axes[place].images[0].get_array()) for place in (0, 1))
    assert right.shape == extra.shape
    assert not _of(right, EXTRA).any()
    assert _of(extra, EXTRA).any()
    assert np.nonzero(_of(extra, EXTRA))[1].max() < np.nonzero(_of(extra, AGREED))[1].min()  # on its own side


def _of(picture: np.ndarray, kind: int) -> np.ndarray:
    """Pixels of the hue of a kind."""
    colour, shown = np.array(ERROR_COLOURS[kind], float), picture[..., :3].astype(float)
    along = shown @ colour / np.maximum(np.linalg.norm(shown, axis=-1) * np.linalg.norm(colour), 1e-6)
    return (picture[..., 3] > 0) & (along > 0.999)
