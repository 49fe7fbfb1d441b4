"""NRRD: the space, directions and units of its header decide where voxels lie, or it is refused."""

from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
import slicerio

from meddelinea.io.volumes import read_volume
from meddelinea.volume import Volume
from support.reading import assert_same, from_simpleitk, refusal


def test_a_real_nrrd_is_read_as_simpleitk_reads_it() -> None:
    path = Path(slicerio.__file__).parent / "data" / "CTChest4.nrrd"
    assert_same(read_volume(path), from_simpleitk(sitk.ReadImage(str(path))))


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("scanner-xyz", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_a_nrrds_space_decides_its_directions(
    tmp_path: Path, oblique: Volume, space: str, signs: tuple[int, int, int]
) -> None:
    stored = np.diag([*signs, 1]) @ oblique.affine
    header = {"space": space, "space directions": stored[:3, :3].T, "space origin": stored[:3, 3]}
    nrrd.write(str(tmp_path / "scan.nrrd"), oblique.array, header)
    assert_same(read_volume(tmp_path / "scan.nrrd"), (oblique.array, oblique.affine))


def test_a_nhdr_with_its_data_beside_it_is_read(tmp_path: Path, oblique: Volume) -> None:
    header = {"space": "RAS", "space directions": oblique.affine[:3, :3].T, "space origin": oblique.affine[:3, 3]}
    nrrd.write(str(tmp_path / "scan.nhdr"), oblique.array, header)
    assert_same(read_volume(tmp_path / "scan.nhdr"), (oblique.array, oblique.affine))
    next(tmp_path.glob("*.raw*")).unlink()
    refusal(tmp_path / "scan.nhdr")


@pytest.mark.parametrize(
    ("shape", "header", "said"),
    [
        ((4, 4), {"space dimension": 2, "space directions": np.eye(2)}, "2 dimensions"),
        ((2, 4, 4, 4), {"space": "LPS", "space directions": np.vstack([[np.nan] * 3, np.eye(3)])}, "4 dimensions"),
        ((3, 4, 4), {"space": "LPS", "space directions": np.vstack([[np.nan] * 3, np.eye(3)[:2]])}, "directions"),
        ((4, 4, 4), {"spacings": [1.0, 1.0, 1.0]}, "space none"),
        ((4, 4, 4), {"space": "3D-right-handed", "space directions": np.eye(3)}, "3D-right-handed"),
        ((4, 4, 4), {"space": "LPS"}, "directions"),
        ((4, 4, 4), {"space": "LPS", "space directions": np.eye(3), "space units": ["cm"] * 3}, "cm"),
        ((4, 4, 4), {"space": "LPS", "space directions": np.diag([1, 1, 0])}, "singular"),
    ],
)
def test_a_nrrd_that_is_no_placed_volume_is_refused(
    tmp_path: Path, shape: tuple[int, ...], header: dict[str, object], said: str
) -> None:
    nrrd.write(str(tmp_path / "scan.nrrd"), np.zeros(shape, np.int16), header)
    assert said in refusal(tmp_path / "scan.nrrd")


def written(
    path: Path, volume: Volume, *more: str, voxels: bytes | None = None, changes: dict[str, str] | None = None
) -> Path:
    """A NRRD as another program might write it: `more` lines at the end of the header, `changes` of fields before."""
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    vectors = ["(" + ",".join(repr(float(mm)) for mm in vector) + ")" for vector in lps[:3].T]
    fields = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, volume.shape)),
        "space directions": " ".join(vectors[:3]),
        "endian": "little",
        "encoding": "raw",
        "space origin": vectors[3],
    } | (changes or {})
    lines = ["NRRD0005", *(f"{name}: {value}" for name, value in fields.items()), *more]
    raw = volume.array.astype("<i2").tobytes(order="F") if voxels is None else voxels
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + raw)
    return path


def slices_beside(folder: Path, volume: Volume) -> list[str]:
    """The slices of a volume as files of their own."""
    names = [f"s{k:02d}.raw" for k in range(volume.shape[2])]
    for k, name in enumerate(names):
        (folder / name).write_bytes(volume.array[:, :, k].astype("<i2").tobytes(order="F"))
    return names


def test_a_nhdr_reads_a_list_and_a_pattern_of_files(tmp_path: Path, oblique: Volume) -> None:
    names = slices_beside(tmp_path, oblique)
    for number, data in enumerate(("LIST\n" + "\n".join(names), "LIST 2\n" + "\n".join(names), "s%02d.raw 0 7 1")):
        path = written(tmp_path / f"{number}.nhdr", oblique, f"data file: {data}", voxels=b"")
        assert_same(read_volume(path), (oblique.array, oblique.affine))
    backwards = written(tmp_path / "back.nhdr", oblique, "data file: s%02d.raw 7 0 -1", voxels=b"")
    np.testing.assert_array_equal(read_volume(backwards).array, oblique.array[:, :, ::-1])


