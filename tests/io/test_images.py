"""Images that other libraries hold in memory are the same scan as their file."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)
import torch

from meddelinea.errors import InputRefusedError
from meddelinea.io.images import from_image
from meddelinea.io.volumes import write_volume
from meddelinea.volume import Volume
from support.reading import assert_same


def test_a_simpleitk_image_lies_where_its_file_does(tmp_path: Path, oblique: Volume) -> None:
    write_volume(oblique, tmp_path / "scan.nii")
    image = sitk.ReadImage(str(tmp_path / "scan.nii"))
    for given in (image, sitk.JoinSeries(image), sitk.Cast(image, sitk.sitkFloat64)):
        scan = from_image(given)
        assert_same(scan.volume, (oblique.array, oblique.affine))
        assert scan.volume.array.dtype in (np.int16, np.float32)
    for wrong in (sitk.Image(4, 4, sitk.sitkInt16), sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3)):
        with pytest.raises(InputRefusedError, match="expected one"):
            from_image(wrong)
    with pytest.raises(InputRefusedError, match="expected one grey value"):
        from_image(sitk.Image([4, 4, 4], sitk.sitkComplexFloat32))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.MGHImage])
def test_every_kind_of_nibabel_image_is_a_scan(oblique: Volume, kind: type) -> None:
    scan = from_image(kind(oblique.array, oblique.affine))
    assert_same(scan.volume, (oblique.array, oblique.affine))
    assert scan.findings == ()


@pytest.mark.parametrize("kind", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage])
def test_an_analyze_image_is_a_scan_with_a_remark(oblique: Volume, kind: type) -> None:
    affine = np.diag([-0.7, 0.9, 3.0, 1.0])
    scan = from_image(kind(oblique.array, affine))
    assert_same(scan.volume, (oblique.array, affine))
    assert [finding.code for finding in scan.findings] == ["no_geometry"]


def test_an_mgh_image_that_states_no_directions_has_a_remark(oblique: Volume) -> None:
    image = nib.MGHImage(oblique.array, oblique.affine)
    image.header["goodRASFlag"] = 0
    assert [finding.code for finding in from_image(image).findings] == ["no_geometry"]


@pytest.mark.parametrize("given", [np.zeros((4, 4, 4)), torch.zeros(4, 4, 4), [[[1]]], b"scan.nii.gz", None, 3])
def test_what_does_not_say_where_it_lies_is_refused_with_the_way_to_say_it(given: object) -> None:
    with pytest.raises(TypeError, match=r"does not say where its voxels lie; expected .*Volume\(array, affine\)"):
        from_image(given)


def test_a_volume_is_of_arrays() -> None:
    with pytest.raises(TypeError, match="the array is a Tensor; expected a numpy array"):
        Volume(torch.zeros(4, 4, 4), np.eye(4))
    with pytest.raises(TypeError, match="the affine is a list; expected a numpy array"):
        Volume(np.zeros((4, 4, 4)), np.eye(4).tolist())
