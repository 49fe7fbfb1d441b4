"""Datasets of image folders beside label folders whose labels are known beforehand: BTCV, CirrMRI600+ and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from meddelinea.data.annotation import LabelMap, OrganMasks
from meddelinea.data.case import FoundCases
from meddelinea.data.datasets.matching import joined, match, read_description, regions_of, volumes
from meddelinea.endings import stem, visible
from meddelinea.errors import InputRefusedError
from meddelinea.labels import BTCV, CHAOS_MR
from meddelinea.scan import Modality


def find_btcv(source: Path) -> FoundCases:
    """Cases of BTCV: `img/imgNNNN.nii.gz` with `label/labelNNNN.nii.gz`, in `source` or its folder `Training`.

    Raises
    ------
    InputRefusedError
        If there is no image.
    """
    root = source / "Training" if (source / "Training").is_dir() else source
    images = {name: path for name, path in volumes(root / "img").items() if name.startswith("img")}
    if not images:
        raise InputRefusedError(f"{root}: no img/imgNNNN.nii.gz; expected BTCV's folders img and label")
    return match(
        "btcv",
        images,
        {name.replace("label", "img"): path for name, path in volumes(root / "label").items()},
        lambda name: root / "label" / f"{name.replace('img', 'label')}.nii.gz",
        labels=lambda mask: LabelMap.numbered(mask, BTCV),
        modality="CT",
        patient=lambda name: name.removeprefix("img"),
    )


def find_chaos_nifti(source: Path) -> FoundCases:
    """MRI of CHAOS as NIfTI: `img/SEQUENCE_NN.nii.gz` with `label/SEQUENCE_NN.nii.gz` and the ids 1 to 4.

    The number is the patient; `t1in_01` and `t2spir_01` show the same one.

    Raises
    ------
    InputRefusedError
        If there is no image.
    """
    images = volumes(source / "img")
    if not images:
        raise InputRefusedError(f"{source}: no img/SEQUENCE_NN.nii.gz; expected the folders img and label")
    return match(
        "chaos-nifti",
        images,
        volumes(source / "label"),
        lambda name: source / "label" / f"{name}.nii.gz",
        labels=lambda mask: LabelMap.numbered(mask, CHAOS_MR),
        modality="MR",
        patient=lambda name: name.rpartition("_")[2],
    )


def find_cirrmri(source: Path) -> FoundCases:
    """Cases of CirrMRI600+: every folder `*images` beside a folder `*masks`, at any depth; the liver in T1 and T2.

    As published: `Cirrhosis_T1_3D/{train,valid,test}_images/ID.nii.gz` with `..._masks/ID.nii.gz`, `Cirrhosis_T2_3D`
    alike, and `Healthy_subjects/T1_W_Healthy/{T1_images,T1_masks}`. The same number under T1 and T2 is one patient,
    but healthy subjects are numbered apart from those with cirrhosis.

    Raises
    ------
    InputRefusedError
        If there is no image.
    """

    def found_in(images: Path, masks: Path) -> FoundCases:
        sequence = _sequence(images, source)
        group = "healthy" if "healthy" in str(images.relative_to(source.parent)).lower() else "cirrhosis"
        split = images.name.lower().removesuffix("images").strip("_")
        prefix = "_".join(part for part in (group, sequence, split if split != sequence else "") if part)
        return _binary("cirrmri", "liver", images, masks, prefix, lambda number: f"{group}_{number}")

    return _found_beside(source, "images", "masks", found_in, "CirrMRI600+'s train_images beside train_masks")


def find_pansegdata(source: Path) -> FoundCases:
    """Cases of PanSegData: every folder `images*` beside a folder `labels*`, at any depth; the pancreas in T1 and T2.

    As published: `t1/imagesTr/CENTRE_NNNN_0000.nii.gz` with `t1/labelsTr/CENTRE_NNNN.nii.gz`, `t2` alike. Scans of
    one patient need not have one number under T1 and T2: who is whom stands in the dataset's `T1-name_mapping.json`
    and `T2-name_mapping.json` (original name -> file name). Where these lie under `source`, scans of one centre and
    original name are one patient; without them, scans of one name are.

    Raises
    ------
    InputRefusedError
        If there is no image, or a name mapping is unreadable.
    """
    originals = {sequence: _original_names(source, sequence) for sequence in ("t1", "t2")}

    def found_in(images: Path, masks: Path) -> FoundCases:
        sequence = _sequence(images, source)

        def patient(name: str) -> str:
            return originals.get(sequence, {}).get(name.lower(), name.lower())

        return _binary("pansegdata", "pancreas", images, masks, sequence, patient)

    return _found_beside(source, "images", "labels", found_in, "PanSegData's t1/imagesTr beside t1/labelsTr")


def find_pairs(source: Path) -> FoundCases:
    """Cases of `images/NAME` (a volume file or a DICOM folder) with `labels/NAME.nii.gz`, described by a JSON file.

    An image may be called `NAME_0000`. `labels.json` or `dataset.json` in `source` holds
    `{"labels": {"liver": 1, ...}, "modality": "CT" or "MR"}`; the modality is CT where it is not given.

    Raises
    ------
    InputRefusedError
        If there is no image or no description, or the description says something else.
    """
    description = next((path for name in ("labels.json", "dataset.json") if (path := source / name).is_file()), None)
    if description is None:
        raise InputRefusedError(
            f'{source}: no labels.json or dataset.json; expected {{"labels": {{"liver": 1}}}} beside images and labels'
        )
    content = read_description(description)
    regions = regions_of(content, description)
    modality: Modality | None = next((m for m in get_args(Modality) if m == content.get("modality", "CT")), None)
    if modality is None:
        raise InputRefusedError(f"{description}: modality {content['modality']!r}; expected 'CT' or 'MR'")
    masks = volumes(source / "labels")
    images = list(volumes(source / "images").values())
    if (source / "images").is_dir():
        images += [path for path in visible(source / "images") if path.is_dir()]
    if not images:
        raise InputRefusedError(f"{source}: no images/NAME.nii.gz; expected the folders images and labels")
    named: dict[str, Path] = {}
    for path in images:
        name = stem(path) if stem(path) in masks else stem(path).removesuffix("_0000")
        if name in named:
            raise InputRefusedError(f"{path} and {named[name].name}: two images of one name; keep one of them")
        named[name] = path
    return match(
        "pairs",
        named,
        masks,
        lambda name: source / "labels" / f"{name}.nii.gz",
        labels=lambda mask: LabelMap(mask, regions),
        modality=modality,
    )


def _found_beside(
    source: Path, images: str, masks: str, found_in: Callable[[Path, Path], FoundCases], expected: str
) -> FoundCases:
    """Cases of all folders under `source` with `images` in their name, each with the folder that says `masks`."""
    folders = sorted(path for path in source.rglob(f"*{images}*") if path.is_dir() and volumes(path))
    if not folders:
        raise InputRefusedError(f"{source}: no folder *{images}* with volumes in it; expected {expected}")
    return joined([found_in(folder, folder.with_name(folder.name.replace(images, masks))) for folder in folders])


def _sequence(folder: Path, source: Path) -> str:
    """`t1` or `t2` by the names of the folders down to this one, the innermost first; else nothing."""
    for part in reversed(folder.relative_to(source.parent).parts):
        if found := re.search(r"(?<![a-z0-9])t[12](?![0-9])", part.lower().replace("_", " ")):
            return found[0]
    return ""


def _binary(
    dataset: str, organ: str, images: Path, masks: Path, prefix: str, patient: Callable[[str], str]
) -> FoundCases:
    """MRI of a folder with one organ's masks of the same names; an image may end in nnU-Net's `_0000`."""
    before = f"{prefix}_" if prefix else ""
    found = match(
        dataset,
        {name.removesuffix("_0000"): path for name, path in volumes(images).items()},
        volumes(masks),
        lambda name: masks / f"{name}.nii.gz",
        labels=lambda mask: OrganMasks({organ: mask}),
        modality="MR",
        patient=patient,
    )
    cases = tuple(replace(case, name=before + case.name) for case in found.cases)
    return FoundCases(cases, {before + name: reason for name, reason in found.broken.items()})


def _original_names(source: Path, sequence: str) -> Mapping[str, str]:
    """Published case name in lower case -> centre and original name, from the dataset's own mapping, if it is there."""
    originals = {}
    for path in sorted(source.rglob(f"{sequence.upper()}-name_mapping.json")):
        for original, published in read_description(path).items():
            if published == "Not included":
                continue
            name = stem(Path(str(published).lower())).removesuffix("_0000")
            # Spelled with and without leading zeros, underscores and what follows the number.
            parts = re.match(r"([a-z]+)[_-]?0*(\d+)", original.lower())
            spelling = "".join(parts.groups()) if parts else original.lower()
            originals[name] = f"{name.partition('_')[0]} {spelling}"
    return originals
