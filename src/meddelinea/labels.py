"""Organ names, their colours and codes, the numbering of each public dataset, and the one reader of label files.

Datasets number left and right differently, so everything outside this file speaks of organs by their canonical name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.json_files import read_object

#: What a label file holds, for messages.
LABEL_FORM = '{"labels": {"spleen": 1, ...}} or {"labels": {"1": "spleen", ...}}'


@dataclass(frozen=True)
class Organ:
    """An organ: canonical name, SNOMED CT code and meaning, and the RGB colour (0 to 255) it is drawn in."""

    name: str
    snomed_code: str
    snomed_meaning: str
    colour: tuple[int, int, int]


ORGANS: Mapping[str, Organ] = {
    organ.name: organ
    for organ in (
        Organ("spleen", "78961009", "Spleen", (157, 108, 162)),
        Organ("right kidney", "9846003", "Right kidney", (230, 126, 34)),
        Organ("left kidney", "18639004", "Left kidney", (241, 196, 15)),
        Organ("gallbladder", "28231008", "Gallbladder", (46, 204, 113)),
        Organ("esophagus", "32849002", "Esophagus", (134, 91, 89)),
        Organ("liver", "10200004", "Liver", (192, 80, 60)),
        Organ("stomach", "69695003", "Stomach", (120, 190, 230)),
        Organ("aorta", "15825003", "Aorta", (180, 0, 60)),
        Organ("inferior vena cava", "64131007", "Inferior vena cava", (40, 90, 220)),
        Organ("portal and splenic vein", "32764006", "Portal vein", (0, 85, 140)),
        Organ("pancreas", "15776009", "Pancreas", (249, 180, 111)),
        Organ("right adrenal gland", "29392005", "Right adrenal gland", (150, 220, 60)),
        Organ("left adrenal gland", "12003004", "Left adrenal gland", (255, 110, 180)),
        Organ("duodenum", "38848004", "Duodenum", (105, 125, 40)),
        Organ("small bowel", "30315005", "Small intestine", (245, 225, 150)),
        Organ("intestine", "113276009", "Intestinal structure", (200, 200, 205)),
        Organ("colon", "71854001", "Colon", (140, 90, 40)),
        Organ("rectum", "34402009", "Rectum", (90, 40, 40)),
        Organ("urinary bladder", "89837001", "Urinary bladder", (245, 250, 60)),
        Organ("prostate", "41216001", "Prostate", (190, 60, 200)),
        Organ("right lung", "3341006", "Right lung", (100, 130, 200)),
        Organ("left lung", "44029006", "Left lung", (160, 240, 240)),
        Organ("right femur", "722739008", "Right femur", (240, 240, 225)),
        Organ("left femur", "722738000", "Left femur", (120, 120, 130)),
        Organ("celiac trunk", "57850000", "Celiac artery", (255, 130, 110)),
        Organ("hepatic vessel", "59820001", "Blood vessel", (75, 40, 160)),
    )
}

#: The eight organs of the paper's Tables 6, 7 and 9, in their order.
PAPER_ORGANS = (
    "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach",
)  # fmt: skip

#: BTCV (MICCAI 2015 Multi-Atlas Labeling Beyond the Cranial Vault, abdomen): file id -> canonical name.
BTCV: Mapping[int, str] = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "esophagus", 6: "liver",
    7: "stomach", 8: "aorta", 9: "inferior vena cava", 10: "portal and splenic vein", 11: "pancreas",
    12: "right adrenal gland", 13: "left adrenal gland",
}  # fmt: skip

#: AMOS 2022, CT and MRI: file id -> canonical name. The last stands for the prostate in men, the uterus in women.
AMOS: Mapping[int, str] = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "esophagus", 6: "liver",
    7: "stomach", 8: "aorta", 9: "inferior vena cava", 10: "pancreas", 11: "right adrenal gland",
    12: "left adrenal gland", 13: "duodenum", 14: "urinary bladder", 15: "prostate or uterus",
}  # fmt: skip

#: AbdomenAtlas 1.0, combined labels: file id -> canonical name.
ABDOMENATLAS_1_0: Mapping[int, str] = {
    1: "aorta", 2: "gallbladder", 3: "left kidney", 4: "right kidney", 5: "liver", 6: "pancreas",
    7: "inferior vena cava", 8: "spleen", 9: "stomach",
}  # fmt: skip

#: AbdomenAtlas 1.1, combined labels: those of 1.0 and 16 more.
ABDOMENATLAS_1_1: Mapping[int, str] = {
    **ABDOMENATLAS_1_0,
    10: "left adrenal gland", 11: "right adrenal gland", 12: "urinary bladder", 13: "celiac trunk",
    14: "colon", 15: "duodenum", 16: "esophagus", 17: "left femur", 18: "right femur", 19: "hepatic vessel",
    20: "intestine", 21: "left lung", 22: "right lung", 23: "portal and splenic vein", 24: "prostate",
    25: "rectum",
}  # fmt: skip

#: CHAOS, T2-SPIR and T1-DUAL abdominal MRI: file id -> canonical name.
CHAOS_MR: Mapping[int, str] = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}

#: CHAOS, abdominal CT: file id -> canonical name.
CHAOS_CT: Mapping[int, str] = {1: "liver"}

#: TotalSegmentator 1, task total: file id -> canonical name, for the organs of `ORGANS` alone.
TOTALSEGMENTATOR_V1: Mapping[int, str] = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "liver", 6: "stomach", 7: "aorta",
    8: "inferior vena cava", 9: "portal and splenic vein", 10: "pancreas", 11: "right adrenal gland",
    12: "left adrenal gland", 42: "esophagus", 55: "small bowel", 56: "duodenum", 57: "colon",
    88: "left femur", 89: "right femur", 104: "urinary bladder",
}  # fmt: skip

#: TotalSegmentator 2, task total, likewise.
TOTALSEGMENTATOR_V2: Mapping[int, str] = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "liver", 6: "stomach",
    7: "pancreas", 8: "right adrenal gland", 9: "left adrenal gland", 15: "esophagus", 18: "small bowel",
    19: "duodenum", 20: "colon", 21: "urinary bladder", 22: "prostate", 52: "aorta", 63: "inferior vena cava",
    64: "portal and splenic vein", 75: "left femur", 76: "right femur",
}  # fmt: skip

#: TotalSegmentator 2, task total_mr, likewise.
TOTALSEGMENTATOR_MR: Mapping[int, str] = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "liver", 6: "stomach",
    7: "pancreas", 8: "right adrenal gland", 9: "left adrenal gland", 10: "left lung", 11: "right lung",
    12: "esophagus", 13: "small bowel", 14: "duodenum", 15: "colon", 16: "urinary bladder", 17: "prostate",
    23: "aorta", 24: "inferior vena cava", 25: "portal and splenic vein", 36: "left femur", 37: "right femur",
}  # fmt: skip

#: The numberings by the name that a user gives them.
NUMBERINGS: Mapping[str, Mapping[int, str]] = {
    "abdomenatlas-1.0": ABDOMENATLAS_1_0,
    "abdomenatlas-1.1": ABDOMENATLAS_1_1,
    "amos": AMOS,
    "btcv": BTCV,
    "chaos-ct": CHAOS_CT,
    "chaos-mr": CHAOS_MR,
    "totalsegmentator-v1": TOTALSEGMENTATOR_V1,
    "totalsegmentator-v2": TOTALSEGMENTATOR_V2,
    "totalsegmentator-mr": TOTALSEGMENTATOR_MR,
}

# From a name in lower case with spaces, its side first. "Intestine" is none of these: AbdomenAtlas has it beside the
# colon, the duodenum and the rectum without saying whether it is all the rest, so it keeps a name of its own.
_SYNONYMS = {
    "gall bladder": "gallbladder",
    "oesophagus": "esophagus",
    "arota": "aorta",
    "postcava": "inferior vena cava",
    "ivc": "inferior vena cava",
    "portal vein and splenic vein": "portal and splenic vein",
    "left adrenal": "left adrenal gland",
    "right adrenal": "right adrenal gland",
    "bladder": "urinary bladder",
    "small intestine": "small bowel",
    "prostate/uterus": "prostate or uterus",
}


def canonical_name(name: str) -> str:
    """The canonical spelling of an organ's name: `"kidney_left"`, `"Left Kidney"` -> `"left kidney"`.

    A name without a canonical form comes back in lower case with spaces and its side first, so foreign organs keep an
    identity: `"lung_upper_lobe_left"` -> `"left lung upper lobe"`.
    """
    words = name.lower().replace("_", " ").split()
    sides = [word for word in words if word in ("left", "right")]
    if len(sides) == 1:
        words.remove(sides[0])
        words.insert(0, sides[0])
    plain = " ".join(words)
    return _SYNONYMS.get(plain, plain)


def colour_of(organ: str) -> tuple[int, int, int]:
    """RGB colour, 0 to 255, that an organ is drawn in; grey for one that `ORGANS` does not have."""
    return ORGANS[organ].colour if organ in ORGANS else (200, 200, 200)


def organ_ids(organs: tuple[str, ...]) -> dict[str, int]:
    """Ids 1..L of `organs` in their order; 0 is the background.

    Raises
    ------
    UsageError
        If a name occurs twice.
    """
    if len(set(organs)) != len(organs):
        raise UsageError(f"organs must be named once each; got {', '.join(organs)}")
    return {name: index for index, name in enumerate(organs, start=1)}


def renumber(ids: NDArray[np.integer], source: Mapping[int, str], organs: tuple[str, ...]) -> NDArray[np.uint8]:
    """Label ids of a dataset as ids 1..L of `organs`, matched by name; organs not asked for become background (0).

    Parameters
    ----------
    ids
        Label ids of any shape.
    source
        The dataset's numbering, id -> name.
    organs
        Canonical names, at most 255.

    Raises
    ------
    UsageError
        If `ids` holds an id above 0 that `source` does not name.
    """
    present = np.unique(ids)
    unknown = [int(i) for i in present if i != 0 and int(i) not in source]
    if unknown:
        raise UsageError(f"label ids {unknown} have no name in this numbering; known ids: {sorted(source)}")
    target = organ_ids(organs)
    table = np.zeros(int(present.max(initial=0)) + 1, np.uint8)
    for index, name in source.items():
        if index < len(table):
            table[index] = target.get(canonical_name(name), 0)
    result: NDArray[np.uint8] = table[ids]
    return result


@dataclass(frozen=True)
class LabelIds:
    """What the ids of a mask mean, as a label file says it: a mask's sidecar, `labels.json`, or `dataset.json`.

    Parameters
    ----------
    regions
        Canonical name -> the ids of its voxels, in the file's order; the background (id 0) is left out. An id may be
        part of several: nnU-Net's regions overlap, such as the kidney and the tumour in it.
    where
        The file, or what else says so; for messages.
    """

    regions: Mapping[str, tuple[int, ...]]
    where: str

    @classmethod
    def read(cls, path: Path) -> LabelIds:
        """What a JSON file says in its entry `labels`, or as a whole where it has no such entry.

        Raises
        ------
        InputRefusedError
            If it cannot be read, or as `of`.
        """
        document = read_object(path, LABEL_FORM)
        return cls.of(document.get("labels", document), str(path))

    @classmethod
    def of(cls, table: object, where: str) -> LabelIds:
        """What a table says: names before ids (nnU-Net 2), or ids before names (the Decathlon, nnU-Net 1).

        Raises
        ------
        InputRefusedError
            If it is no such table, is empty, has a name that cannot be printed, or an id is no whole number of at
            least 0.
        """
        if not isinstance(table, Mapping) or not table:
            raise InputRefusedError(f"{where}: no label names; expected {LABEL_FORM}")
        entries = list(table.items())
        if all(str(key).isdecimal() for key in table):
            entries = [(name, int(index)) for index, name in entries]

        regions: dict[str, tuple[int, ...]] = {}
        for name, value in entries:
            ids = tuple(value) if isinstance(value, list) else (value,)
            named = isinstance(name, str) and name.isprintable()  # names are printed, also those of a model of the hub
            if not named or not all(type(index) is int and index >= 0 for index in ids):
                raise InputRefusedError(f"{where}: label {name!r} is {value!r}; expected {LABEL_FORM}")
            if any(ids):
                organ = canonical_name(name)
                regions[organ] = (*regions.get(organ, ()), *ids)
        return cls(regions, where)

    def one_each(self) -> dict[str, int]:
        """Canonical name -> its id, where each organ has one and no two share it, as in a mask.

        Raises
        ------
        InputRefusedError
            If an organ has several ids, or two organs have one.
        """
        for organ, ids in self.regions.items():
            if len(ids) > 1:
                listed = " and ".join(map(str, ids))
                raise InputRefusedError(f"{self.where}: '{organ}' has ids {listed}; give it one id")
        single = {organ: ids[0] for organ, ids in self.regions.items()}
        for index, count in Counter(single.values()).items():
            if count > 1:
                names = ", ".join(organ for organ, its in single.items() if its == index)
                raise InputRefusedError(f"{self.where}: id {index} is named {names}; give it one name")
        return single
