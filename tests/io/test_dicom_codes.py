"""Codes of organs: each is known by its code or its label, and a segment that contradicts itself is refused."""

import json
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from meddelinea.errors import InputRefusedError
from meddelinea.io.dicom_codes import code_of, organ_of, precoordinated
from meddelinea.io.dicom_seg import read_dicom_seg, write_dicom_seg
from meddelinea.io.dicom_source import read_source
from meddelinea.labels import ORGANS
from support.dicom_segs import organs_by_dcmqi, written
from support.dicom_series import (
    mask_in,
    write_ct,
)


def test_organs_are_coded_for_other_programs(tmp_path: Path) -> None:
    path = written(tmp_path, "LPS", None, "labelmap")
    organs_by_dcmqi(path, tmp_path / "dcmqi")
    (group,) = json.loads((tmp_path / "dcmqi" / "meta.json").read_text())["segmentAttributes"]
    kidney = next(segment for segment in group if segment["SegmentLabel"] == "left kidney")
    assert kidney["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == codes.SCT.Kidney.value
    assert kidney["SegmentedPropertyTypeModifierCodeSequence"]["CodeValue"] == codes.SCT.Left.value
    liver = next(segment for segment in group if segment["SegmentLabel"] == "liver")
    assert liver["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] == "Liver"
    np.testing.assert_allclose(liver["recommendedDisplayRGBValue"], ORGANS["liver"].colour, atol=2)
    algorithm = pydicom.dcmread(path).SegmentSequence[1].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmName == "MedDelinea small"
    assert algorithm.AlgorithmParameters == "steps=4"


def segment(label: str, code: Code, side: Code | None = None) -> Dataset:
    """An item of a segment sequence as another program may write it."""
    item = Dataset()
    item.SegmentNumber, item.SegmentLabel = 1, label
    item.SegmentedPropertyTypeCodeSequence = [hd.sr.CodedConcept.from_code(code)]
    if side is not None:
        modifier = [hd.sr.CodedConcept.from_code(side)]
        item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifier
    return item


@pytest.mark.parametrize("organ", ORGANS)
def test_every_organ_is_known_by_its_code_or_its_label(organ: str) -> None:
    code, side = code_of(organ)
    assert organ_of(segment(organ, code, side)) == organ
    if organ not in ("portal and splenic vein", "hepatic vessel"):
        assert organ_of(segment("Segment_1", code, side)) == organ
        assert organ_of(segment("", precoordinated(organ))) == organ


@pytest.mark.parametrize(
    ("item", "organ"),
    [
        (segment("Seg", Code("T-62000", "SRT", "Liver")), "liver"),
        (segment("Kidney", Code("T-71000", "SRT", "Kidney"), Code("G-A101", "SRT", "Left")), "left kidney"),
        (segment("kidney_right", codes.SCT.Kidney), "right kidney"),
        (segment("Kidney", codes.SCT.Kidney), "kidney"),
        (segment("vessel 3", codes.SCT.BloodVessel), "vessel 3"),
        (segment("Portal vein", codes.SCT.PortalVein), "portal vein"),
        (segment("Lesion 1", codes.SCT.Neoplasm), "lesion 1"),
        (segment("rib_left_4", codes.SCT.Rib, codes.SCT.Left), "left rib 4"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_segments_of_other_programs_are_named_by_label_and_code(item: Dataset, organ: str) -> None:
    assert organ_of(item) == organ


@pytest.mark.parametrize(
    "item",
    [
        segment("Liver", codes.SCT.Spleen),
        segment("left kidney", codes.SCT.Kidney, codes.SCT.Right),
        segment("", codes.SCT.Neoplasm),
    ],
    ids=["organ", "side", "nothing"],
)
def test_a_segment_that_says_two_things_or_nothing_is_refused(item: Dataset) -> None:
    with pytest.raises(InputRefusedError, match="segment 1"):
        organ_of(item)


def test_an_organ_without_a_code_keeps_its_name(tmp_path: Path) -> None:
    source = read_source(write_ct(tmp_path / "ct"))
    mask, _ = mask_in("LPS")
    labels = {"left lung upper lobe": 1, "liver": 6, "left kidney": 3}
    write_dicom_seg(mask, labels, tmp_path / "m.dcm", source)
    assert set(read_dicom_seg(tmp_path / "m.dcm")[1]) == set(labels)
    assert code_of("left lung upper lobe") == (codes.SCT.AnatomicalStructure, None)
