"""Datasets in the layouts that they are published in, written from real scans: each organ must come back where it was.

The masks that go in are known by name from the source's own table; the ids that a layout stores them under are typed
here from what its publisher says.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset

from meddelinea.data.annotation import LabelMap, OrganMasks, RegionMap
from meddelinea.data.case import Case, FoundCases, read_case
from meddelinea.data.datasets import FORMATS, find_cases, organs_of
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.labels import ABDOMENATLAS_1_1, AMOS, BTCV
from meddelinea.volume import Modality, Volume

# What TotalSegmentator calls the organs of these tests.
TOTALSEGMENTATOR = {
    "spleen": "spleen",
    "kidney_right": "right kidney",
    "kidney_left": "left kidney",
    "gallbladder": "gallbladder",
    "liver": "liver",
    "stomach": "stomach",
    "aorta": "aorta",
    "inferior_vena_cava": "inferior vena cava",
    "portal_vein_and_splenic_vein": "portal and splenic vein",
    "pancreas": "pancreas",
    "adrenal_gland_right": "right adrenal gland",
    "adrenal_gland_left": "left adrenal gland",
    "duodenum": "duodenum",
    "colon": "colon",
    "urinary_bladder": "urinary bladder",
    "femur_right": "right femur",
    "femur_left": "left femur",
    "lung_lower_lobe_left": "left lung lower lobe",
}
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
ATLAS_IDS = {
    "aorta": 1,
    "gallbladder": 2,
    "left kidney": 3,
    "right kidney": 4,
    "liver": 5,
    "pancreas": 6,
    "inferior vena cava": 7,
    "spleen": 8,
    "stomach": 9,
    "left adrenal gland": 10,
    "right adrenal gland": 11,
    "urinary bladder": 12,
    "colon": 14,
    "duodenum": 15,
    "left femur": 17,
    "right femur": 18,
    "portal and splenic vein": 23,
}
ATLAS_FILES = {
    "aorta": "aorta",
    "gallbladder": "gall_bladder",
    "left kidney": "kidney_left",
    "right kidney": "kidney_right",
    "liver": "liver",
    "pancreas": "pancreas",
    "inferior vena cava": "postcava",
    "spleen": "spleen",
    "stomach": "stomach",
}
KIDNEYS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
GREYS = {"liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252}


@dataclass(frozen=True)
class Subject:
    """A real scan and where its organs are, by canonical name."""

    scan: Volume
    organs: Mapping[str, np.ndarray]

    def labels(self, ids: Mapping[str, int]) -> Volume:
        """One volume of ids."""
        array = np.zeros(self.scan.array.shape, np.uint8)
        for organ, index in ids.items():
            array[self.organs[organ]] = index
        return Volume(array, self.scan.affine)

    def mask(self, organ: str) -> Volume:
        """One organ as 0 and 1."""
        return Volume(self.organs[organ].astype(np.uint8), self.scan.affine)


def every_other(volume: Volume, step: tuple[int, int, int]) -> Volume:
    """A smaller volume of the same place."""
    i, j, k = step
    return Volume(volume.array[::i, ::j, ::k].copy(), volume.affine @ np.diag([i, j, k, 1.0]))


@pytest.fixture(scope="module")
def ct(data: Path) -> Subject:
    """Abdomen and pelvis."""
    folder = data / "totalsegmentator"
    names = json.loads((folder / "label_names.json").read_text())["v1_total"]
    scan = every_other(read_volume(folder / "ct.nii.gz"), (2, 2, 2))
    labels = every_other(read_volume(folder / "ct_seg_v1.nii.gz"), (2, 2, 2)).array
    ids = {name: int(index) for index, name in names.items()}
    organs = {organ: labels == ids[name] for name, organ in TOTALSEGMENTATOR.items()}
    assert all(mask.any() for mask in organs.values())
    return Subject(Volume(scan.array.astype(np.int16), scan.affine), organs)


@pytest.fixture(scope="module")
def mr(data: Path) -> Subject:
    """Liver, kidneys and spleen in T2."""
    scan = every_other(read_volume(data / "chaos_mr" / "img" / "t2spir_01.nii.gz"), (2, 2, 2))
    labels = every_other(read_volume(data / "chaos_mr" / "label" / "t2spir_01.nii.gz"), (2, 2, 2)).array
    return Subject(scan, {organ: labels == index for organ, index in KIDNEYS.items()})


def put(volume: Volume, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(volume, path)
    return path


def known(found: FoundCases) -> dict[str, tuple[str, Modality]]:
    """Patient and modality by case."""
    assert list(found.cases) == sorted(found.cases, key=lambda case: case.name)
    return {case.name: (case.patient, case.modality) for case in found.cases}


def check(case: Case, subject: Subject, organs: tuple[str, ...]) -> tuple[str, ...]:
    """A case reads as the subject, organ for organ, whichever order they are asked for; returns the remarks."""
    remarks: tuple[str, ...] = ()
    for wanted in (organs, organs[::-1]):
        read = read_case(case, wanted)
        np.testing.assert_array_equal(read.scan.array, subject.scan.array)
        np.testing.assert_allclose(read.scan.affine, subject.scan.affine, atol=1e-3)
        assert read.scan.modality == case.modality
        assert read.mask.array.dtype == np.uint8
        for index, organ in enumerate(wanted, start=1):
            np.testing.assert_array_equal(read.mask.array == index, subject.organs[organ], err_msg=organ)
        assert read.mask.array.max() == len(wanted)
        remarks = read.remarks
    read = read_case(case, organs)
    side = {organ: to_the_right(read.mask, index) for index, organ in enumerate(organs, start=1)}
    for right, left in (("liver", "spleen"), ("right kidney", "left kidney"), ("right femur", "left femur")):
        if right in side and left in side:
            assert side[right] > side[left]
    return remarks


def to_the_right(mask: Volume, index: int) -> float:
    """Millimetres from the patient's middle line of the scanner to the centre of an organ, positive on the right."""
    centre = np.argwhere(mask.array == index).mean(axis=0)
    return float(nib.affines.apply_affine(mask.affine, centre)[0])


