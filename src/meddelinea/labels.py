"""Organ names, their colours and codes, and the numbering of each public dataset.

Datasets number left and right differently, so everything outside this file speaks of organs by their canonical name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from meddelinea.errors import UsageError


@dataclass(frozen=True)
class Organ:
    """An organ: canonical name, SNOMED CT code and meaning, and the RGB colour (0 to 255) it is drawn in."""

    name: str
    snomed_code: str
    snomed_meaning: str
    colour: tuple[int, int, int]


ORGANS: Mapping[str, Organ] = MappingProxyType(
    {
        organ.name: organ
        for organ in (
            Organ("spleen", "78961009", "Spleen", (157, 108, 162)),
            Organ("right kidney", "9846003", "Right kidney", (230, 126, 34)),
            Organ("left kidney", "18639004", "Left kidney", (241, 196, 15)),
            Organ("gallbladder", "28231008", "Gallbladder", (46, 204, 113)),
            Organ("esophagus", "32849002", "Esophagus", (211, 171, 143)),
            Organ("liver", "10200004", "Liver", (192, 80, 60)),
            Organ("stomach", "69695003", "Stomach", (120, 190, 230)),
            Organ("aorta", "15825003", "Aorta", (224, 30, 50)),
            Organ("inferior vena cava", "64131007", "Inferior vena cava", (40, 90, 220)),
            Organ("portal and splenic vein", "32764006", "Portal vein", (0, 160, 180)),
            Organ("pancreas", "15776009", "Pancreas", (249, 180, 111)),
            Organ("right adrenal gland", "29392005", "Right adrenal gland", (150, 220, 60)),
            Organ("left adrenal gland", "12003004", "Left adrenal gland", (255, 110, 180)),
        )
    }
)

#: The eight organs of the paper's Tables 6, 7 and 9, in their order.
PAPER_ORGANS = (
    "aorta",
    "gallbladder",
    "left kidney",
    "right kidney",
    "liver",
    "pancreas",
    "spleen",
    "stomach",
)

#: BTCV (MICCAI 2015 Multi-Atlas Labeling Beyond the Cranial Vault, abdomen): file id -> canonical name.
BTCV: Mapping[int, str] = MappingProxyType(
    {
        1: "spleen",
        2: "right kidney",
        3: "left kidney",
        4: "gallbladder",
        5: "esophagus",
        6: "liver",
        7: "stomach",
        8: "aorta",
        9: "inferior vena cava",
        10: "portal and splenic vein",
        11: "pancreas",
        12: "right adrenal gland",
        13: "left adrenal gland",
    }
)

#: CHAOS, T2-SPIR and T1-DUAL abdominal MRI: file id -> canonical name.
CHAOS_MR: Mapping[int, str] = MappingProxyType({1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"})

#: TotalSegmentator 1, task total: file id -> canonical name, for the organs of `ORGANS` alone.
TOTALSEGMENTATOR_V1: Mapping[int, str] = MappingProxyType(
    {
        1: "spleen",
        2: "right kidney",
        3: "left kidney",
        4: "gallbladder",
        5: "liver",
        6: "stomach",
        7: "aorta",
        8: "inferior vena cava",
        9: "portal and splenic vein",
        10: "pancreas",
        11: "right adrenal gland",
        12: "left adrenal gland",
        42: "esophagus",
    }
)

#: TotalSegmentator 2, task total, likewise.
TOTALSEGMENTATOR_V2: Mapping[int, str] = MappingProxyType(
    {
        1: "spleen",
        2: "right kidney",
        3: "left kidney",
        4: "gallbladder",
        5: "liver",
        6: "stomach",
        7: "pancreas",
        8: "right adrenal gland",
        9: "left adrenal gland",
        15: "esophagus",
        52: "aorta",
        63: "inferior vena cava",
        64: "portal and splenic vein",
    }
)

#: TotalSegmentator 2, task total_mr, likewise.
TOTALSEGMENTATOR_MR: Mapping[int, str] = MappingProxyType(
    {
        1: "spleen",
        2: "right kidney",
        3: "left kidney",
        4: "gallbladder",
        5: "liver",
        6: "stomach",
        7: "pancreas",
        8: "right adrenal gland",
        9: "left adrenal gland",
        12: "esophagus",
        23: "aorta",
        24: "inferior vena cava",
        25: "portal and splenic vein",
    }
)

#: The numberings by the name that a user gives them.
NUMBERINGS: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "btcv": BTCV,
        "chaos-mr": CHAOS_MR,
        "totalsegmentator-v1": TOTALSEGMENTATOR_V1,
        "totalsegmentator-v2": TOTALSEGMENTATOR_V2,
        "totalsegmentator-mr": TOTALSEGMENTATOR_MR,
    }
)

_SYNONYMS = MappingProxyType(
    {
        "kidney right": "right kidney",
        "kidney left": "left kidney",
        "gall bladder": "gallbladder",
        "oesophagus": "esophagus",
        "arota": "aorta",
        "postcava": "inferior vena cava",
        "ivc": "inferior vena cava",
        "portal vein and splenic vein": "portal and splenic vein",
        "adrenal gland right": "right adrenal gland",
        "adrenal gland left": "left adrenal gland",
    }
)


def canonical_name(name: str) -> str:
    """The canonical spelling of an organ's name: `"kidney_left"`, `"Left Kidney"` -> `"left kidney"`.

    A name without a canonical form comes back in lower case with spaces, so foreign organs keep an identity.
    """
    plain = " ".join(name.lower().replace("_", " ").split())
    return _SYNONYMS.get(plain, plain)


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
