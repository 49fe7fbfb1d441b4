"""What a DICOM result carries over from the headers of its scan: the patient, the study, and how their text is written.

Anonymisers and old programs leave values there that no program may write: "REMOVED" for a date, a hash for a number, a
name of a hundred letters, letters of an alphabet that is not declared. A result does without such a value.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from highdicom import SpecificCharacterSetValues
from pydicom import config
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from pydicom.valuerep import DA, DS, TM, validate_value

from meddelinea.findings import Finding, warn
from meddelinea.scan import DicomSeries, Frame

# Results have these, empty where the series has not got them.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# What else describes the study. The patient, and a clinical trial that the patient takes part in, have groups.
_OF_THE_STUDY = (
    "StudyDescription",
    "PhysiciansOfRecord",
    "PhysiciansOfRecordIdentificationSequence",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansReadingStudyIdentificationSequence",
    "ReferringPhysicianIdentificationSequence",
    "ConsultingPhysicianName",
    "ConsultingPhysicianIdentificationSequence",
    "RequestingService",
    "RequestingServiceCodeSequence",
    "ReferencedStudySequence",
    "ProcedureCodeSequence",
    "ReasonForPerformedProcedureCodeSequence",
    "IssuerOfAccessionNumberSequence",
    "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence",
    "AdmissionID",
    "IssuerOfAdmissionIDSequence",
    "ServiceEpisodeID",
    "ServiceEpisodeDescription",
    "IssuerOfServiceEpisodeIDSequence",
    "ReasonForVisit",
    "ReasonForVisitCodeSequence",
    "PositionReferenceIndicator",
)
_GROUPS_OF_THE_PATIENT = (0x0010, 0x0012)
# Values of these are shown in messages; others may be names.
_SHOWN = ("DA", "TM", "AS", "CS", "DS", "IS", "US", "UI")
_TEXT = ("PN", "LO", "SH", "LT", "ST", "UT", "UC")
_CHARACTER_SETS = tuple(value.value for value in SpecificCharacterSetValues)
# highdicom takes several together if they are among these.
_EXTENSIONS = tuple(name for name in _CHARACTER_SETS if name.startswith("ISO 2022") and name != "ISO 2022 IR 58")


def mend_headers(series: DicomSeries) -> list[Finding]:
    """Give the headers of a series, in memory, what results carry over: whole, or empty, but nothing that is invalid.

    Returns
    -------
    list of Finding
        A remark on the values that were left out.
    """
    slice_mm = float(np.linalg.norm(series.slice_step_mm))
    for header in series.headers.values():
        for keyword in _MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
        _complete_measures(header, series.frames[0], slice_mm)
    left_out = _leave_out_invalid(next(iter(series.headers.values())))
    if not left_out:
        return []
    return [
        warn(
            "left_out",
            f"the headers have {', '.join(left_out)}, which DICOM does not allow so: left out of the result; correct "
            "the headers to have it there",
        )
    ]


def _leave_out_invalid(header: Any) -> list[str]:
    """Empty or remove the values of a header that results would carry over and may not hold; what they were."""
    declared = _declare_characters(header)
    names = {*_MAY_BE_EMPTY, *_OF_THE_STUDY}
    tags = [tag for tag in list(header.keys()) if tag.group in _GROUPS_OF_THE_PATIENT or keyword_for_tag(tag) in names]
    left_out = []
    for tag in tags:
        if not _is_valid(header, tag, declared=declared):
            left_out.append(_described(header, tag))
            del header[tag]
            if keyword_for_tag(tag) in _MAY_BE_EMPTY:
                setattr(header, keyword_for_tag(tag), "")
    return left_out


def _declare_characters(header: Any) -> bool:
    """Have a header declare the characters of its text in a way that is valid; whether pydicom could read them.

    What highdicom does not take, as Korean beside the default, is written in Unicode.
    """
    said = header.get("SpecificCharacterSet") or ()
    names = [str(name or "").strip() for name in ([said] if isinstance(said, str) else said)]
    # As pydicom mends what is misspelt when it reads the text.
    names = [re.sub("^ISO[^_]IR.", "ISO_IR ", re.sub("^ISO.2022.IR.", "ISO 2022 IR ", name)) for name in names]
    if len(names) > 1 and not names[0]:
        names[0] = "ISO 2022 IR 6"  # what an empty first value stands for
    if not names or not all(name in python_encoding for name in names):
        header.pop("SpecificCharacterSet", None)
        return False
    taken = _CHARACTER_SETS if len(names) == 1 else _EXTENSIONS
    header.SpecificCharacterSet = names if all(name in taken for name in names) else "ISO_IR 192"
    return names != ["ISO_IR 6"]


def _is_valid(header: Any, tag: BaseTag, *, declared: bool) -> bool:
    """Whether an element, and each inside it, is as DICOM has it."""
    try:
        element = header[tag]
        if element.VR == "SQ":
            return all(
                _is_valid(item, inner, declared=declared) for item in element.value for inner in list(item.keys())
            )
        items = element.value if element.VM > 1 else [element.value]
        if tag.is_private or element.is_empty:
            return True
        if element.VM > 1 and dictionary_VM(tag) == "1":
            return False
        if dictionary_VR(tag) not in (element.VR, "US or SS"):
            return False
        if element.keyword == "PatientSex" and element.value not in ("M", "F", "O"):
            return False
        for item in items:
            validate_value(element.VR, str(item) if element.VR in ("PN", "DS", "IS") else item, config.RAISE)
            if element.VR in ("DA", "TM"):
                (DA if element.VR == "DA" else TM)(item)
            if element.VR in _TEXT and not declared and not str(item).isascii():
                return False
    except Exception:  # of the many kinds that pydicom raises where it converts a value
        return False
    return True


def _described(header: Any, tag: BaseTag) -> str:
    keyword = keyword_for_tag(tag)
    if not keyword or dictionary_VR(tag) not in _SHOWN:
        return keyword or str(tag)
    raw = header.get_item(tag).value
    text = raw.decode("latin-1").strip("\0 ") if isinstance(raw, bytes) else str(raw)
    return f"{keyword} {text[:40]!r}"


def _complete_measures(header: Any, frame: Frame, slice_mm: float) -> None:
    """Thickness and distance of slices, which results state, where the header has nothing or cannot mean them."""
    measures = header
    if header.get("SharedFunctionalGroupsSequence"):
        shared = header.SharedFunctionalGroupsSequence[0]
        if not shared.get("PixelMeasuresSequence"):
            shared.PixelMeasuresSequence = [Dataset()]
            shared.PixelMeasuresSequence[0].PixelSpacing = frame.pixel_spacing_mm.tolist()
        measures = shared.PixelMeasuresSequence[0]
    if not (measures.get("SliceThickness") or 0) > 0:
        measures.SliceThickness = DS(slice_mm, auto_format=True)
    # Of two distant slices nothing else tells how many lie between them. What scanners say here can be another thing.
    measures.SpacingBetweenSlices = DS(slice_mm, auto_format=True)