# AbdomenAtlas and TotalSegmentator: a folder a case


def put_atlas_case(folder: Path, subject: Subject, *, masks: bool = True, combined: bool = True) -> None:
    put(subject.scan, folder / "ct.nii.gz")
    if masks:
        for organ, name in ATLAS_FILES.items():
            put(subject.mask(organ), folder / "segmentations" / f"{name}.nii.gz")
    if combined:
        put(subject.labels(ATLAS_IDS), folder / "combined_labels.nii.gz")


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


# Folders of images beside folders of labels


def put_pair(root: Path, images: str, labels: str, subject: Subject, ids: Mapping[str, int]) -> None:
    put(subject.scan, root / images)
    put(subject.labels(ids), root / labels)


def test_btcv(ct: Subject, tmp_path: Path) -> None:
    ids = {organ: index for index, organ in BTCV.items() if organ in ct.organs}
    put_pair(tmp_path, "Training/img/img0001.nii.gz", "Training/label/label0001.nii.gz", ct, ids)
    put(ct.labels(ids), tmp_path / "Training" / "label" / "label0002.nii.gz")
    found = find_cases("btcv", tmp_path)
    assert known(found) == {"img0001": ("0001", "CT")}
    assert "its image img0002 is missing" in found.broken["img0002"]
    assert organs_of(found.cases) == tuple(BTCV.values())
    check(found.cases[0], ct, tuple(ids))


def test_chaos_nifti_of_the_shared_scans(data: Path, mr: Subject, tmp_path: Path) -> None:
    found = find_cases("chaos-nifti", data / "chaos_mr")
    assert found.broken == {}
    assert len(found.cases) == 10
    assert known(found)["t2spir_01"] == ("01", "MR")
    assert organs_of(found.cases) == tuple(KIDNEYS)
    put_pair(tmp_path, "img/t1in_01.nii.gz", "label/t1in_01.nii.gz", mr, KIDNEYS)
    case = find_cases("chaos-nifti", tmp_path).cases[0]
    assert case.patient == "01"
    check(case, mr, tuple(KIDNEYS))


