"""Organ names: what datasets call them, the codes they carry, and the numbers they have in each dataset."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.labels import (
    ABDOMENATLAS_1_0,
    ABDOMENATLAS_1_1,
    AMOS,
    BTCV,
    NUMBERINGS,
    ORGANS,
    LabelIds,
    canonical_name,
    renumber,
)


@pytest.mark.parametrize(
    ("published", "canonical"),
    [
        ("kidney_left", "left kidney"),
        ("Right Kidney", "right kidney"),
        ("gall_bladder", "gallbladder"),
        ("postcava", "inferior vena cava"),
        ("inferior_vena_cava", "inferior vena cava"),
        ("arota", "aorta"),
        ("portal_vein_and_splenic_vein", "portal and splenic vein"),
        ("adrenal_gland_right", "right adrenal gland"),
        ("bladder", "urinary bladder"),
        ("urinary_bladder", "urinary bladder"),
        ("prostate/uterus", "prostate or uterus"),
        ("femur_left", "left femur"),
        ("lung_upper_lobe_left", "left lung upper lobe"),
        ("rib_right_11", "right rib 11"),
        ("small_bowel", "small bowel"),
        ("intestine", "intestine"),
        ("left and right  ventricle", "left and right ventricle"),
    ],
)
def test_published_names_become_canonical(published: str, canonical: str) -> None:
    assert canonical_name(published) == canonical
    assert canonical_name(canonical) == canonical


def test_every_numbering_uses_canonical_names_once_each() -> None:
    for numbering in NUMBERINGS.values():
        assert [canonical_name(name) for name in numbering.values()] == list(numbering.values())
        assert len(set(numbering.values())) == len(numbering)


def test_numberings_agree_with_the_names_their_datasets_publish() -> None:
    amos = (
        "spleen, right kidney, left kidney, gall bladder, esophagus, liver, stomach, arota, postcava, pancreas, "
        "right adrenal gland, left adrenal gland, duodenum, bladder, prostate/uterus"
    )
    atlas = (
        "aorta, gall_bladder, kidney_left, kidney_right, liver, pancreas, postcava, spleen, stomach, "
        "adrenal_gland_left, adrenal_gland_right, bladder, celiac_trunk, colon, duodenum, esophagus, femur_left, "
        "femur_right, hepatic_vessel, intestine, lung_left, lung_right, portal_vein_and_splenic_vein, prostate, rectum"
    )
    for published, numbering in ((amos, AMOS), (atlas, ABDOMENATLAS_1_1)):
        names = [canonical_name(name) for name in published.split(", ")]
        assert numbering == dict(enumerate(names, start=1))
    assert {index: ABDOMENATLAS_1_1[index] for index in range(1, 10)} == ABDOMENATLAS_1_0


def check_digit_holds(code: str) -> bool:
    """Whether the last digit of a SNOMED CT code is Verhoeff's check digit of the others."""

    def product(a: int, b: int) -> int:  # of the symmetries of a pentagon: 0 to 4 turn it, 5 to 9 turn it over
        if a < 5:
            return (a + b) % 5 + (0 if b < 5 else 5)
        return (a - b) % 5 + (5 if b < 5 else 0)

    permuted, total = list(range(10)), 0
    for digit in reversed(code):
        total = product(total, permuted[int(digit)])
        permuted = [permuted[i] for i in (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)]
    return total == 0


def test_codes_are_codes_of_snomed() -> None:
    assert not check_digit_holds("10200005")
    for organ in ORGANS.values():
        assert check_digit_holds(organ.snomed_code), organ


@pytest.mark.parametrize(
    ("keyword", "organ"),
    [
        ("Spleen", "spleen"),
        ("Gallbladder", "gallbladder"),
        ("Esophagus", "esophagus"),
        ("Liver", "liver"),
        ("Stomach", "stomach"),
        ("Aorta", "aorta"),
        ("InferiorVenaCava", "inferior vena cava"),
        ("PortalVein", "portal and splenic vein"),
        ("Pancreas", "pancreas"),
        ("Duodenum", "duodenum"),
        ("SmallIntestine", "small bowel"),
        ("Colon", "colon"),
        ("Rectum", "rectum"),
        ("Bladder", "urinary bladder"),
        ("Prostate", "prostate"),
        ("CeliacAxis", "celiac trunk"),
        ("BloodVessel", "hepatic vessel"),
    ],
)
def test_codes_agree_with_pydicom_where_it_knows_the_organ(keyword: str, organ: str) -> None:
    code: Code = getattr(codes.SCT, keyword)
    assert code.value == ORGANS[organ].snomed_code


