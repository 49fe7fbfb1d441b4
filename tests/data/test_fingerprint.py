"""A scan is known again: exactly in any file, and robustly where it was resampled, cropped, windowed or mirrored."""

import base64
import json
import time
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea.data.fingerprint import fingerprint, read_sketch, sketch, sketch_shape
from meddelinea.data.likeness import CHANCE, COPY_LIKENESS, LEAST_MARKS, LEAST_OVERLAP, likeness, likenesses
from meddelinea.io.nifti import write_nifti
from meddelinea.io.volumes import read_volume
from meddelinea.segmentation.model import model_folder
from meddelinea.volume import Volume
from support.changed_copies import TRANSFORMATIONS, cropped, mirrored, random_copy

TRAINING_CASES = model_folder("small") / "training_cases.json"
VALIDATION = ("img0002", "img0022", "img0029", "img0035")


def btcv(data: Path, name: str) -> Volume:
    return read_volume(data / "btcv" / "img" / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def scan(data: Path) -> Volume:
    """A piece of a real abdominal CT."""
    whole = btcv(data, "img0002")
    return Volume(whole.array[100:140, 100:130, 70:80].copy(), whole.affine)


@pytest.fixture(scope="module")
def abdomen(data: Path) -> Volume:
    """The real CT of the abdomen with the fewest slices."""
    return btcv(data, "img0022")


@pytest.fixture(scope="module")
def drawn(abdomen: Volume) -> str:
    return sketch(abdomen)


@pytest.fixture(scope="module")
def volumes(data: Path) -> dict[str, Volume]:
    """All real scans at hand, of as many patients."""
    paths = [*(data / "btcv" / "img").glob("*.nii.gz"), *(data / "chaos_mr" / "img").glob("*.nii.gz")]
    paths += [data / "totalsegmentator" / name for name in ("ct.nii.gz", "mr.nii.gz", "ct_dicom")]
    spec = find_spec("slicerio")
    if spec is not None and spec.origin is not None:
        paths.append(Path(spec.origin).parent / "data" / "CTChest4.nrrd")
    return {path.name.removesuffix(".nii.gz"): read_volume(path) for path in sorted(paths)}


def test_the_fingerprint_is_the_scans_and_not_the_files(scan: Volume, tmp_path: Path) -> None:
    print_ = fingerprint(scan)
    assert len(print_) == 64
    for orientation in ("RAS", "LPS", "SPL", "AIR"):
        assert fingerprint(scan.reorient(orientation)) == print_
    for dtype in (np.int16, np.int32, np.float32, np.float64):
        assert fingerprint(Volume(scan.array.astype(dtype), scan.affine)) == print_
    moved = scan.affine.copy()
    moved[:3, 3] += 5  # where the patient lay on the table is not part of the scan's identity
    assert fingerprint(Volume(scan.array, moved)) == print_
    write_nifti(scan, tmp_path / "scan.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    for name in ("scan.nii.gz", "scan.nrrd"):
        assert fingerprint(read_volume(tmp_path / name)) == print_


def test_other_scans_have_other_fingerprints(scan: Volume) -> None:
    one_voxel = scan.array.copy()
    one_voxel[3, 4, 5] += 1
    others = [
        Volume(one_voxel, scan.affine),
        Volume(scan.array[::-1], scan.affine),
        Volume(scan.array, scan.affine @ np.diag([1, 1, 1.1, 1])),
        Volume(np.roll(scan.array, 1, axis=0), scan.affine),
    ]
    assert len({fingerprint(volume) for volume in (scan, *others)}) == 5


def test_a_sketch_is_a_few_kilobytes_of_signs(abdomen: Volume, drawn: str) -> None:
    voxels = read_sketch(drawn)
    assert len(drawn) < 8000
    assert drawn.isascii()
    assert voxels.shape == sketch_shape(drawn)
    extent_mm = np.array(abdomen.array.shape) * abdomen.spacing_mm
    assert (np.array(voxels.shape) * 10 <= np.sort(extent_mm)[::-1].max() + 10).all()
    assert set(np.unique(voxels)) == {-1, 0, 1}
    for axis in range(3):  # nothing but the box around the marks is kept
        marked = voxels.any(axis=tuple({0, 1, 2} - {axis}))
        assert marked[0]
        assert marked[-1]


def test_a_sketch_shows_where_a_scan_is_bright() -> None:
    """A bright and a dark ball of 20 mm in grainy tissue, after scaling and shifting grey values too."""
    x, y, z = np.meshgrid(*(2.0 * np.arange(60) for _ in range(3)), indexing="ij")
    grey = np.random.default_rng(0).normal(40.0, 10.0, x.shape)
    grey[np.hypot(np.hypot(x - 35, y - 35), z - 35) < 10] = 140
    grey[np.hypot(np.hypot(x - 85, y - 85), z - 85) < 10] = -60
    bright_first = Volume(grey, np.diag([-2.0, -2.0, 2.0, 1.0]))
    voxels = read_sketch(sketch(bright_first))
    near, far = np.array(voxels.shape) // 4, 3 * np.array(voxels.shape) // 4
    assert voxels[tuple(near)] == 1
    assert voxels[tuple(far)] == -1 or voxels[tuple(far)] == 0  # the darkest tissue may pass for air
    scaled = read_sketch(sketch(Volume(3 * grey + 1000, bright_first.affine)))
    assert scaled.shape == voxels.shape
    assert np.mean(scaled == voxels) > 0.999  # a voxel may be weak by a rounding


@pytest.mark.parametrize("steps", list(product((1, -1), repeat=3)))
def test_a_mirrored_scan_has_the_mirrored_sketch(abdomen: Volume, drawn: str, steps: tuple[int, int, int]) -> None:
    axes = [axis for axis in range(3) if steps[axis] < 0]
    small = cropped(abdomen, (129 / 257, 129 / 257, 0.5))  # whole blocks of 3 pixels
    reference = read_sketch(sketch(small))
    flipped = reference[tuple(slice(None, None, step) for step in steps)]
    met = read_sketch(sketch(mirrored(small, *axes)))
    assert met.shape == flipped.shape
    assert np.mean(met == flipped) > 0.999


def test_a_scan_without_structure_is_like_nothing(drawn: str) -> None:
    for array in (np.zeros((30, 30, 30)), np.full((3, 3, 3), 7.0), np.full((20, 20, 20), np.nan)):
        empty = sketch(Volume(array, np.diag([5.0, 5.0, 5.0, 1.0])))
        assert likeness(empty, drawn) == likeness(drawn, empty) == likeness(empty, empty) == 0


def direct_likeness(a: np.ndarray, b: np.ndarray) -> float:
    """`likeness` by its definition, a shift at a time."""
    best = 0.0
    need = max(LEAST_MARKS, LEAST_OVERLAP * min(np.count_nonzero(a), np.count_nonzero(b)))
    for steps in product((1, -1), repeat=3):
        flipped = a[tuple(slice(None, None, step) for step in steps)]
        for shift in product(*(range(-n + 1, m) for n, m in zip(a.shape, b.shape, strict=True))):
            ours = tuple(
                slice(max(0, -s), max(0, min(n, m - s))) for s, n, m in zip(shift, a.shape, b.shape, strict=True)
            )
            theirs = tuple(
                slice(max(0, s), max(0, min(m, n + s))) for s, n, m in zip(shift, a.shape, b.shape, strict=True)
            )
            pairs = flipped[ours].astype(int) * b[theirs]
            count = np.count_nonzero(pairs)
            if count >= need:
                best = max(best, pairs.sum() / count - CHANCE / np.sqrt(count))
    return best


def text_of(voxels: np.ndarray) -> str:
    """A sketch written by its description: five voxels a byte in base 3."""
    digits = [int(v) + 1 for v in voxels.ravel()] + [0] * (-voxels.size % 5)
    packed = bytes(sum(d * 3**p for p, d in enumerate(digits[i : i + 5])) for i in range(0, len(digits), 5))
    return "1:" + "x".join(map(str, voxels.shape)) + ":" + base64.b64encode(zlib.compress(packed)).decode()


def test_likeness_is_the_best_correlation_over_shifts_and_mirrorings() -> None:
    rng = np.random.default_rng(1)
    world = rng.choice([-1, 1, 0], (14, 12, 12), p=[0.45, 0.45, 0.1]).astype(np.int8)
    a, b = world[:11, 1:, :10], world[3:, :10, 2:][::-1, :, ::-1].copy()
    noise = rng.random(b.shape) < 0.2
    b[noise] = rng.integers(-1, 2, int(noise.sum()))
    np.testing.assert_array_equal(read_sketch(text_of(a)), a)
    assert likeness(text_of(a), text_of(b)) == pytest.approx(direct_likeness(a, b), abs=1e-3)
    assert likeness(text_of(a), text_of(b)) > 0.4
    stranger = rng.integers(-1, 2, (9, 10, 9)).astype(np.int8)
    assert likeness(text_of(a), text_of(stranger)) == pytest.approx(direct_likeness(a, stranger), abs=1e-3)


def test_likeness_is_symmetric_and_high_with_itself(data: Path, abdomen: Volume, drawn: str) -> None:
    assert likeness(drawn, drawn) > 0.9
    other = sketch(btcv(data, "img0027"))
    piece = sketch(cropped(abdomen, (0.5, 0.6, 0.4)))
    assert likeness(drawn, other) == pytest.approx(likeness(other, drawn), abs=1e-4)
    assert likeness(drawn, piece) == pytest.approx(likeness(piece, drawn), abs=1e-4)
    many = likenesses(piece, [other, drawn, other], floor=COPY_LIKENESS)
    assert many[1] == pytest.approx(likeness(drawn, piece))
    assert many[0] == many[2] == 0  # below the floor


@pytest.mark.parametrize(
    "damaged", ["", "1:2x2x2", "2:2x2x2:eJw=", "1:0x2x2:eJw=", "1:99999x999x999:eJw=", "1:2x2x2:?"]
)
def test_what_is_no_sketch_is_refused(drawn: str, damaged: str) -> None:
    for text in (damaged, drawn[:-40]):
        with pytest.raises(ValueError, match="sketch"):
            read_sketch(text)


@pytest.mark.parametrize("kind", list(TRANSFORMATIONS))
def test_a_copy_is_known_again(abdomen: Volume, drawn: str, kind: str) -> None:
    assert likeness(sketch(TRANSFORMATIONS[kind](abdomen)), drawn) > COPY_LIKENESS + 0.05


def test_strangers_are_no_copies(data: Path, abdomen: Volume, drawn: str) -> None:
    """The four test cases of BTCV, whole and in pieces, against its 18 training cases and other scans."""
    rest = [case["sketch"] for case in json.loads(TRAINING_CASES.read_text())["train"]]
    paths = [*sorted((data / "chaos_mr" / "img").glob("*_0[1-5].nii.gz")), data / "totalsegmentator" / "ct.nii.gz"]
    rest += [sketch(read_volume(path)) for path in paths]
    assert len(rest) > 20
    for name in VALIDATION:
        volume = abdomen if name == "img0022" else btcv(data, name)
        for text in (sketch(volume), sketch(cropped(volume, (0.5, 0.5, 0.5)))):
            assert likenesses(text, rest, floor=0.0).max() < COPY_LIKENESS - 0.05


def test_the_shipped_sketches_are_those_of_the_training_cases(data: Path) -> None:
    cases = {case["name"]: case for case in json.loads(TRAINING_CASES.read_text())["train"]}
    scan = btcv(data, "img0027")
    assert cases["img0027"]["fingerprint"] == fingerprint(scan)
    assert likeness(cases["img0027"]["sketch"], sketch(scan)) > 0.9


def report(what: str, values: list[tuple[float, str]], worst: Callable[..., tuple[float, str]]) -> None:
    numbers = np.array([value for value, _ in values])
    low, middle, high = np.percentile(numbers, (1, 50, 99))
    print(f"{what}: {len(values)} pairs, 1 % {low:.3f}, median {middle:.3f}, 99 % {high:.3f}, worst {worst(values)}")


@pytest.mark.slow
def test_likeness_separates_copies_from_strangers(volumes: dict[str, Volume]) -> None:
    """The experiment behind `COPY_LIKENESS`; `-s` prints what docs/leaks.md shows."""
    rng = np.random.default_rng(7)
    whole = {name: sketch(volume) for name, volume in volumes.items()}
    names = list(volumes)
    copies, strangers, mixed = [], [], []
    for name in VALIDATION:
        drawn = [(kind, sketch(change(volumes[name]))) for kind, change in TRANSFORMATIONS.items()]
        copies += [(likeness(text, whole[name]), f"{name}, {kind}") for kind, text in drawn]
    report("named copies", copies, min)
    for _ in range(4):
        for name in names:
            if name == "ct_dicom":  # 40 mm long: too little is left of it
                continue
            text = sketch(random_copy(volumes[name], rng))
            mixed.append((likeness(text, whole[name]), name))
            for other in rng.choice([n for n in names if n != name], 4, replace=False):
                strangers.append((likeness(text, whole[str(other)]), f"piece of {name}, {other}"))
    report("random combinations", mixed, min)
    report("random combinations, BTCV", [pair for pair in mixed if pair[1].startswith("img")], min)
    report("pieces and strangers", strangers, max)
    pairs = [(likeness(whole[a], whole[b]), f"{a}, {b}") for i, a in enumerate(names) for b in names[:i]]
    report("whole strangers", pairs, max)
    assert min(copies)[0] > COPY_LIKENESS + 0.05
    assert min(mixed)[0] > COPY_LIKENESS
    assert max(strangers + pairs)[0] < COPY_LIKENESS - 0.03


@pytest.mark.slow
def test_a_scan_is_compared_with_thousands_in_minutes(data: Path) -> None:
    """CPU seconds, which do not depend on what else the machine does; `-s` prints what docs/leaks.md shows."""
    known = [case["sketch"] for case in json.loads(TRAINING_CASES.read_text())["train"]] * 20
    print(f"characters a sketch: mean {np.mean([len(text) for text in known]):.0f}, largest {max(map(len, known))}")
    scan = btcv(data, "img0002")
    for what, query in (("whole scan", scan), ("middle 40 %", cropped(scan, (0.4, 0.4, 0.4)))):
        text = sketch(query)
        likenesses(text, known[:18])
        start = time.process_time()
        likenesses(text, known)
        seconds = (time.process_time() - start) * 8000 / len(known)
        print(f"{what} against 8,000 sketches: {seconds:.0f} CPU s")
        assert seconds < 600
    large = np.tile(scan.array, (2, 2, 3))[:512, :512, :400]
    start = time.process_time()
    sketch(Volume(large, np.diag([0.7, 0.7, 0.9, 1.0])))
    print(f"sketch of 512 x 512 x 400 voxels: {time.process_time() - start:.1f} CPU s")