def test_cirrmri(mr: Subject, tmp_path: Path) -> None:
    for place in (
        "Cirrhosis_T1_3D/train_images/12.nii.gz",
        "Cirrhosis_T2_3D/test_images/12.nii.gz",
        "Cirrhosis_T2_3D/test_images/13.nii.gz",
        "Healthy_subjects/T1_W_Healthy/T1_images/12.nii.gz",
        "Healthy_subjects/T2_W_Healthy/T2_images/12.nii.gz",
    ):
        put(mr.scan, tmp_path / place)
        put(mr.mask("liver"), tmp_path / place.replace("images", "masks"))
    (tmp_path / "Cirrhosis_T2_3D" / "test_masks" / "13.nii.gz").unlink()
    (tmp_path / "Cirrhosis_T2_2D" / "train_images").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "Cirrhosis_T2_2D" / "train_images" / "12_1.png")
    found = find_cases("cirrmri", tmp_path)
    assert known(found) == {
        "cirrhosis_t1_train_12": ("cirrhosis_12", "MR"),
        "cirrhosis_t2_test_12": ("cirrhosis_12", "MR"),
        "healthy_t1_12": ("healthy_12", "MR"),
        "healthy_t2_12": ("healthy_12", "MR"),
    }
    assert list(found.broken) == ["cirrhosis_t2_test_13"]
    assert organs_of(found.cases) == ("liver",)
    for case in found.cases:
        check(case, mr, ("liver",))
    one = find_cases("cirrmri", tmp_path / "Healthy_subjects" / "T2_W_Healthy")
    assert known(one) == {"healthy_t2_12": ("healthy_12", "MR")}


def test_pansegdata(ct: Subject, tmp_path: Path) -> None:
    for sequence, name in (("t1", "NYU_0001"), ("t2", "NYU_0001"), ("t2", "NYU_0009"), ("t2", "MCF_0003")):
        put(ct.scan, tmp_path / sequence / "imagesTr" / f"{name}_0000.nii.gz")
        put(ct.mask("pancreas"), tmp_path / sequence / "labelsTr" / f"{name}.nii.gz")
    found = find_cases("pansegdata", tmp_path)
    assert known(found) == {
        "t1_NYU_0001": ("nyu_0001", "MR"),
        "t2_NYU_0001": ("nyu_0001", "MR"),
        "t2_NYU_0009": ("nyu_0009", "MR"),
        "t2_MCF_0003": ("mcf_0003", "MR"),
    }
    assert organs_of(found.cases) == ("pancreas",)
    for case in found.cases:
        check(case, ct, ("pancreas",))
    # The dataset's own tables say that T2's 0009 is T1's 0001, and T2's 0001 another person.
    meta = tmp_path / "Meta informations"
    meta.mkdir()
    (meta / "T1-name_mapping.json").write_text('{"nyu_017.nii.gz": "NYU_0001_0000.nii.gz"}')
    (meta / "T2-name_mapping.json").write_text(
        '{"NYU_17_t2.nii.gz": "NYU_0009_0000.nii.gz", "nyu18": "NYU_0001_0000.nii.gz", "nyu19": "Not included"}'
    )
    assert {name: patient for name, (patient, _) in known(find_cases("pansegdata", tmp_path)).items()} == {
        "t1_NYU_0001": "nyu nyu17",
        "t2_NYU_0009": "nyu nyu17",
        "t2_NYU_0001": "nyu nyu18",
        "t2_MCF_0003": "mcf_0003",
    }


