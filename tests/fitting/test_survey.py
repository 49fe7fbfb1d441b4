"""What is found out about a dataset: against numbers that are known of made-up scans, in any orientation."""

import json
from pathlib import Path

import numpy as np
import pytest

from meddelinea.data.datasets import find_cases
from meddelinea.errors import InputRefusedError
from meddelinea.fitting.survey import layout_of, survey
from meddelinea.io.volumes import write_volume
from meddelinea.volume import Volume
from support.surveys import write_crops


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """One MR of 10 x 12 x 8 voxels of 2 x 2 x 3 mm, in which a brick of 4 x 3 x 2 voxels is an organ."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])  # RAS: voxels run to the right, to the front, to the head
    mask = np.zeros((10, 12, 8), np.uint8)
    mask[1:5, 2:5, 3:5] = 7
    grey = np.where(mask > 0, 500.0, 100.0 + np.arange(8)).astype(np.float32)
    for orientation in ("RAS", "LPI"):
        root = tmp_path / orientation
        for folder, array in (("images", grey), ("labels", mask)):
            (root / folder).mkdir(parents=True)
            write_volume(Volume(array, affine).reorient(orientation), root / folder / "a.nii.gz")
        (root / "labels.json").write_text(json.dumps({"modality": "MR", "labels": {"brick": 7, "nothing": 8}}))
    return tmp_path


@pytest.mark.parametrize("orientation", ["RAS", "LPI"])
def test_a_brick_has_its_volume_surface_place_and_grey_values(block: Path, orientation: str) -> None:
    seen = survey("pairs", block / orientation)
    assert seen.organs == ("brick", "nothing")
    (case,) = seen.cases
    assert case.shape == (10, 12, 8)
    assert case.spacing_mm == pytest.approx((2.0, 2.0, 3.0))
    assert case.field_mm == pytest.approx((18.0, 22.0, 21.0))
    assert case.shown == 2
    assert set(case.organs) == {"brick"}
    brick = case.organs["brick"]
    assert brick.ml == pytest.approx(4 * 3 * 2 * 12 / 1000)
    assert brick.surface_mm2 == pytest.approx(2 * (8 * 6 + 8 * 6 + 6 * 6))
    # Its middle voxel is (2.5, 3, 3.5), that of the field (4.5, 5.5, 3.5): 2 to the left, 2.5 to the back.
    assert brick.centre_mm == pytest.approx((4.0, 5.0, 0.0))
    assert brick.slices == 2
    assert brick.grey == pytest.approx((500.0, 500.0, 500.0))


def test_a_case_that_cannot_be_read_is_broken_and_the_others_are_seen(tmp_path: Path) -> None:
    root = write_crops(tmp_path / "crops", count=3)
    mask = np.zeros((20, 26, 12), np.uint8)
    mask[4, 4, 4] = 9
    write_volume(Volume(mask, np.eye(4)), root / "labels" / "crop1.nii.gz")
    (root / "images" / "crop2.nii.gz").unlink()
    seen = survey("pairs", root)
    assert [case.name for case in seen.cases] == ["crop0"]
    assert set(seen.broken) == {"crop1", "crop2"}
    assert "[9]" in seen.broken["crop1"]
    assert "image" in seen.broken["crop2"]


def test_a_scan_that_fills_its_field_has_a_body_as_large(tmp_path: Path) -> None:
    (case,) = survey("pairs", write_crops(tmp_path / "crops", count=1)).cases
    assert min(np.divide(case.body_mm, case.field_mm[:2])) > 0.8


def test_the_layout_of_a_folder_is_found_out(tmp_path: Path, data: Path) -> None:
    crops = write_crops(tmp_path / "crops", count=1)
    assert layout_of(crops) == "pairs"
    for folder, layout in (("btcv", "btcv"), ("chaos_mr", "chaos-nifti"), ("msd_hippocampus", "msd")):
        assert layout_of(data / folder) == layout
    nnunet = tmp_path / "Dataset001"
    (nnunet / "imagesTr").mkdir(parents=True)
    (crops / "images" / "crop0.nii.gz").rename(nnunet / "imagesTr" / "crop0_0000.nii.gz")
    (crops / "labels").rename(nnunet / "labelsTr")
    described = {"channel_names": {"0": "MRI"}, "labels": {"front": 1, "behind": 2}, "file_ending": ".nii.gz"}
    (nnunet / "dataset.json").write_text(json.dumps(described))
    assert layout_of(nnunet) == "nnunet"
    assert [case.name for case in find_cases("nnunet", nnunet).cases] == ["crop0"]
    with pytest.raises(InputRefusedError, match="no dataset in a known layout"):
        layout_of(tmp_path / "nowhere")