def test_organs_can_be_told_apart() -> None:
    assert len({organ.snomed_code for organ in ORGANS.values()}) == len(ORGANS)
    for a, b in combinations(ORGANS.values(), 2):
        assert np.linalg.norm(np.subtract(a.colour, b.colour)) > 45, (a.name, b.name)


#: How linear RGB looks without the cones for green (Machado et al. 2009, severity 1), and its place in CIE XYZ.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colours: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """CIE Lab of sRGB colours (n, 3), 0 to 255, as they are `seen`."""
    share = colours / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    ratios = np.clip(linear @ seen.T, 0.0, 1.0) @ XYZ.T / XYZ.sum(axis=1)
    f = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16.0 / 116.0)
    return np.stack([116.0 * f[:, 1] - 16.0, 500.0 * (f[:, 0] - f[:, 1]), 200.0 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("seen", [np.eye(3), DEUTERANOPIA], ids=["usual", "deuteranopia"])
def test_the_colours_of_abdominal_organs_differ_for_every_eye(seen: np.ndarray) -> None:
    places = lab(np.array([ORGANS[name].colour for name in BTCV.values()], float), seen)
    for (a, one), (b, other) in combinations(zip(BTCV.values(), places, strict=True), 2):
        assert np.linalg.norm(one - other) > 13, (a, b)


def test_ids_are_translated_by_name() -> None:
    ids = np.array([[0, 2, 3], [1, 15, 6]])
    ours = renumber(ids, AMOS, ("liver", "left kidney", "right kidney"))
    np.testing.assert_array_equal(ours, [[0, 3, 2], [0, 0, 1]])
    with pytest.raises(UsageError, match=r"label ids \[16\] have no name"):
        renumber(ids + 1, AMOS, ("liver",))


@pytest.mark.parametrize(
    "content",
    [
        {"labels": {"background": 0, "Kidney_Left": 2, "liver": 7}, "model": "small"},  # nnU-Net 2, a mask's sidecar
        {"labels": {"0": "background", "2": "Kidney_Left", "7": "liver"}, "modality": {"0": "CT"}},  # the Decathlon
        {"left kidney": 2, "Liver": 7},
        {"2": "left kidney", "7": "LIVER"},
    ],
)
def test_every_form_of_a_label_file_says_the_same(tmp_path: Path, content: object) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(content))
    found = LabelIds.read(tmp_path / "labels.json")
    assert dict(found.regions) == {"left kidney": (2,), "liver": (7,)}
    assert found.one_each() == {"left kidney": 2, "liver": 7}


def test_a_region_of_several_ids_is_read_and_is_no_single_label() -> None:
    found = LabelIds.of({"background": 0, "kidney": [1, 2], "tumour": 2, "cyst": 3, "Cyst": 4}, "dataset.json")
    assert dict(found.regions) == {"kidney": (1, 2), "tumour": (2,), "cyst": (3, 4)}
    with pytest.raises(InputRefusedError, match=r"dataset\.json: 'kidney' has ids 1 and 2; give it one id"):
        found.one_each()
    with pytest.raises(InputRefusedError, match=r"dataset\.json: id 2 is named kidney, tumour; give it one name"):
        LabelIds.of({"kidney": 2, "tumour": 2}, "dataset.json").one_each()


@pytest.mark.parametrize(
    "table",
    [None, [], {}, {"liver": True}, {"liver": 1.0}, {"liver": [1, "2"]}, {"1": None}, {"liver\x1b[2J": 1}],
)
def test_what_names_no_ids_is_refused_with_the_form_that_is_expected(table: object) -> None:
    with pytest.raises(InputRefusedError, match=r'labels.json: .*expected \{"labels": \{"spleen": 1'):
        LabelIds.of(table, "labels.json")
