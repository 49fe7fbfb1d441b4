"""Datasets of a folder a case with a mask file an organ: AbdomenAtlas and TotalSegmentator's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from meddelinea.data.annotation import LabelMap, Labels, OrganMasks
from meddelinea.data.case import Case, FoundCases
from meddelinea.data.datasets.matching import volumes
from meddelinea.endings import stem
from meddelinea.errors import InputRefusedError
from meddelinea.labels import ABDOMENATLAS_1_0, ABDOMENATLAS_1_1, ORGANS, canonical_name
from meddelinea.scan import Modality


def find_abdomenatlas(source: Path) -> FoundCases:
    """Cases of AbdomenAtlas 1.0 and 1.1 Mini: folders `BDMAP_NNNNNNNN` in `source` or in folders of it.

    Each holds `ct.nii.gz`, `segmentations/ORGAN.nii.gz` and `combined_labels.nii.gz`. The labels are the files of
    single organs where there are any: they alone show where organs overlap, which the combined file hides, and need
    no numbering. Otherwise they are the combined file, numbered as in 1.1 unless a folder is called `...1.0...`: 1.1
    continues the numbers of 1.0.

    Raises
    ------
    InputRefusedError
        If there is no such folder.
    """

    def labels(folder: Path) -> Labels:
        if masks := _organ_files(folder / "segmentations", tuple(ABDOMENATLAS_1_1.values())):
            return OrganMasks(masks)
        combined = folder / "combined_labels.nii.gz"
        if combined.is_file():
            old = "1.0" in f"{source.name}/{folder.parent.name}"
            return LabelMap.numbered(combined, ABDOMENATLAS_1_0 if old else ABDOMENATLAS_1_1)
        raise InputRefusedError(f"{folder}: no segmentations/*.nii.gz or {combined.name}; fetch its masks")

    folders = _case_folders(source, r"BDMAP_\w+", "AbdomenAtlas's BDMAP_NNNNNNNN/ct.nii.gz")
    return _found("abdomenatlas", folders, {"ct.nii.gz": "CT"}, labels)


def find_totalsegmentator(source: Path) -> FoundCases:
    """Cases of TotalSegmentator's training data: folders `sNNNN` in `source` or in folders of it.

    Each holds `ct.nii.gz`, or `mri.nii.gz` in the MRI dataset, and `segmentations/STRUCTURE.nii.gz`.

    Raises
    ------
    InputRefusedError
        If there is no such folder.
    """

    def labels(folder: Path) -> Labels:
        if masks := _organ_files(folder / "segmentations", tuple(ORGANS)):
            return OrganMasks(masks)
        raise InputRefusedError(f"{folder}: no segmentations/*.nii.gz; fetch its masks")

    folders = _case_folders(source, r"s\d+", "TotalSegmentator's sNNNN/ct.nii.gz or sNNNN/mri.nii.gz")
    return _found("totalsegmentator", folders, {"ct.nii.gz": "CT", "mri.nii.gz": "MR"}, labels)


def _case_folders(source: Path, name: str, expected: str) -> list[Path]:
    """Folders of that name (a regular expression) in `source`, else in the folders of it."""
    for depth in ("*", "*/*"):
        folders = [path for path in sorted(source.glob(depth)) if path.is_dir() and re.fullmatch(name, path.name)]
        if folders:
            return folders
    raise InputRefusedError(f"{source}: no case in it or its folders; expected {expected}")


def _organ_files(folder: Path, order: tuple[str, ...]) -> dict[str, Path]:
    """Mask files by canonical name, those of `order` first, the others by name."""
    files: dict[str, Path] = {}
    for path in volumes(folder).values():
        organ = canonical_name(stem(path))
        if organ in files:
            raise InputRefusedError(f"{path} and {files[organ].name}: two masks of the {organ}; keep one of them")
        files[organ] = path
    return {organ: files[organ] for organ in (*order, *sorted(files.keys() - set(order))) if organ in files}


def _found(
    dataset: str, folders: list[Path], images: Mapping[str, Modality], labels: Callable[[Path], Labels]
) -> FoundCases:
    """The case of each folder, by the first of the images that it holds."""
    cases, broken = [], {}
    for folder in folders:
        name = folder.name
        try:
            known = labels(folder)
            image = next((image for image in images if (folder / image).is_file()), None)
            if image is None:
                raise InputRefusedError(f"{folder}: no {' or '.join(images)}; fetch its image")
        except InputRefusedError as error:
            broken[name] = str(error)
            continue
        place, modality = folder / image, images[image]
        cases.append(Case(name=name, dataset=dataset, patient=name, image=place, labels=known, modality=modality))
    return FoundCases(tuple(cases), broken)
