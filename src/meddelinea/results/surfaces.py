"""The surfaces of a mask's organs as triangles, and the GLB or STL that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.files import whole
from meddelinea.labels import colour_of
from meddelinea.results.rendering import BODY_SMOOTHING, MARGIN, thinned
from meddelinea.version import __version__
from meddelinea.volume import Volume

#: From the patient's right, front and head in millimetres to glTF's metres: x to the left, y up, z to the front.
TO_GLTF = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]) / 1000.0
#: Endings of files of surfaces.
SURFACE_SUFFIXES = (".glb", ".stl")


@dataclass(frozen=True)
class Surface:
    """The surface of an organ.

    Parameters
    ----------
    name
        Of the organ.
    points
        (P, 3) in millimetres, to the patient's right, front and head.
    triangles
        (T, 3) three points each, counter-clockwise where seen from outside.
    """

    name: str
    points: NDArray[np.float32]
    triangles: NDArray[np.uint32]


def organ_surfaces(mask: Volume, labels: Mapping[str, int]) -> list[Surface]:
    """Smooth, closed surfaces of the organs that a mask holds, from voxels of about 2 mm.

    Parameters
    ----------
    mask
        Label ids, in any order of axes.
    labels
        Organ name -> id.
    """
    mask = thinned(mask).reorient("RAS")
    boxes = dict(enumerate(ndimage.find_objects(mask.array.astype(np.uint8)), start=1))
    surfaces = []
    for name, index in labels.items():
        box = boxes.get(index)
        if box is None:
            continue
        share = ndimage.gaussian_filter(np.pad((mask.array[box] == index).astype(np.float32), MARGIN), BODY_SMOOTHING)
        points, triangles = _net(share)
        if len(points):
            places = points + [side.start - MARGIN for side in box]
            in_mm = places @ mask.affine[:3, :3].T + mask.affine[:3, 3]
            surfaces.append(Surface(name, in_mm.astype(np.float32), triangles))
    return surfaces


def _net(share: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.uint32]]:
    """The surface where a field passes one half, by naive surface nets; nothing at its borders reaches one half.

    Each cell of eight voxels that the surface passes has one point, the mean of where it crosses the cell's edges; each
    edge that it crosses has a quadrilateral of the points of the four cells around it.
    """
    inside = share >= 0.5
    corners = np.zeros([length - 1 for length in share.shape], np.uint8)
    for corner in product((0, 1), repeat=3):
        corners += inside[tuple(slice(at, at + size) for at, size in zip(corner, corners.shape, strict=True))]
    passed = (corners > 0) & (corners < 8)
    cells = np.argwhere(passed)
    number = np.zeros(passed.shape, np.uint32)
    number[passed] = np.arange(len(cells))

    total, crossings = np.zeros(cells.shape), np.zeros((len(cells), 1))
    quads = []
    for axis in range(3):
        along, second, third = np.roll(np.eye(3, dtype=int), -axis, axis=0)
        for by, over in product((0, 1), repeat=2):
            start = cells + by * second + over * third
            low, high = share[tuple(start.T)], share[tuple((start + along).T)]
            crossed = (low >= 0.5) != (high >= 0.5)
            steps = (0.5 - low[crossed]) / (high[crossed] - low[crossed])
            total[crossed] += start[crossed] + steps[:, None] * along
            crossings[crossed] += 1
        leaves = np.diff(inside.view(np.int8), axis=axis)
        around = np.array([-second - third, -third, 0 * along, -second])  # counter-clockwise about the axis
        for change, order in ((-1, around), (1, around[::-1])):
            edges = np.argwhere(leaves == change)
            quads.append(number[tuple((edges[:, None] + order).transpose(2, 0, 1))])
    corners_of = np.concatenate(quads)
    return total / crossings, np.concatenate([corners_of[:, [0, 1, 2]], corners_of[:, [0, 2, 3]]])


def glb(surfaces: Sequence[Surface]) -> bytes:
    """A binary glTF 2.0 with a node for each organ, named and coloured, in metres."""
    parts: list[bytes] = []
    views: list[dict[str, int]] = []
    accessors: list[dict[str, object]] = []

    def add(array: NDArray[np.float32] | NDArray[np.uint32], target: int, described: dict[str, object]) -> int:
        views.append({"buffer": 0, "byteOffset": sum(map(len, parts)), "byteLength": array.nbytes, "target": target})
        parts.append(array.tobytes())
        accessors.append({"bufferView": len(views) - 1, **described})
        return len(accessors) - 1

    meshes: list[dict[str, object]] = []
    materials: list[dict[str, object]] = []
    for surface in surfaces:
        points = (surface.points @ TO_GLTF.T).astype("<f4")
        bounds = {"min": points.min(axis=0).tolist(), "max": points.max(axis=0).tolist()}
        position = add(points, 34962, {"componentType": 5126, "count": len(points), "type": "VEC3", **bounds})
        corners = surface.triangles.astype("<u4")
        indices = add(corners, 34963, {"componentType": 5125, "count": corners.size, "type": "SCALAR"})
        colour = (np.array(colour_of(surface.name)) / 255.0) ** 2.2  # glTF's colours are linear
        factor = [*colour.round(4).tolist(), 1.0]
        materials.append(
            {"pbrMetallicRoughness": {"baseColorFactor": factor, "metallicFactor": 0, "roughnessFactor": 0.7}}
        )
        primitive = {"attributes": {"POSITION": position}, "indices": indices, "material": len(meshes)}
        meshes.append({"name": surface.name, "primitives": [primitive]})
    document = {
        "asset": {"version": "2.0", "generator": f"MedDelinea {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(meshes)))} if meshes else {}],
        "nodes": [{"name": surface.name, "mesh": index} for index, surface in enumerate(surfaces)],
        "meshes": meshes,
        "materials": materials,
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": sum(map(len, parts))}],
    }
    described = json.dumps({name: value for name, value in document.items() if value or name == "scene"}).encode()
    chunks = [(b"JSON", described + b" " * (-len(described) % 4)), (b"BIN\0", b"".join(parts))]
    body = b"".join(len(chunk).to_bytes(4, "little") + kind + chunk for kind, chunk in chunks)
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(body)).to_bytes(4, "little") + body


def stl(surfaces: Sequence[Surface]) -> bytes:
    """A binary STL of all organs together, in DICOM's and 3D Slicer's millimetres: to the left, back and head."""
    corners = [surface.points[surface.triangles] * np.array([-1, -1, 1], np.float32) for surface in surfaces]
    placed = np.concatenate([np.empty((0, 3, 3), np.float32), *corners])
    faces = np.zeros(len(placed), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]))
    normals = np.cross(placed[:, 1] - placed[:, 0], placed[:, 2] - placed[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    faces["normal"] = np.divide(normals, lengths, out=np.zeros_like(normals), where=lengths > 0)
    faces["corners"] = placed
    return b"SPACE=LPS".ljust(80) + len(faces).to_bytes(4, "little") + faces.tobytes()


def write_surfaces(path: Path, mask: Volume, labels: Mapping[str, int]) -> None:
    """Write the organs' surfaces: a `.glb` with a named and coloured node for each, or a `.stl` of all together.

    The file appears complete or not at all.
    """
    surfaces = organ_surfaces(mask, labels)
    content = stl(surfaces) if path.suffix.lower() == ".stl" else glb(surfaces)
    with whole(path) as part:
        part.write_bytes(content)
