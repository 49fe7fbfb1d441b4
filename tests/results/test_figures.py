"""Pictures: the patient's right is at the picture's left, and the PNG shows what the mask holds."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from meddelinea.errors import InputRefusedError
from meddelinea.io.nifti import read_nifti
from meddelinea.labels import BTCV, ORGANS
from meddelinea.results.figures import preview, section, telling_slices
from meddelinea.volume import Volume
from support.scans import as_ct, as_mr

AFFINE = np.diag([1.0, 2.0, 4.0, 1.0])


def corner(orientation: str) -> Volume:
    """A volume in RAS with one bright voxel at the patient's right, front and head, stored as `orientation`."""
    array = np.zeros((6, 5, 4), np.uint8)
    array[5, 4, 3] = 1  # RAS: the last index is furthest right, front and head
    return Volume(array, AFFINE).reorient(orientation)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "SPR", "AIL"])
def test_sections_are_radiological_whatever_the_file_order(orientation: str) -> None:
    volume = corner(orientation).reorient("LAS")
    axial = section(volume, volume, "axial", 3)
    assert axial.letters == "RLPA"
    assert axial.mask[-1, 0] == 1  # top row, first column: front, patient's right
    assert axial.pixel_mm == (1.0, 2.0)
    coronal = section(volume, volume, "coronal", 4)
    assert coronal.letters == "RLFH"
    assert coronal.mask[-1, 0] == 1  # head on top, patient's right at the left
    assert coronal.pixel_mm == (1.0, 4.0)
    sagittal = section(volume, volume, "sagittal", 0)
    assert sagittal.letters == "APFH"
    assert sagittal.mask[-1, 0] == 1  # head on top, front at the left
    assert sagittal.pixel_mm == (2.0, 4.0)


def test_slices_are_chosen_to_show_every_organ() -> None:
    mask = np.zeros((8, 8, 20), np.uint8)
    mask[:, :, 2] = 1
    mask[0:2, 0:2, 2:4] = 1
    mask[0:3, 0:3, 9] = 2  # small, but the only view of it
    mask[:, :, 15] = 3
    assert telling_slices(mask, 2, 3) == [2, 9, 15]
    assert telling_slices(mask, 2, 1)[0] in (2, 9, 15)


def test_an_empty_mask_still_gives_slices() -> None:
    assert telling_slices(np.zeros((4, 4, 12), np.uint8), 2, 3) == [2, 6, 10]


def test_a_preview_paints_the_liver_at_the_left(data: Path, tmp_path: Path) -> None:
    """Pixels in the liver's colour lie left of those in the spleen's in each axial panel, on a real scan."""
    scan = read_nifti(data / "btcv" / "img" / "img0027.nii.gz")
    mask = read_nifti(data / "btcv" / "label" / "label0027.nii.gz").volume
    ids = {name: index for index, name in BTCV.items()}
    labels = {name: ids[name] for name in ("liver", "spleen")}
    preview(scan, mask, labels, tmp_path / "preview.png", "a scan")
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]
    picture = matplotlib.image.imread(tmp_path / "preview.png")[..., :3]
    height, width, _ = picture.shape
    panel = picture[int(0.1 * height) : int(0.48 * height), int(0.35 * width) : int(0.65 * width)]  # middle axial

    def column(name: str) -> float:
        near = np.abs(panel - np.array(ORGANS[name].colour) / 255).max(axis=2) < 0.06  # the outlines
        assert near.sum() > 20
        return float(np.median(np.nonzero(near)[1])) / panel.shape[1]

    assert column("liver") < 0.45
    assert column("spleen") > 0.55


def test_a_thin_scan_without_organs_is_drawn(tmp_path: Path) -> None:
    image = Volume(np.random.default_rng(0).integers(0, 500, (32, 32, 3)).astype(np.int16), AFFINE)
    preview(
        as_mr(image), Volume(np.zeros((32, 32, 3), np.uint8), AFFINE), {"liver": 1}, tmp_path / "p.png", "nothing found"
    )
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    image, mask = (Volume(np.zeros((4, 4, n), np.uint8), AFFINE) for n in (4, 5))
    with pytest.raises(InputRefusedError, match=r"\(4, 4, 5\).*\(4, 4, 4\)"):
        preview(as_ct(image), mask, {}, tmp_path / "p.png", "")
    assert list(tmp_path.iterdir()) == []
