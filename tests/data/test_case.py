"""What is wrong with a case: its masks on another grid, or labels without a meaning."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meddelinea.data.annotation import LabelMap, OrganMasks
from meddelinea.data.case import Case, read_case
from meddelinea.errors import InputRefusedError
from meddelinea.io.volumes import write_volume
from meddelinea.volume import Volume
from support.dataset_folders import Subject, check, put


@pytest.fixture
def pair(ct: Subject, tmp_path: Path) -> tuple[Path, Path]:
    return put(ct.scan, tmp_path / "ct.nii.gz"), put(ct.mask("liver"), tmp_path / "liver.nii.gz")


def as_cases(image: Path, mask: Path) -> tuple[Case, Case]:
    """The same files as ids and as the mask of one organ."""
    labels = LabelMap.numbered(mask, {1: "liver"}), OrganMasks({"liver": mask})
    return Case(name="a", dataset="x", patient="p", image=image, labels=labels[0], modality="CT"), Case(
        name="b", dataset="x", patient="p", image=image, labels=labels[1], modality="CT"
    )


def test_masks_on_another_grid_are_refused(ct: Subject, pair: tuple[Path, Path]) -> None:
    image, path = pair
    mask = ct.mask("liver")
    rounded = mask.affine + np.array([[0, 0, 0, 0.3], [0, 0, 0, -0.3], [0, 0, 0, 0], [0, 0, 0, 0]])
    write_volume(Volume(mask.array, rounded), path)
    for case in as_cases(image, path):
        check(case, ct, ("liver",))
    turned = mask.affine.copy()
    turned[:3, :3] = turned[:3, :3] @ nib.eulerangles.euler2mat(z=0.02)
    for array, affine, reason in (
        (mask.array[:, :, 1:], mask.affine, r"shape \(61, 51, 55\), but \(61, 51, 56\) of .*ct.nii.gz"),
        (mask.array, mask.affine @ np.diag([-1, -1, 1, 1]), "the affine differs from that of .*ct.nii.gz by up to"),
        (mask.array, turned, "the affine differs"),
    ):
        write_volume(Volume(array, affine), path)
        for case in as_cases(image, path):
            with pytest.raises(InputRefusedError, match=rf"liver\.nii\.gz: {reason}"):
                read_case(case, ("liver",))


@pytest.mark.parametrize(
    ("values", "as_ids", "as_mask"),
    [
        ({1: 2}, r"label ids \[2\] have no name", None),
        ({1: 255}, r"label ids \[255\] have no name", None),
        ({1: 0.9999}, None, None),
        ({1: 0.5}, "0.5 is no label id", "0.5 is no label id"),
        ({1: np.nan}, "nan is no label id", "nan is no label id"),
        ({1: 1, 0: 3}, r"label ids \[3\] have no name", "values 1, 3 besides 0; expected the binary mask"),
        ({1: -1}, r"label ids \[-1\] have no name", None),
    ],
)
def test_labels_without_a_meaning_are_refused(
    ct: Subject, pair: tuple[Path, Path], values: dict[int, float], as_ids: str | None, as_mask: str | None
) -> None:
    image, path = pair
    array = np.zeros(ct.scan.array.shape, np.float32)
    for inside, value in values.items():
        array[ct.organs["liver"] if inside else ct.organs["spleen"]] = value
    write_volume(Volume(array, ct.scan.affine), path)
    for case, reason in zip(as_cases(image, path), (as_ids, as_mask), strict=True):
        if reason is None:
            check(case, ct, ("liver",))
        else:
            with pytest.raises(InputRefusedError, match=rf"liver\.nii\.gz: {reason}"):
                read_case(case, ("liver",))
