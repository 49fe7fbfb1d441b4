"""What results say in DICOM's terms: who made them, and of each organ a SNOMED CT code and, of a pair, its side's."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from meddelinea.errors import InputRefusedError
from meddelinea.labels import ORGANS, canonical_name

#: The manufacturer of what is written, and the number of its first series, past those that scanners give.
MANUFACTURER = "MedDelinea"
SERIES_NUMBER = 1000
#: What every viewer shows beside a result.
DESCRIPTION = "MedDelinea organs, not for diagnosis"

#: The category of every organ, and the type of one that has no code of its own.
ANATOMICAL_STRUCTURE: Code = codes.SCT.AnatomicalStructure

# DICOM's context groups hold paired organs without their side, which a modifier says.
_SIDES: Mapping[str, Code] = MappingProxyType({"left": codes.SCT.Left, "right": codes.SCT.Right})
_PAIRED: Mapping[str, Code] = MappingProxyType(
    {
        "kidney": codes.SCT.Kidney,
        "adrenal gland": codes.SCT.AdrenalGland,
        "lung": codes.SCT.Lung,
        "femur": codes.SCT.Femur,
    }
)
# Organs whose code means more or less than they do: it is written, but a segment of another program that carries it
# is not taken for the organ.
_LOOSELY_CODED = ("portal and splenic vein", "hepatic vessel")


def code_of(organ: str) -> tuple[Code, Code | None]:
    """Code of an organ's structure, and of its side where it is one of a pair.

    An organ that `labels.ORGANS` does not have is coded as an anatomical structure; its name says which.
    """
    side, _, structure = organ.partition(" ")
    if side in _SIDES and structure in _PAIRED:
        return _PAIRED[structure], _SIDES[side]
    return precoordinated(organ), None


def precoordinated(organ: str) -> Code:
    """One code for an organ and its side, for where DICOM has no place for a modifier."""
    if organ in ORGANS:
        return Code(ORGANS[organ].snomed_code, "SCT", ORGANS[organ].snomed_meaning)
    return ANATOMICAL_STRUCTURE


def organ_of(segment: Any) -> str:
    """Canonical name of an item of a segment sequence, written by whatever program.

    Its label, if that is an organ's name; else the organ that its type and modifier code (SNOMED CT, or the older
    SNOMED-RT of dcmqi and 3D Slicer); else its label in canonical spelling.

    Raises
    ------
    InputRefusedError
        If label and code name two different organs: whichever is wrong, the organ would be.
    """
    label = canonical_name(str(segment.get("SegmentLabel") or ""))
    kind = _code(segment.SegmentedPropertyTypeCodeSequence[0])
    modifiers = segment.SegmentedPropertyTypeCodeSequence[0].get("SegmentedPropertyTypeModifierCodeSequence")
    modifiers = modifiers or segment.get("SegmentedPropertyTypeModifierCodeSequence") or ()
    coded = _organ_coded(kind, [_code(item) for item in modifiers])
    if label in ORGANS and coded is not None and coded != label:
        raise InputRefusedError(
            f"segment {segment.SegmentNumber} is labelled '{segment.SegmentLabel}' and coded as {coded} "
            f"({kind.scheme_designator} {kind.value}); expected one organ; correct the label or the code"
        )
    name = label if label in ORGANS else coded or label
    if not name:
        raise InputRefusedError(f"segment {segment.SegmentNumber} has neither a label nor the code of a known organ")
    return name


def _organ_coded(kind: Code, modifiers: list[Code]) -> str | None:
    """The organ that a type and its modifiers code, if `labels.ORGANS` has it."""
    for structure, code in _PAIRED.items():
        if code == kind:
            sides = [side for side, of_side in _SIDES.items() if of_side in modifiers]
            return f"{sides[0]} {structure}" if len(sides) == 1 else None
    for organ in ORGANS.values():
        if organ.name not in _LOOSELY_CODED and Code(organ.snomed_code, "SCT", "") == kind:
            return organ.name
    return None


def _code(item: Any) -> Code:
    """A code sequence item; long values and URNs stand in elements of their own."""
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""
    return Code(str(value), str(item.get("CodingSchemeDesignator") or ""), str(item.get("CodeMeaning") or ""))
