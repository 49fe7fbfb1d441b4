"""The rendered view of a mask: who stands where, and how light falls on a sphere."""

from __future__ import annotations

import numpy as np
import pytest

from meddelinea.labels import colour_of
from meddelinea.results.rendering import AMBIENT, LIGHT, surface_view
from meddelinea.volume import Volume

COLOURS = {1: colour_of("liver"), 2: colour_of("spleen"), 3: colour_of("aorta")}


def ball(shape: tuple[int, int, int], centre: tuple[int, int, int], radius: float) -> np.ndarray:
    where = np.indices(shape) - np.array(centre)[:, None, None, None]
    return (where**2).sum(0) < radius**2


def three_balls() -> Volume:
    """RAS: the liver at the right, the spleen at the left, the aorta behind the middle."""
    ids = np.zeros((60, 40, 30), np.uint8)
    ids[ball(ids.shape, (48, 28, 15), 9)] = 1
    ids[ball(ids.shape, (11, 28, 15), 9)] = 2
    ids[ball(ids.shape, (30, 8, 20), 7)] = 3
    return Volume(ids, np.diag([2.0, 2.0, 2.0, 1.0]))


def column_of(picture: np.ndarray, organ: str) -> float:
    """Mean column of the pixels of an organ's hue, as a share of the width; NaN without any."""
    colour = np.array(colour_of(organ), float)
    shown = picture[..., :3].astype(float)
    along = shown @ colour / np.maximum(np.linalg.norm(shown, axis=-1) * np.linalg.norm(colour), 1e-6)
    columns = np.nonzero((picture[..., 3] > 0) & (along > 0.999))[1]
    return float(columns.mean()) / picture.shape[1] if len(columns) else np.nan


@pytest.mark.parametrize(
    ("azimuth_deg", "order"),
    [(0, ("liver", "aorta", "spleen")), (180, ("spleen", "aorta", "liver"))],
)
def test_seen_from_the_front_the_patients_right_is_at_the_left(azimuth_deg: float, order: tuple[str, ...]) -> None:
    places = [column_of(surface_view(three_balls(), COLOURS, azimuth_deg), organ) for organ in order]
    assert places == sorted(places)
    assert places[0] < 0.4 < places[1] < 0.6 < places[2]


def test_seen_from_the_patients_left_the_spleen_hides_the_liver_and_the_front_is_at_the_left() -> None:
    picture = surface_view(three_balls(), COLOURS, 90)
    assert column_of(picture, "spleen") < column_of(picture, "aorta")
    assert np.isnan(column_of(picture, "liver"))


@pytest.mark.parametrize("orientation", ["LPS", "SAR", "PIL"])
def test_the_order_of_axes_changes_nothing(orientation: str) -> None:
    mask = three_balls()
    assert np.array_equal(surface_view(mask.reorient(orientation), COLOURS, 30), surface_view(mask, COLOURS, 30))


def test_a_sphere_is_a_disc_lit_as_lamberts_law_has_it() -> None:
    ids = ball((81, 81, 81), (40, 40, 40), 36).astype(np.uint8)
    picture = surface_view(Volume(ids, np.eye(4)), {1: colour_of("aorta")}, 0, pixels=160)
    step = 70 * 2**0.5 / 160  # the ball's box is thinned to 35 voxels of 2 mm
    radius = np.sqrt((picture[..., 3] > 0).sum() / np.pi) * step
    assert radius == pytest.approx(36, abs=0.5)
    rows, columns = np.indices(picture.shape[:2])
    x = (columns - (picture.shape[1] - 1) / 2) * step / 36
    y = -(rows - (picture.shape[0] - 1) / 2) * step / 36
    inner = x**2 + y**2 < 0.6**2
    facing = LIGHT[0] * x + LIGHT[1] * y + LIGHT[2] * np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    expected = AMBIENT + (1 - AMBIENT) * np.clip(facing, 0, 1)
    shown = picture[..., 0] / colour_of("aorta")[0]
    assert np.abs(shown - expected)[inner].mean() < 0.03  # a light from the other side: 0.3


def test_only_what_is_asked_for_is_drawn_and_nothing_gives_an_empty_picture() -> None:
    mask = three_balls()
    assert surface_view(mask, {9: colour_of("gallbladder")}, 0)[..., 3].max() == 0
    alone = surface_view(mask, {3: colour_of("aorta")}, 0)
    both = Volume(np.where(mask.array == 3, 3, 0).astype(np.uint8), mask.affine)
    assert np.array_equal(alone, surface_view(both, COLOURS, 0))
