"""What the page's brush does to a mask, run by Node.js on the page's own module."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import meddelinea.serving

MODULE = Path(meddelinea.serving.__file__).parent / "static" / "painting.js"
#: Voxels along the patient's right, front and head, and their spacing. Stored with the last axis first, the first one
#: turned round.
DIMS, SPACING = (40, 50, 12), (1.0, 2.0, 3.0)
PRELUDE = f"""
import {{ Painting }} from {json.dumps(MODULE.as_uri())};
const dims = {list(DIMS)}, spacing = {list(SPACING)};
const strides = [-dims[2] * dims[1], dims[2], 1], offset = (dims[0] - 1) * dims[1] * dims[2];
const volume = {{ data: new Uint8Array(dims[0] * dims[1] * dims[2]), dims, spacing, strides, offset }};
const painting = new Painting(volume);
const stroke = (plane, place, brush) => {{ painting.begin(); painting.dab(plane, place, brush); painting.end(); }};
const brush = {{ id: 3, erase: false, radius: 6, keep: true }};
const told = [];
const tell = (value) => told.push(value);
const shown = () => [...volume.data];
"""


def run(script: str) -> list[Any]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is absent: apt-get install nodejs")
    command = [node, "--input-type=module", "--eval", f"{PRELUDE}{script}\nconsole.log(JSON.stringify(told));"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    told: list[Any] = json.loads(done.stdout)
    return told


def ids(stored: list[int]) -> np.ndarray:
    """(right, front, head) of voxels as they are stored."""
    return np.array(stored, np.uint8).reshape(DIMS)[::-1]


def disc(plane: str, place: tuple[int, int, int], radius: float) -> np.ndarray:
    through = {"axial": 2, "coronal": 1, "sagittal": 0}[plane]
    away = [(axis - at) * mm for axis, at, mm in zip(np.indices(DIMS), place, SPACING, strict=True)]
    return (sum(each**2 for each in away) <= radius**2) & (away[through] == 0)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("place", [(20, 25, 6), (0, 49, 11), (38, 1, 0)])
@pytest.mark.parametrize("radius", [0.4, 6.0, 11.5])
def test_a_dab_is_a_disc_in_millimetres(plane: str, place: tuple[int, int, int], radius: float) -> None:
    (stored,) = run(f'stroke("{plane}", {list(place)}, {{ ...brush, radius: {radius} }}); tell(shown());')
    assert np.array_equal(ids(stored) == 3, disc(plane, place, radius))


def test_strokes_are_taken_back_and_done_again() -> None:
    script = """
        stroke("axial", [20, 25, 6], brush); const first = shown();
        stroke("coronal", [20, 25, 6], { ...brush, id: 5, keep: false }); const second = shown();
        painting.undo(); tell(String(shown()) === String(first));
        painting.redo(); tell(String(shown()) === String(second));
        painting.undo(); painting.undo(); tell(Math.max(...shown())); tell(painting.changes()); tell(painting.canUndo);
        painting.redo(); stroke("axial", [5, 5, 5], brush); tell(painting.canRedo);
    """
    assert run(script) == [True, True, 0, [], False, False]


def test_other_organs_stay_if_they_are_to_and_the_eraser_takes_its_own_alone() -> None:
    script = """
        stroke("axial", [20, 25, 6], brush);
        stroke("axial", [24, 25, 6], { ...brush, id: 5 }); tell(shown());
        stroke("axial", [22, 25, 6], { ...brush, id: 5, erase: true }); tell(shown());
        stroke("axial", [24, 25, 6], { ...brush, id: 7, keep: false }); tell(shown());
        tell(painting.changes());
    """
    kept, erased, over, changes = run(script)
    first, second, between = (disc("axial", (x, 25, 6), 6) for x in (20, 24, 22))
    assert np.array_equal(ids(kept) == 3, first)
    assert np.array_equal(ids(kept) == 5, second & ~first)
    assert np.array_equal(ids(erased) == 3, first)
    assert np.array_equal(ids(erased) == 5, second & ~first & ~between)
    assert np.array_equal(ids(over) == 7, second)
    voxels = {entry["id"]: (entry["added"], entry["removed"]) for entry in changes}
    assert voxels == {3: (int((first & ~second).sum()), 0), 7: (int(second.sum()), 0)}


def test_between_two_slices_an_organ_gets_a_shape_between_theirs() -> None:
    script = """
        volume.data.fill(3, volume.offset + 5 * strides[0] + 5, volume.offset + 5 * strides[0] + 6); // goes
        stroke("axial", [20, 25, 2], { ...brush, radius: 8 }); stroke("axial", [20, 25, 10], { ...brush, radius: 16 });
        tell(painting.fillBetween("axial", 3, true)); tell(shown());
        painting.undo(); tell(shown());
        tell(painting.fillBetween("sagittal", 3, true));
    """
    filled, stored, before, none = run(script)
    assert (filled, none) == (7, 0)
    mask = ids(stored) == 3
    assert np.array_equal(mask[:, :, 2], disc("axial", (20, 25, 2), 8)[:, :, 2])
    for slice_, radius in ((4, 10), (6, 12), (8, 14)):  # distances to concentric circles have their mean between them
        assert mask[:, :, slice_].sum() * 2.0 == pytest.approx(np.pi * radius**2, rel=0.12)
    assert not mask[5, 0, 5]
    assert not (ids(before) == 3)[:, :, 6].any()
