"""Which public datasets hold cases of each other: a model trained on one must not be tested on the other unseen.

Only what the makers of a collection say of it is listed; its cases are renamed there, so names find nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Collection:
    """A dataset made of others."""

    parts: frozenset[str]  # keys of the datasets whose cases it holds, all or some of them
    source: str  # who says so


#: Keys are those of `data.datasets.FORMATS` where such a format exists.
COLLECTIONS: Mapping[str, Collection] = {
    "abdomenatlas": Collection(
        frozenset(
            {"abdomenct-1k", "amos", "btcv", "chaos", "ct-org", "flare", "kits", "lits", "msd", "pancreas-ct", "word"}
        ),
        "README of github.com/MrGiovanni/AbdomenAtlas",
    ),
    "abdomenct-1k": Collection(
        frozenset({"kits", "lits", "msd", "pancreas-ct"}),
        "Ma et al., AbdomenCT-1K, TPAMI 2022, and github.com/JunMa11/AbdomenCT-1K/issues/21",
    ),
    "ct-org": Collection(frozenset({"lits"}), "Rister et al., CT-ORG, Scientific Data 2020"),
    "msd": Collection(frozenset({"lits"}), "Antonelli et al., The Medical Segmentation Decathlon, 2022 (Task03)"),
}


def mixing_warnings(trained: set[str], tested: set[str]) -> list[str]:
    """What to know before a model trained on some datasets is validated or tested on others; a line each, sorted.

    Sharing cases is symmetric: fine-tuning on BTCV what was pre-trained on AbdomenAtlas is as doubtful as the reverse.
    A dataset on both sides is no warning: whether its split is kept is for the case names and fingerprints to say.
    Datasets are named as in `data.datasets.FORMATS`; unknown ones share nothing that is known.
    """
    warnings = []
    for one in sorted(trained):
        for other in sorted(tested - {one}):
            fact = _shared(one, other)
            if fact:
                warnings.append(
                    f"trained on {one}, tested on {other}: {fact}; test on cases that 'meddelinea leak-check' clears"
                )
    return warnings


def _shared(one: str, other: str) -> str:
    """What is known of cases that two datasets share, with its source; empty where nothing is."""
    for whole, part in ((one, other), (other, one)):
        if whole in COLLECTIONS and part in COLLECTIONS[whole].parts:
            return f"{whole} holds cases of {part} under other names ({COLLECTIONS[whole].source})"
    if one in COLLECTIONS and other in COLLECTIONS:
        common = sorted(COLLECTIONS[one].parts & COLLECTIONS[other].parts)
        if common:
            return f"both hold cases of {', '.join(common)} ({COLLECTIONS[one].source}; {COLLECTIONS[other].source})"
    return ""
