"""The surfaces of a mask: closed, outward, of the bodies' true size and place, in a file that others can read."""

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from meddelinea.results.surfaces import Surface, glb, organ_surfaces, stl
from meddelinea.volume import Volume

CENTRE = np.array([30.0, -20.0, 55.0])
RADIUS_MM = 20.0


def ball(spacing_mm: tuple[float, float, float] = (1.5, 1.0, 3.0), signs: tuple[int, int, int] = (-1, 1, 1)) -> Volume:
    """A ball of id 3 about `CENTRE`, with a cube of id 1 beside it."""
    size = [int(70 / mm) for mm in spacing_mm]
    affine = np.diag([*(np.array(spacing_mm) * signs), 1.0])
    affine[:3, 3] = CENTRE - affine[:3, :3] @ (np.array(size) / 2)
    places = np.stack(np.indices(size), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    array = np.where(np.linalg.norm(places - CENTRE, axis=-1) <= RADIUS_MM, 3, 0).astype(np.uint8)
    array[:4, :4, :4] = 1
    return Volume(array, affine)


def volume_mm3(surface: Surface) -> float:
    """By the divergence theorem: positive where the triangles face outwards."""
    a, b, c = surface.points.astype(float)[surface.triangles].transpose(1, 0, 2)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def edges_of(triangles: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (-1, -1, 1)])
def test_a_ball_keeps_its_place_and_size(signs: tuple[int, int, int]) -> None:
    found = {surface.name: surface for surface in organ_surfaces(ball(signs=signs), {"spleen": 1, "liver": 3})}
    assert set(found) == {"spleen", "liver"}
    liver = found["liver"]
    away = np.linalg.norm(liver.points - CENTRE, axis=1)
    assert abs(away.mean() - RADIUS_MM) < 0.75
    assert away.std() < 0.6  # the steps of the voxels, of 3 mm, are gone
    assert volume_mm3(liver) == pytest.approx(4 / 3 * np.pi * RADIUS_MM**3, rel=0.08)


def test_surfaces_are_closed_where_the_scan_ends_too() -> None:
    mask = ball()
    cut = Volume(mask.array[: mask.array.shape[0] // 2], mask.affine)
    for surface in organ_surfaces(cut, {"spleen": 1, "liver": 3}):
        edges = {tuple(edge) for edge in edges_of(surface.triangles).tolist()}
        assert len(edges) == 3 * len(surface.triangles)  # each once in each direction
        assert {(b, a) for a, b in edges} == edges


def test_an_organ_that_is_absent_has_none() -> None:
    assert organ_surfaces(Volume(np.zeros((5, 5, 5), np.uint8), np.eye(4)), {"liver": 3}) == []


def test_a_glb_holds_the_organs_by_name() -> None:
    surfaces = organ_surfaces(ball(), {"spleen": 1, "liver": 3})
    content = glb(surfaces)
    assert content[:4] == b"glTF"
    assert int.from_bytes(content[8:12], "little") == len(content)
    length = int.from_bytes(content[12:16], "little")
    document = json.loads(content[20 : 20 + length])
    binary = content[28 + length :]
    assert [node["name"] for node in document["nodes"]] == ["spleen", "liver"]
    (primitive,) = document["meshes"][1]["primitives"]
    accessor = document["accessors"][primitive["attributes"]["POSITION"]]
    view = document["bufferViews"][accessor["bufferView"]]
    points = np.frombuffer(binary, "<f4", 3 * accessor["count"], view["byteOffset"]).reshape(-1, 3)
    # Metres; the patient's head is up, its front comes forward, its right is at the left hand of who looks at it.
    assert np.allclose(points.mean(axis=0) * 1000, [-CENTRE[0], CENTRE[2], CENTRE[1]], atol=1)
    assert accessor["min"] == points.min(axis=0).tolist()
    assert len(glb([])) > 20


def test_an_stl_holds_the_volume_of_all_organs_in_slicers_coordinates() -> None:
    ids = np.zeros((30, 30, 30), np.uint8)
    ids[5:15, 5:15, 5:15] = 1
    ids[20:26, 20:26, 20:26] = 2
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 10.0, 20.0, 30.0
    content = stl(organ_surfaces(Volume(ids, affine), {"liver": 1, "spleen": 2, "pancreas": 3}))
    assert content[:9] == b"SPACE=LPS"
    count = int.from_bytes(content[80:84], "little")
    assert len(content) == 84 + 50 * count
    faces = np.frombuffer(content[84:], np.dtype([("numbers", "<f4", (4, 3)), ("attribute", "<u2")]))["numbers"]
    normals, corners = faces[:, 0], faces[:, 1:]
    # The sum of signed tetrahedra, positive where normals point outwards; smoothing rounds corners off.
    signed = np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert signed == pytest.approx((10**3 + 6**3) * 8, rel=0.12)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-4)
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    # Voxels 5 to 25 have their outer faces at 9 and 51 mm from the first voxel's centre: right, front and head turned.
    np.testing.assert_allclose(low, [-61, -71, 39], atol=1.5)
    np.testing.assert_allclose(high, [-19, -29, 81], atol=1.5)


def test_an_stl_without_organs_has_no_face() -> None:
    assert stl([])[80:] == bytes(4)