@pytest.mark.parametrize("axis", [0, 3])
def test_an_axis_of_one_that_is_none_of_space_is_left_out(tmp_path: Path, oblique: Volume, axis: int) -> None:
    sizes = np.insert(oblique.shape, axis, 1)
    directions = np.insert(oblique.affine[:3, :3].T, axis, np.nan, axis=0)
    header = {"space": "RAS", "space directions": directions, "space origin": oblique.affine[:3, 3]}
    nrrd.write(str(tmp_path / "scan.nrrd"), oblique.array.reshape(sizes), header)
    assert_same(read_volume(tmp_path / "scan.nrrd"), (oblique.array, oblique.affine))


def test_numbers_that_are_written_out_are_read(tmp_path: Path, oblique: Volume) -> None:
    text = "\n".join(map(str, oblique.array.ravel(order="F"))).encode()
    for encoding in ("ascii", "TEXT"):
        path = written(tmp_path / "scan.nrrd", oblique, voxels=text, changes={"encoding": encoding})
        assert_same(read_volume(path), (oblique.array, oblique.affine))
    for wrong in (text[:-9], text + b" 1", text.replace(b"1", b"x", 1), text.replace(b" ", b".5 ", 1) + b".5"):
        refusal(written(tmp_path / "scan.nrrd", oblique, voxels=wrong, changes={"encoding": "ascii"}))


RAW = (6 * 7 * 8) * 2


@pytest.mark.parametrize(
    ("more", "changes", "said"),
    [
        (("ENCODING: gzip",), {}, "'encoding' twice"),
        (("Sizes: 6 7 9",), {}, "'sizes' twice"),
        (("datafile: a.raw", "data file: b.raw"), {}, "'data file' twice"),
        (("Space  Origin: (0,0,0)",), {}, "'space origin' twice"),
        (("key:=1", "key:=2"), {}, "'key' twice"),
        ((), {"sizes": "6 7 7"}, f"holds {RAW} bytes of voxels; expected {2 * 6 * 7 * 7}"),
        ((), {"sizes": "6 7 9"}, f"holds {RAW} bytes of voxels; expected {2 * 6 * 7 * 9}"),
        ((), {"sizes": "6 7.5 8"}, "not a readable NRRD"),
        ((), {"sizes": "6 7 -8"}, "sizes 6 7 -8"),
        ((), {"sizes": "6 7 0"}, "sizes 6 7 0"),
        ((), {"dimension": "4"}, "as many"),
        ((), {"sizes": "99999999 99999999 99999999"}, "expected"),
        ((), {"type": "block"}, "'block'"),
        ((), {"type": "float"}, "expected 1344"),
        ((), {"encoding": "hex"}, "'hex'"),
        ((), {"encoding": "gzip"}, "not a readable NRRD"),
        ((), {"encoding": "bzip2"}, "not a readable NRRD"),
        ((), {"endian": "middle"}, "endian middle"),
        ((), {"space origin": "(1e12,0,0)"}, "1e+12"),
        ((), {"space origin": "(0,0)"}, "not a readable NRRD"),
        ((), {"space directions": "(1e-30,0,0) (0,1,0) (0,0,1)"}, "singular"),
        ((), {"space directions": "(1,0,0) (0,1,0) (0,0,nan)"}, "directions"),
        (("byte skip: -1", "encodings: x", "no colon here"), {}, "'no colon here'"),
        (("byte skip: -2",), {}, "byte skip -2"),
        (("line skip: -1",), {}, "line skip -1"),
        (("byte skip: 99999999999",), {}, "holds 0 bytes"),
        (("data file: ../outside.raw",), {}, "outside its own folder"),
        (("data file: /etc/hostname",), {}, "outside its own folder"),
        (("data file: linked.raw",), {}, "outside its own folder"),
        (("data file: missing.raw",), {}, "no file here"),
        (("data file: .",), {}, "no file here"),
        (("data file: LIST",), {}, "no data file"),
        (("data file: LIST\nmissing.raw\nb.raw",), {}, "missing.raw"),
        (("data file: LIST\n../outside.raw",), {}, "outside its own folder"),
        (("data file: %d%d.raw 0 7 1",), {}, "a pattern"),
        (("data file: s%02d.raw 0 7 0",), {}, "a pattern"),
        (("data file: s%02d.raw 7 0 1",), {}, "a pattern"),
        (("data file: s%02d.raw 0 99999999 1",), {}, "a pattern"),
        (("data file: s%02d.raw 0 4 1",), {}, "5 data files"),
        (("data file: s%999999999d.raw 0 7 1",), {}, "a pattern"),
    ],
)
def test_a_header_that_contradicts_itself_or_its_data_is_refused(
    tmp_path: Path, oblique: Volume, more: tuple[str, ...], changes: dict[str, str], said: str
) -> None:
    (tmp_path / "outside.raw").write_bytes(oblique.array.tobytes(order="F"))
    (tmp_path / "in").mkdir()
    slices_beside(tmp_path / "in", oblique)
    (tmp_path / "in" / "linked.raw").symlink_to(tmp_path / "outside.raw")
    assert said in refusal(written(tmp_path / "in" / "scan.nrrd", oblique, *more, changes=changes))


def test_a_key_of_the_name_of_a_field_is_none(tmp_path: Path, oblique: Volume) -> None:
    path = written(tmp_path / "scan.nrrd", oblique, "encoding:=gzip", "Sizes:=1 1 1", "a key: with colons:=in it")
    assert_same(read_volume(path), (oblique.array, oblique.affine))
