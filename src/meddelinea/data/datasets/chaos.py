"""CHAOS as it was published: DICOM slices beside PNG masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from meddelinea.data.annotation import PngStack
from meddelinea.data.case import Case, FoundCases
from meddelinea.errors import InputRefusedError
from meddelinea.scan import Modality

#: Lowest and highest grey value of each organ in the masks of MRI, which are drawn at 63, 126, 189 and 252, and of CT.
GREYS: Mapping[Modality, Mapping[str, tuple[int, int]]] = {
    "MR": {"liver": (55, 70), "right kidney": (110, 135), "left kidney": (175, 200), "spleen": (240, 255)},
    "CT": {"liver": (255, 255)},
}

# Name of a scan, and where its DICOM slices and its masks lie in the patient's folder. In and out of phase are taken
# at once, so T1-DUAL has one set of masks for both.
_SCANS: Mapping[Modality, tuple[tuple[str, str, str], ...]] = {
    "CT": (("", "DICOM_anon", "Ground"),),
    "MR": (
        ("_T1DUAL_InPhase", "T1DUAL/DICOM_anon/InPhase", "T1DUAL/Ground"),
        ("_T1DUAL_OutPhase", "T1DUAL/DICOM_anon/OutPhase", "T1DUAL/Ground"),
        ("_T2SPIR", "T2SPIR/DICOM_anon", "T2SPIR/Ground"),
    ),
}


def find_chaos(source: Path) -> FoundCases:
    """Cases of CHAOS: `CT/ID` and `MR/ID` with folders `DICOM_anon` and `Ground`, in `source` or `Train_Sets` in it.

    CT shows the liver, MRI (T1-DUAL in and out of phase, T2-SPIR) also both kidneys and the spleen. The numbers under
    CT and MR are those of different patients.

    Raises
    ------
    InputRefusedError
        If there is no patient's folder.
    """
    found: list[Case] = []
    broken: dict[str, str] = {}
    for root in (source, source / "Train_Sets", *sorted(source.glob("*/Train_Sets"))):
        for modality, scans in _SCANS.items():
            for folder in sorted(root.glob(f"{modality}/*/")):
                if not folder.name.isdecimal():
                    continue
                patient = f"{modality}_{folder.name}"
                for suffix, slices, masks in scans:
                    name, image, ground = patient + suffix, folder / slices, folder / masks
                    files = ((image, "[!.]*.dcm"), (ground, "[!.]*.png"))
                    missing = [place for place, pattern in files if not any(place.glob(pattern))]
                    if missing:
                        broken[name] = f"{missing[0]}: missing or empty; fetch the case again or remove {folder}"
                    else:
                        case = Case(
                            name=name,
                            dataset="chaos",
                            patient=patient,
                            image=image,
                            labels=PngStack(ground, GREYS[modality]),
                            modality=modality,
                        )
                        found.append(case)
        if found or broken:
            return FoundCases(tuple(found), broken)
    raise InputRefusedError(f"{source}: no CT/ID or MR/ID in it or its Train_Sets; expected CHAOS's training sets")
