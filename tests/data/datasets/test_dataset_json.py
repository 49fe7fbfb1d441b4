"""Datasets that describe themselves in a dataset.json: AMOS, the Decathlon and nnU-Net."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meddelinea.data.annotation import LabelMap
from meddelinea.data.case import read_case
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.errors import InputRefusedError
from meddelinea.labels import AMOS
from meddelinea.scan import Modality
from support.dataset_folders import Subject, check, describe, known, put, put_pair

AMOS_NAMES = {
    "background": 0,
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gall bladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "arota": 8,
    "postcava": 9,
    "pancreas": 10,
    "right adrenal gland": 11,
    "left adrenal gland": 12,
    "duodenum": 13,
    "bladder": 14,
    "prostate/uterus": 15,
}
AMOS_IDS = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior vena cava": 9,
    "pancreas": 10,
    "duodenum": 13,
    "urinary bladder": 14,
}


@pytest.mark.parametrize("below", ["", "amos22"])
def test_amos(ct: Subject, tmp_path: Path, below: str) -> None:
    root = tmp_path / below
    for folder, number in (("Tr", 1), ("Tr", 500), ("Tr", 507), ("Va", 4), ("Va", 600), ("Tr", 7001)):
        name = f"amos_{number:04d}.nii.gz"
        put_pair(root, f"images{folder}/{name}", f"labels{folder}/{name}", ct, AMOS_IDS)
    put(ct.scan, root / "imagesTs" / "amos_0002.nii.gz")
    put(ct.scan, root / "imagesVa" / "amos_0005.nii.gz")
    (root / "labelsTr" / "._amos_0001.nii.gz").write_bytes(b"Mac OS X")
    found = find_cases("amos", tmp_path)
    assert known(found) == {
        "amos_0001": ("1", "CT"),
        "amos_0004": ("4", "CT"),
        "amos_0500": ("500", "CT"),
        "amos_0507": ("507", "MR"),
        "amos_0600": ("600", "MR"),
    }
    assert list(found.broken) == ["amos_0005", "amos_7001"]
    assert "amos_0005.nii.gz is missing" in found.broken["amos_0005"]
    assert "CT or MRI" in found.broken["amos_7001"]
    assert organs_of(found.cases) == tuple(AMOS.values())
    check(found.cases[0], ct, tuple(AMOS_IDS))

    (tmp_path / "labeled_data_meta_0000_0599.csv").write_text(
        "amos_id,Manufacturer,Modality\n7001,Siemens,MRI\n507,Philips,CT\n1,GE,\n"
    )
    published = {str(index): name for name, index in AMOS_NAMES.items()}
    listed = [{"image": "./imagesTr/amos_0500.nii.gz", "modality": "MR"}, {"image": "./imagesTr/amos_0001.nii.gz"}]
    describe(root, labels=published, modality={"0": "CT"}, training=listed)
    found = find_cases("amos", tmp_path)
    assert {name: modality for name, (_, modality) in known(found).items()} == {
        "amos_0001": "CT",
        "amos_0004": "CT",
        "amos_0500": "MR",
        "amos_0507": "CT",
        "amos_0600": "MR",
        "amos_7001": "MR",
    }
    assert organs_of(found.cases) == tuple(AMOS.values())
    check(found.cases[0], ct, tuple(AMOS_IDS))


@pytest.mark.parametrize(
    ("entries", "modality"),
    [
        ({"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "cancer"}}, "CT"),
        ({"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "cancer"}}, "MR"),
        ({"modality": {"0": "T2"}, "labels": {"background": 0, "cancer": 2, "liver": 1}}, "MR"),
    ],
)
def test_msd(ct: Subject, tmp_path: Path, entries: dict[str, object], modality: Modality) -> None:
    subject = Subject(ct.scan, {**ct.organs, "cancer": ct.organs["gallbladder"]})
    put_pair(tmp_path, "imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz", subject, {"liver": 1, "cancer": 2})
    put(ct.scan, tmp_path / "imagesTr" / "liver_1.nii.gz")
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder / "._liver_0.nii.gz").write_bytes(b"Mac OS X")
    listed = [{"image": f"./imagesTr/liver_{number}.nii.gz"} for number in (0, 1, 2)]
    describe(tmp_path, training=listed, **entries)
    found = find_cases("msd", tmp_path)
    assert known(found) == {"liver_0": ("liver_0", modality)}
    assert {name: reason.split("; ")[0].rpartition(" ")[2] for name, reason in found.broken.items()} == {
        "liver_1": "missing",
        "liver_2": "there",
    }
    assert set(organs_of(found.cases)) == {"liver", "cancer"}
    check(found.cases[0], subject, ("liver", "cancer"))


def test_images_of_several_channels_are_broken(ct: Subject, tmp_path: Path) -> None:
    put_pair(tmp_path, "imagesTr/prostate_00.nii.gz", "labelsTr/prostate_00.nii.gz", ct, {"liver": 1})
    put_pair(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", ct, {"liver": 1})
    describe(tmp_path, modality={"0": "T2", "1": "ADC"}, labels={"0": "background", "1": "liver"})
    found = find_cases("msd", tmp_path)
    assert found.cases == ()
    assert "2 channels (T2, ADC); expected one" in found.broken["prostate_00"]
    assert "2 channels (T2, ADC); expected one" in find_cases("nnunet", tmp_path).broken["a"]
    # One that hides its second channel in the file alone is found out when it is read.
    describe(tmp_path, modality={"0": "T2"}, labels={"0": "background", "1": "liver"})
    nib.save(
        nib.Nifti1Image(np.zeros((*ct.scan.array.shape, 2), np.int16), ct.scan.affine),
        tmp_path / "imagesTr" / "prostate_00.nii.gz",
    )
    with pytest.raises(InputRefusedError, match="expected one 3D volume"):
        read_case(next(c for c in find_cases("msd", tmp_path).cases if c.name == "prostate_00"), ("liver",))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_nnunet(ct: Subject, tmp_path: Path, ending: str) -> None:
    root = tmp_path / "Dataset219_AMOS2022"
    put_pair(root, f"imagesTr/amos_0001_0000{ending}", f"labelsTr/amos_0001{ending}", ct, AMOS_IDS)
    describe(root, labels=AMOS_NAMES, channel_names={"0": "CT"}, file_ending=ending, numTraining=1)
    for source in (root, tmp_path):
        found = find_cases("nnunet", source)
        assert known(found) == {"amos_0001": ("amos_0001", "CT")}
        assert organs_of(found.cases) == tuple(AMOS.values())
        check(found.cases[0], ct, tuple(AMOS_IDS))


def test_nnunet_regions_may_contain_each_other(ct: Subject, tmp_path: Path) -> None:
    put_pair(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", ct, {"liver": 1, "spleen": 2, "gallbladder": 3})
    labels = {"background": 0, "all": [1, 2, 3], "two": [2, 3], "gall_bladder": 3}
    describe(tmp_path, labels=labels, channel_names={"0": "t1gd"})
    case = find_cases("nnunet", tmp_path).cases[0]
    assert case.modality == "MR"
    assert case.labels.organs == ("all", "two", "gallbladder")
    liver, spleen, gallbladder = (ct.organs[organ] for organ in ("liver", "spleen", "gallbladder"))
    for organs, expected in (
        (("all", "two", "gallbladder"), (liver, spleen, gallbladder)),
        (("gallbladder", "all"), (gallbladder, liver | spleen)),
        (("two", "all"), (spleen | gallbladder, liver)),
        (("all",), (liver | spleen | gallbladder,)),
        (("two",), (spleen | gallbladder,)),
    ):
        mask = read_case(case, organs).mask.array
        for index, region in enumerate(expected, start=1):
            np.testing.assert_array_equal(mask == index, region)
    assert isinstance(case.labels, LabelMap)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({}, "no label names"),
        ({"labels": []}, "no label names"),
        ({"labels": {"liver": "one"}}, "label 'liver' is 'one'"),
        ({"labels": {"1": ["liver"]}}, r"label \['liver'\] is 1"),
        ({"labels": {"liver": -1}}, "label 'liver' is -1"),
        ({"labels": {"liver": 1, "ignore": 2}}, "without annotation"),
        ({"labels": {"liver": 1}}, "no channels"),
        ({"labels": {"liver": 1}, "channel_names": {"0": "PET"}}, "channel 'PET'; expected CT"),
        ({"labels": {"liver": 1}, "channel_names": {"0": "CT"}, "file_ending": ".png"}, "files ending in .png"),
        ({"labels": {"liver": 1}, "channel_names": {"0": "CT"}}, "no image in imagesTr"),
    ],
)
def test_descriptions_that_say_too_little_are_refused(tmp_path: Path, entries: dict[str, object], reason: str) -> None:
    describe(tmp_path, **entries)
    with pytest.raises(InputRefusedError, match=reason):
        find_cases("nnunet", tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputRefusedError, match=r"dataset\.json: not readable as JSON"):
        find_cases("nnunet", tmp_path)
