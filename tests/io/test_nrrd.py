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