def test_pairs(ct: Subject, tmp_path: Path) -> None:
    ids = {"liver": 7, "left kidney": 2, "right kidney": 3}
    put_pair(tmp_path, "images/one.nrrd", "labels/one.nii.gz", ct, ids)
    put_pair(tmp_path, "images/two_0000.nii.gz", "labels/two.nrrd", ct, ids)
    put_pair(tmp_path, "images/last_0000.nii", "labels/last_0000.nii", ct, ids)
    flipped = Subject(ct.scan.reorient("LAS"), {organ: mask[::-1] for organ, mask in ct.organs.items()})
    write_dicom(tmp_path / "images" / "series", flipped, "CT", [f"{k}.dcm" for k in range(ct.scan.array.shape[2])])
    put(flipped.labels(ids), tmp_path / "labels" / "series.nii.gz")
    put(ct.labels(ids), tmp_path / "labels" / "alone.nii.gz")
    described = {"labels": {"background": 0, "Liver": 7, "kidney_left": 2, "kidney_right": 3}}
    (tmp_path / "labels.json").write_text(json.dumps(described))
    found = find_cases("pairs", tmp_path)
    assert known(found) == {name: (name, "CT") for name in ("last_0000", "one", "series", "two")}
    assert list(found.broken) == ["alone"]
    assert organs_of(found.cases) == ("liver", "left kidney", "right kidney")
    for case in found.cases:
        check(case, flipped if case.name == "series" else ct, tuple(ids))
    (tmp_path / "labels.json").rename(tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text(json.dumps({**described, "modality": "MR"}))
    found = find_cases("pairs", tmp_path)
    assert {case.modality for case in found.cases} == {"MR"}
    with pytest.raises(InputRefusedError, match="series: modality CT by its header; expected MR"):
        read_case(found.cases[2], ("liver",))
    (tmp_path / "dataset.json").write_text(json.dumps({**described, "modality": "PET"}))
    with pytest.raises(InputRefusedError, match="modality 'PET'; expected 'CT' or 'MR'"):
        find_cases("pairs", tmp_path)


# Datasets that describe themselves


def describe(root: Path, **entries: object) -> None:
    (root / "dataset.json").write_text(json.dumps(entries))


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
    assert isinstance(case.labels, RegionMap)


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
        ({"labels": {"liver": 1}, "channel_names": {"0": "CT"}, "file_ending": ".mha"}, "files ending in .mha"),
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


# CHAOS: DICOM and PNG


def write_dicom(folder: Path, subject: Subject, modality: Modality, names: list[str]) -> None:
    """The subject, whose axes run to the left, front and head, as DICOM slices from the feet under these file names."""
    assert subject.scan.orientation == "LAS"
    folder.mkdir(parents=True)
    ras_to_lps = np.diag([-1.0, -1.0, 1.0])
    array, affine, spacing = subject.scan.array, subject.scan.affine, subject.scan.spacing_mm
    series = pydicom.uid.generate_uid()
    for k, name in enumerate(names):
        meta = FileMetaDataset()
        storage = pydicom.uid.CTImageStorage if modality == "CT" else pydicom.uid.MRImageStorage
        meta.MediaStorageSOPClassUID = storage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.Modality = series, modality
        dataset.Rows, dataset.Columns = array.shape[1], array.shape[0]
        dataset.PixelSpacing = [spacing[1], spacing[0]]
        along = ras_to_lps @ affine[:3, 0] / spacing[0], -ras_to_lps @ affine[:3, 1] / spacing[1]
        dataset.ImageOrientationPatient = [f"{value:.9f}" for value in np.concatenate(along)]
        first = nib.affines.apply_affine(affine, (0, array.shape[1] - 1, k))
        dataset.ImagePositionPatient = [f"{value:.7f}" for value in ras_to_lps @ first]
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
        dataset.PixelData = np.ascontiguousarray(array[:, ::-1, k].T.astype(np.int16)).tobytes()
        dataset.save_as(folder / name, enforce_file_format=True)


def write_pngs(folder: Path, subject: Subject, greys: Mapping[str, int], names: list[str]) -> None:
    """The subject's organs as one picture a slice."""
    folder.mkdir(parents=True)
    labels = subject.labels(greys).array
    for k, name in enumerate(names):
        Image.fromarray(np.ascontiguousarray(labels[:, ::-1, k].T)).save(folder / name)


@pytest.mark.parametrize("feet_first", [True, False], ids=["ascending", "descending"])
@pytest.mark.parametrize("below", ["", "Train_Sets", "CHAOS_Train_Sets/Train_Sets"])
def test_chaos(ct: Subject, mr: Subject, tmp_path: Path, below: str, feet_first: bool) -> None:
    ct = Subject(ct.scan.reorient("LAS"), {"liver": ct.organs["liver"][::-1]})

    def order(names: list[str]) -> list[str]:
        return names if feet_first else names[::-1]

    root, numbers = tmp_path / below, range(1, mr.scan.array.shape[2] + 1)
    folder = root / "MR" / "1"
    for where, names in (
        ("T2SPIR/DICOM_anon", [f"IMG-0002-{k:05d}" for k in numbers]),
        ("T1DUAL/DICOM_anon/InPhase", [f"IMG-0004-{2 * k:05d}" for k in numbers]),
        ("T1DUAL/DICOM_anon/OutPhase", [f"IMG-0004-{2 * k - 1:05d}" for k in numbers]),
    ):
        write_dicom(folder / where, mr, "MR", [f"{name}.dcm" for name in order(names)])
        if "Out" not in where:
            write_pngs(folder / where[:6] / "Ground", mr, GREYS, [f"{name}.png" for name in order(names)])
    (folder / "T2SPIR" / "Ground" / "._IMG-0002-00001.png").write_bytes(b"Mac OS X")
    slices = range(ct.scan.array.shape[2])
    folder = root / "CT" / "1"
    write_dicom(folder / "DICOM_anon", ct, "CT", order([f"i{k:04d},0000b.dcm" for k in slices]))
    write_pngs(folder / "Ground", ct, {"liver": 255}, order([f"liver_GT_{k:03d}.png" for k in slices]))
    (root / "MR" / "2" / "T1DUAL" / "DICOM_anon" / "InPhase").mkdir(parents=True)

    found = find_cases("chaos", tmp_path)
    assert known(found) == {
        "CT_1": ("CT_1", "CT"),
        "MR_1_T1DUAL_InPhase": ("MR_1", "MR"),
        "MR_1_T1DUAL_OutPhase": ("MR_1", "MR"),
        "MR_1_T2SPIR": ("MR_1", "MR"),
    }
    assert list(found.broken) == ["MR_2_T1DUAL_InPhase", "MR_2_T1DUAL_OutPhase", "MR_2_T2SPIR"]
    assert organs_of(found.cases[:1]) == ("liver",)
    assert organs_of(found.cases) == tuple(KIDNEYS)
    assert check(found.cases[0], ct, ("liver",)) == ()
    for case in found.cases[1:]:
        assert check(case, mr, tuple(KIDNEYS)) == ()


def test_pictures_that_do_not_fit_the_slices_are_refused(mr: Subject, tmp_path: Path) -> None:
    names = [f"IMG-1-{k}" for k in range(mr.scan.array.shape[2])]  # without leading zeros
    folder = tmp_path / "MR" / "10" / "T2SPIR"
    write_dicom(folder / "DICOM_anon", mr, "MR", [f"{name}.dcm" for name in names])
    write_pngs(folder / "Ground", mr, GREYS, [f"mask_{k:03d}.png" for k in range(len(names))])
    case = find_cases("chaos", tmp_path).cases[0]
    check(case, mr, tuple(KIDNEYS))

    picture = folder / "Ground" / "mask_003.png"
    greys = np.asarray(Image.open(picture)).copy()
    greys[0, :5] = 80
    Image.fromarray(greys).save(picture)
    assert check(case, mr, tuple(KIDNEYS)) == ("5 voxels of grey 80, which stands for no organ: background",)
    Image.fromarray(greys[:-1]).save(picture)
    with pytest.raises(InputRefusedError, match=r"mask_003\.png: .* rows and columns"):
        read_case(case, ("liver",))
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(InputRefusedError, match=r"mask_003\.png: not a readable picture"):
        read_case(case, ("liver",))
    picture.unlink()
    with pytest.raises(InputRefusedError, match="PNG masks, but"):
        read_case(case, ("liver",))


# What is wrong with a case or a source


@pytest.fixture
def pair(ct: Subject, tmp_path: Path) -> tuple[Path, Path]:
    return put(ct.scan, tmp_path / "ct.nii.gz"), put(ct.mask("liver"), tmp_path / "liver.nii.gz")


def as_cases(image: Path, mask: Path) -> tuple[Case, Case]:
    """The same files as ids and as the mask of one organ."""
    labels = LabelMap(mask, {1: "liver"}), OrganMasks({"liver": mask})
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


@pytest.mark.parametrize("layout", sorted(FORMATS))
def test_sources_that_are_not_that_dataset_are_refused(tmp_path: Path, layout: str) -> None:
    with pytest.raises(InputRefusedError, match=f"absent: no such folder; expected .* '{layout}'"):
        find_cases(layout, tmp_path / "absent")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.png").write_bytes(b"")
    with pytest.raises(InputRefusedError, match=r"no .*; expected ") as refusal:
        find_cases(layout, tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_unknown_layouts_and_names_that_occur_twice_are_refused(ct: Subject, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown dataset format 'magic'; known: abdomenatlas, amos"):
        find_cases("magic", tmp_path)
    for part in ("a", "b"):
        put_atlas_case(tmp_path / part / "BDMAP_00000001", ct, masks=False)
    with pytest.raises(InputRefusedError, match="two cases called BDMAP_00000001"):
        find_cases("abdomenatlas", tmp_path)
    put_pair(tmp_path, "images/one.nrrd", "labels/one.nii.gz", ct, {"liver": 1})
    put(ct.scan, tmp_path / "images" / "one.nii.gz")
    describe(tmp_path, labels={"liver": 1})
    with pytest.raises(InputRefusedError, match="two files of one name"):
        find_cases("pairs", tmp_path)
    (tmp_path / "images" / "one.nii.gz").rename(tmp_path / "images" / "one_0000.nii.gz")
    with pytest.raises(InputRefusedError, match="two images of one name"):
        find_cases("pairs", tmp_path)
