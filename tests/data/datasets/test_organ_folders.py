"""A folder a case and a file an organ: AbdomenAtlas and TotalSegmentator."""

from pathlib import Path

import numpy as np
import pytest

from meddelinea.data.case import read_case
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.errors import InputRefusedError
from meddelinea.labels import ABDOMENATLAS_1_1
from meddelinea.scan import Modality
from support.dataset_folders import ATLAS_FILES, ATLAS_IDS, TOTALSEGMENTATOR, Subject, check, known, put, put_atlas_case


@pytest.mark.parametrize("below", ["", "AbdomenAtlas1.0Mini"])
def test_abdomenatlas_by_its_organ_files(ct: Subject, tmp_path: Path, below: str) -> None:
    for number in (7, 1):
        put_atlas_case(tmp_path / below / f"BDMAP_0000000{number}", ct)
    found = find_cases("abdomenatlas", tmp_path)
    assert known(found) == {name: (name, "CT") for name in ("BDMAP_00000001", "BDMAP_00000007")}
    assert found.broken == {}
    assert organs_of(found.cases) == tuple(ATLAS_FILES)
    assert check(found.cases[0], ct, tuple(ATLAS_FILES)) == ()
    assert read_case(found.cases[0], ("liver", "colon", "rectum")).remarks == (
        "no labels of colon, rectum: background here",
    )


def test_abdomenatlas_by_its_combined_file(ct: Subject, tmp_path: Path) -> None:
    put_atlas_case(tmp_path / "AbdomenAtlas1.1Mini" / "BDMAP_00000001", ct, masks=False)
    found = find_cases("abdomenatlas", tmp_path)
    assert organs_of(found.cases) == tuple(ABDOMENATLAS_1_1.values())
    check(found.cases[0], ct, tuple(ATLAS_IDS))
    (tmp_path / "AbdomenAtlas1.1Mini").rename(tmp_path / "AbdomenAtlas1.0Mini")
    found = find_cases("abdomenatlas", tmp_path / "AbdomenAtlas1.0Mini")
    assert organs_of(found.cases) == tuple(ATLAS_FILES)
    with pytest.raises(InputRefusedError, match=r"combined_labels.*label ids \[10, 11, 12, .*have no name"):
        read_case(found.cases[0], ("liver",))


def test_abdomenatlas_without_image_or_masks_is_broken(ct: Subject, tmp_path: Path) -> None:
    put_atlas_case(tmp_path / "BDMAP_00000001", ct)
    put_atlas_case(tmp_path / "BDMAP_00000002", ct)
    put_atlas_case(tmp_path / "BDMAP_00000003", ct, masks=False, combined=False)
    (tmp_path / "BDMAP_00000002" / "ct.nii.gz").unlink()
    put(ct.mask("liver"), tmp_path / "BDMAP_00000001" / "segmentations" / "Liver.nii.gz")
    found = find_cases("abdomenatlas", tmp_path)
    assert found.cases == ()
    reasons = ("two masks of the liver", "no ct.nii.gz", "no segmentations")
    for (name, reason), expected in zip(found.broken.items(), reasons, strict=True):
        assert name in reason
        assert expected in reason


def test_overlaps_go_to_the_smaller_organ_and_are_counted(ct: Subject, tmp_path: Path) -> None:
    grown = {organ: mask.copy() for organ, mask in ct.organs.items()}
    grown["pancreas"] |= np.roll(grown["pancreas"], 2, axis=0)
    grown["aorta"][:, :, 20:] |= np.roll(grown["aorta"], 3, axis=1)[:, :, 20:]
    subject = Subject(ct.scan, grown)
    put_atlas_case(tmp_path / "BDMAP_00000001", subject, combined=False)
    case = find_cases("abdomenatlas", tmp_path).cases[0]
    order = sorted(ATLAS_FILES, key=lambda organ: -int(grown[organ].sum()))
    for organs in (tuple(ATLAS_FILES), tuple(ATLAS_FILES)[::-1]):
        expected = np.zeros(ct.scan.array.shape, np.uint8)
        for organ in order:  # painted from the largest to the smallest
            expected[grown[organ]] = organs.index(organ) + 1
        read = read_case(case, organs)
        np.testing.assert_array_equal(read.mask.array, expected)
        remarked = 0
        for remark in read.remarks:
            first, second = remark.split(" overlap")[0].split(" and ")
            both = grown[first] & grown[second]
            assert f"overlap in {both.sum()} voxels" in remark
            assert remark.endswith(min(first, second, key=lambda organ: grown[organ].sum()))
            remarked += int(both.sum())
        assert remarked == sum(grown[organ] for organ in organs).astype(int).clip(1).sum() - ct.scan.array.size > 0


@pytest.mark.parametrize(("image", "modality"), [("ct", "CT"), ("mri", "MR")])
def test_totalsegmentator(ct: Subject, tmp_path: Path, image: str, modality: Modality) -> None:
    folder = tmp_path / "Totalsegmentator_dataset" / "s0011"
    put(ct.scan, folder / f"{image}.nii.gz")
    for name, organ in TOTALSEGMENTATOR.items():
        put(ct.mask(organ), folder / "segmentations" / f"{name}.nii.gz")
    (folder / "segmentations" / "._liver.nii.gz").write_bytes(b"Mac OS X")
    (tmp_path / "Totalsegmentator_dataset" / "s0012" / "segmentations").mkdir(parents=True)
    found = find_cases("totalsegmentator", tmp_path)
    assert known(found) == {"s0011": ("s0011", modality)}
    assert list(found.broken) == ["s0012"]
    assert organs_of(found.cases) == tuple(TOTALSEGMENTATOR.values())
    check(found.cases[0], ct, tuple(TOTALSEGMENTATOR.values()))
