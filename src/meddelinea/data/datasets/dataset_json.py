"""Datasets that describe themselves in `dataset.json`: nnU-Net, the Medical Segmentation Decathlon, AMOS."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from meddelinea.data.annotation import LabelMap
from meddelinea.data.case import FoundCases
from meddelinea.data.datasets.matching import joined, match, read_description, regions_of, root_with, volumes
from meddelinea.endings import READ_SUFFIXES, stem
from meddelinea.errors import InputRefusedError
from meddelinea.labels import AMOS
from meddelinea.scan import Modality

#: AMOS 2022: ids up to the first are CT, ids up to the second MRI.
AMOS_LAST_CT, AMOS_LAST_MR = 500, 600

# What nnU-Net and the Decathlon call the channels of an MRI.
_MR_CHANNEL = re.compile(r"(mr|t1|t2|flair|adc|dwi|dixon|pd|swi)", re.IGNORECASE)
_CT_CHANNEL = re.compile(r"ct", re.IGNORECASE)


def find_msd(source: Path) -> FoundCases:
    """Cases of a task of the Medical Segmentation Decathlon: `imagesTr/NAME.nii.gz` with `labelsTr/NAME.nii.gz`.

    `dataset.json` in `source`, or in the one folder there that has it, names labels and modality. Images of several
    channels in a fourth dimension are broken: nothing says which of them to take.

    Raises
    ------
    InputRefusedError
        If `dataset.json` or images are missing, or labels or modality are not understood.
    """
    root, content = _described(source, "the Decathlon's")
    return _training_cases("msd", root, content, volumes(root / "imagesTr"), "imagesTr/NAME.nii.gz")


def find_nnunet(source: Path) -> FoundCases:
    """Cases of a raw dataset of nnU-Net (2 or 1): `imagesTr/NAME_0000.nii.gz` with `labelsTr/NAME.nii.gz`.

    `dataset.json` in `source`, or in the one folder there that has it, names labels, channels and the files' ending.
    A dataset of several channels is broken: nothing says which of them to take.

    Raises
    ------
    InputRefusedError
        If `dataset.json` or images are missing, or labels, channels or the ending are not understood.
    """
    root, content = _described(source, "nnU-Net's")
    suffix = str(content.get("file_ending", ".nii.gz")).lower()
    if suffix not in READ_SUFFIXES:
        raise InputRefusedError(
            f"{root / 'dataset.json'}: files ending in {suffix}; expected {' or '.join(READ_SUFFIXES)}; convert them"
        )
    channels = volumes(root / "imagesTr", (suffix,))
    first = {name.removesuffix("_0000"): path for name, path in channels.items() if name.endswith("_0000")}
    return _training_cases("nnunet", root, content, first, f"imagesTr/NAME_0000{suffix}")


def find_amos(source: Path) -> FoundCases:
    """Cases of AMOS 2022: `imagesTr/amos_NNNN.nii.gz` with `labelsTr`, `imagesVa` with `labelsVa`; CT and MRI.

    They lie in `source` or in the one folder there that has `imagesTr`. Images of `imagesTs` have no public labels
    and are no cases. The modality of a case is what a column `modality` of a CSV file beside the folders says, or
    the case's entry in `dataset.json`; where neither does, ids up to 500 are CT and those up to 600 MRI.

    Raises
    ------
    InputRefusedError
        If there is no image, or `dataset.json` is not understood.
    """
    root = root_with(source, "imagesTr", "imagesVa")
    if root is None:
        raise InputRefusedError(f"{source}: no imagesTr or imagesVa; expected AMOS's imagesTr/amos_NNNN.nii.gz")
    description = root / "dataset.json"
    content = read_description(description) if description.is_file() else {}
    regions = regions_of(content, description) if "labels" in content else None
    stated = _stated_modalities(content, {source, root})

    def found_in(split: str) -> FoundCases:
        images, masks = (
            {name: path for name, path in volumes(root / (kind + split)).items() if re.fullmatch(r"amos_\d+", name)}
            for kind in ("images", "labels")
        )
        return match(
            "amos",
            images,
            masks,
            lambda name: root / f"labels{split}" / f"{name}.nii.gz",
            labels=lambda mask: LabelMap(mask, regions) if regions else LabelMap.numbered(mask, AMOS),
            modality="CT",
            patient=lambda name: str(int(name.removeprefix("amos_"))),
        )

    found = joined([found_in("Tr"), found_in("Va")])
    if not found.cases and not found.broken:
        raise InputRefusedError(f"{root}: no imagesTr/amos_NNNN.nii.gz; expected AMOS's images and labels")
    cases, broken = [], dict(found.broken)
    for case in found.cases:
        number = int(case.patient)
        by_number: Modality | None = "CT" if number <= AMOS_LAST_CT else "MR" if number <= AMOS_LAST_MR else None
        if modality := stated.get(number, by_number):
            cases.append(replace(case, modality=modality))
        else:
            broken[case.name] = (
                f"{case.image}: nothing says whether it is CT or MRI; expected an id up to {AMOS_LAST_MR}, or a "
                f"column modality in a CSV file in {root}"
            )
    return FoundCases(tuple(cases), broken)


def _described(source: Path, whose: str) -> tuple[Path, dict[str, Any]]:
    """The folder with `dataset.json`, and what that says."""
    root = root_with(source, "dataset.json")
    if root is None:
        raise InputRefusedError(f"{source}: no dataset.json; expected {whose} dataset.json, imagesTr and labelsTr")
    return root, read_description(root / "dataset.json")


def _training_cases(
    dataset: str, root: Path, content: dict[str, Any], images: dict[str, Path], expected: str
) -> FoundCases:
    """Cases of one channel in `imagesTr` and `labelsTr`, and those that `dataset.json` lists in vain."""
    description = root / "dataset.json"
    regions = regions_of(content, description)
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or not channels:
        raise InputRefusedError(f'{description}: no channels; expected "channel_names" or "modality": {{"0": "CT"}}')
    names = [str(name) for name in channels.values()]
    modality = _modality_called(names[0])
    if modality is None:
        raise InputRefusedError(
            f"{description}: channel '{names[0]}'; expected CT or a kind of MRI (MRI, T1, T2, FLAIR, ADC); name it so"
        )
    if not images:
        raise InputRefusedError(f"{root}: no image in imagesTr; expected {expected}")
    masks = volumes(root / "labelsTr")
    found = match(
        dataset,
        images,
        masks,
        lambda name: root / "labelsTr" / f"{name}.nii.gz",
        labels=lambda mask: LabelMap(mask, regions),
        modality=modality,
    )
    if len(names) > 1:
        fault = (
            f"{len(names)} channels ({', '.join(names)}); expected one; put the wanted one into a folder of its own, "
            "in format 'pairs'"
        )
        found = FoundCases((), {**found.broken, **{case.name: f"{case.image}: {fault}" for case in found.cases}})
    listed = {stem(Path(str(entry["image"]))) for entry in _listed(content) if "image" in entry}
    lost = {
        name: f"{root}: {name} is listed in dataset.json, but neither its image nor its mask is there; fetch it again"
        for name in listed - images.keys() - masks.keys()
    }
    return FoundCases(found.cases, {**found.broken, **lost})


def _modality_called(name: str) -> Modality | None:
    """CT or MR by the name of a channel, such as `"T2w"`; None for other names."""
    if _CT_CHANNEL.match(name.strip()):
        return "CT"
    return "MR" if _MR_CHANNEL.match(name.strip()) else None


def _listed(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the training cases, where the description has a list of them."""
    entries = content.get("training")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _stated_modalities(content: dict[str, Any], folders: set[Path]) -> dict[int, Modality]:
    """AMOS id -> modality, where `dataset.json` or a CSV file in one of the folders says it of the very case."""
    rows: list[Mapping[str, Any]] = [
        {"amos_id": stem(Path(str(entry.get("image")))).removeprefix("amos_"), **entry} for entry in _listed(content)
    ]
    for path in sorted(path for folder in folders for path in folder.glob("*.csv") if path.name[0] != "."):
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            rows += csv.DictReader(stream)
    stated: dict[int, Modality] = {}
    for row in rows:
        number, name = str(row.get("amos_id")), next((row[key] for key in row if str(key).lower() == "modality"), None)
        if number.isdecimal() and isinstance(name, str) and (modality := _modality_called(name)):
            stated[int(number)] = modality
    return stated
