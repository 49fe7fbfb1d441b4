"""What DICOM results take over from odd headers: what is valid, and the rest is left out or refused before the work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom import config
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset

from meddelinea.errors import InputRefusedError
from meddelinea.io.dicom_seg import write_dicom_seg
from meddelinea.io.rtstruct import write_rtstruct
from meddelinea.io.volumes import read_scan
from meddelinea.results.files import OutputType, require_referable
from support.dicom_series import LABELS, mask_in, rewritten

KINDS: dict[OutputType, Callable[..., None]] = {"dicom_seg": write_dicom_seg, "rtstruct": write_rtstruct}


def element(keyword: str, value: Any, vr: str | None = None) -> Callable[[Dataset], None]:
    """Set an element to a value that pydicom warns of, or to raw bytes that it cannot read."""

    def change(image: Dataset) -> None:
        tag = tag_for_keyword(keyword)
        assert tag is not None
        if isinstance(value, bytes):
            image[tag] = RawDataElement(
                pydicom.tag.Tag(tag), vr or dictionary_VR(tag), len(value), value, 0, False, True
            )
        else:
            image[tag] = DataElement(tag, vr or dictionary_VR(tag), value, validation_mode=config.IGNORE)

    return change


def result(folder: Path, kind: OutputType) -> tuple[Dataset, list[str]]:
    """What is written for a series, each of its elements valid, and what is said of the series."""
    scan = require_referable(read_scan(folder), kind)
    mask, _ = mask_in("LPS")
    KINDS[kind](mask, LABELS, folder.parent / "result.dcm", scan.series)
    before = config.settings.reading_validation_mode
    config.settings.reading_validation_mode = config.RAISE
    try:
        made = pydicom.dcmread(folder.parent / "result.dcm")
        for part in made:
            assert part.tag in made
    finally:
        config.settings.reading_validation_mode = before
    assert all(found.code == "left_out" for found in scan.findings)
    return made, [found.message for found in scan.findings]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "REMOVED"),
        ("PatientBirthDate", "1970"),
        ("PatientBirthDate", "00000000"),
        ("PatientBirthDate", "19700101-19800101"),
        ("StudyDate", "REMOVED"),
        ("StudyDate", "20241340"),
        ("StudyTime", "250000"),
        ("StudyTime", "10:11:12"),
        ("PatientName", "A" * 65),
        ("PatientName", "a=b=c=d"),
        ("PatientName", ["A^B", "C^D"]),
        ("ReferringPhysicianName", "R" * 100),
        ("PatientID", "7" * 65),
        ("AccessionNumber", "9" * 17),
        ("PatientSex", "male"),
        ("PatientAge", "old"),
        ("PatientWeight", b"70,5"),
        ("StudyDescription", "d" * 65),
    ],
)
def test_a_value_that_dicom_does_not_allow_is_left_out_with_a_warning(
    tmp_path: Path, keyword: str, value: Any, kind: OutputType
) -> None:
    made, said = result(rewritten(tmp_path, element(keyword, value)), kind)
    assert not made.get(keyword)
    assert made.StudyInstanceUID
    assert len(said) == 1
    assert keyword in said[0]
    shown = dictionary_VR(keyword) in ("DA", "TM", "CS", "AS", "DS")
    assert (str(value) in said[0] or not isinstance(value, str)) or not shown
    assert "AAAA" not in said[0], "names of patients are not printed"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("ISO_IR 192", "Müller^Jürgen=王^小東"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞"),
        ("ISO_IR 144", "Иванов^Иван"),
        ("GB18030", "王小东"),
    ],
)
def test_names_are_written_in_characters_that_are_declared(
    tmp_path: Path, said: str | list[str], name: str, kind: OutputType
) -> None:
    def change(image: Dataset) -> None:
        element("SpecificCharacterSet", said)(image)
        image.PatientName = name

    made, findings = result(rewritten(tmp_path, change), kind)
    assert str(made.PatientName) == name
    assert findings == []
    assert made["SpecificCharacterSet"].value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("declared", "replaced", "written"),
    [
        ("ISO_IR 192", b"ISO IR 192", "Müller"),  # misspelt, but plain
        ("ISO_IR 192", b"ANONYMIZED", ""),
        ("ISO_IR 100", b"ISO_IR 999", ""),
    ],
)
def test_text_in_characters_that_nothing_declares_is_left_out(
    tmp_path: Path, declared: str, replaced: bytes, written: str, kind: OutputType
) -> None:
    def change(image: Dataset) -> None:
        image.SpecificCharacterSet, image.PatientName = declared, "Müller"

    folder = rewritten(tmp_path, change)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(declared.encode(), replaced))
    made, said = result(folder, kind)
    assert str(made.PatientName) == written
    assert ["PatientName" in message for message in said] == [True] * (not written)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "keyword",
    ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"],
)
def test_an_identifier_that_is_none_is_refused_by_its_name_before_the_work(
    tmp_path: Path, keyword: str, kind: OutputType
) -> None:
    for value in ("3f2a9bc0de", "1." + "2" * 80):
        folder = rewritten(tmp_path / value, element(keyword, value))
        with pytest.raises(InputRefusedError, match=f"00.dcm: {keyword} is '{value}'"):
            require_referable(read_scan(folder), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_an_unknown_class_is_refused_before_the_work(tmp_path: Path, kind: OutputType) -> None:
    folder = rewritten(tmp_path, element("SOPClassUID", "1.2.3.4.5"))
    with pytest.raises(InputRefusedError, match=r"SOPClassUID is 1\.2\.3\.4\.5; expected that of a CT or MR image"):
        require_referable(read_scan(folder), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_else_the_headers_do_not_allow_is_known_before_the_work(
    tmp_path: Path, kind: OutputType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAKE: nothing is mended, so that a date that is none reaches the writer."""
    monkeypatch.setattr("meddelinea.io.dicom_source.mend_headers", lambda series: [])
    folder = rewritten(tmp_path, element("StudyDate", "REMOVED"))
    with pytest.raises(InputRefusedError, match=r"do not allow .*(REMOVED|no attribute)"):
        require_referable(read_scan(folder), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_sound_headers_are_carried_over_without_a_word(tmp_path: Path, kind: OutputType) -> None:
    made, said = result(rewritten(tmp_path, lambda image: None), kind)
    assert said == []
    assert (str(made.PatientName), made.PatientBirthDate, made.StudyDate) == ("Doe^Jane", "19700101", "20240102")
