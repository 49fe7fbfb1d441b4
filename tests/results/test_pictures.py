"""Single planes of a mask: at one scale in millimetres, and close to an organ."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from meddelinea.labels import colour_of
from meddelinea.results.pictures import CLOSE_MM, close_up, plane_pictures
from meddelinea.volume import Volume
from support.scans import as_ct

SHAPE = (100, 80, 10)
SPACING = (2.0, 2.0, 5.0)


def drawn(corner: tuple[int, int]) -> tuple[Volume, Volume]:
    """A scan of air, and a spleen of 10 x 10 voxels there, largest in slice 7."""
    ids = np.zeros(SHAPE, np.uint8)
    i, j = corner
    ids[i : i + 10, j : j + 10, 7] = 1
    ids[i + 2 : i + 6, j + 2 : j + 6, 2] = 1
    affine = np.diag([*SPACING, 1.0])
    return Volume(np.full(SHAPE, -1000, np.int16), affine), Volume(ids, affine)


def opened(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize("corner", [(0, 0), (90, 70), (45, 30), (0, 70)])
def test_a_close_up_holds_the_organ_wherever_it_lies(corner: tuple[int, int]) -> None:
    scan, mask = drawn(corner)
    picture = opened(close_up(as_ct(scan), mask, {"spleen": 1}, "spleen"))
    assert abs(picture.shape[0] - picture.shape[1]) <= 1
    coloured = picture.max(axis=2) > 15
    # 20 mm of 120 mm a side; the outline is drawn about it.
    assert np.mean(coloured) == pytest.approx((20 / CLOSE_MM) ** 2, rel=0.35)
    assert np.argmax(picture[coloured].mean(axis=0)) == np.argmax(colour_of("spleen"))


def test_a_close_up_of_a_large_organ_shows_what_is_around_it() -> None:
    ids = np.zeros(SHAPE, np.uint8)
    ids[10:80, 10:70, :] = 1  # 140 mm by 120 mm
    mask = Volume(ids, np.diag([*SPACING, 1.0]))
    picture = opened(close_up(as_ct(Volume(np.full(SHAPE, -1000, np.int16), mask.affine)), mask, {"liver": 1}, "liver"))
    inside = picture.max(axis=2) > 15
    assert 0.4 < np.mean(inside) < 0.65


def test_planes_say_how_wide_they_are() -> None:
    scan, mask = drawn((20, 20))
    planes = plane_pictures(as_ct(scan), mask, {"spleen": 1})
    assert {name: plane.width_mm for name, plane in planes.items()} == {"axial": 200, "coronal": 200, "sagittal": 160}
    for plane, (across, up) in zip(planes.values(), ((200, 160), (200, 50), (160, 50)), strict=True):
        height, width = opened(plane.png).shape[:2]
        assert height / width == pytest.approx(up / across, rel=0.02)
