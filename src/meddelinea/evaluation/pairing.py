"""Which prediction belongs to which reference, and which organ each id in their files means."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meddelinea.endings import MASK_SUFFIXES, READ_SUFFIXES, by_stem, ending, stem, visible
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.io.input_files import files_of
from meddelinea.io.seg_nrrd import is_seg_nrrd
from meddelinea.io.seg_nrrd import segment_numbers as seg_nrrd_numbers
from meddelinea.labels import LABEL_FORM, NUMBERINGS, LabelIds
from meddelinea.results.files import sidecar_path

#: Endings of masks that can be compared. That of a segmentation of 3D Slicer is one ending.
COMPARED_SUFFIXES = (".seg.nrrd", *READ_SUFFIXES, ".dcm")


@dataclass(frozen=True)
class Pair:
    """A prediction and the reference that it is measured against; `case` is the prediction's name without ending."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True)
class Pairing:
    """The pairs of two folders, and the files of either that have no counterpart."""

    pairs: tuple[Pair, ...]
    without_prediction: tuple[Path, ...] = ()
    without_reference: tuple[Path, ...] = ()


@dataclass(frozen=True)
class LabelNames:
    """Ids of a mask by canonical organ name, without the background, and where the names were found."""

    ids: Mapping[str, int]
    source: str


def pair_files(prediction: Path, reference: Path) -> Pairing:
    """Pair two files, or the masks of two folders.

    In folders the same name makes a pair (endings aside). Of the rest, the same number at the end of the name does
    where no other file of either folder ends with that number: `img0002.nii.gz` and `label0002.nii.gz`.

    Raises
    ------
    InputRefusedError
        If a path is absent, a folder holds no mask, or two masks of a folder have the same name.
    UsageError
        If one is a file and the other a folder, or both are the same.
    """
    for path in (prediction, reference):
        if not path.exists():
            raise InputRefusedError(f"{path}: no such file or folder; expected a mask or a folder of masks")
    if prediction.resolve() == reference.resolve():
        raise UsageError(f"{prediction}: prediction and reference are the same path; give two")
    if prediction.is_dir() != reference.is_dir():
        raise UsageError(f"{prediction} and {reference}: one is a file, the other a folder; give two of a kind")
    if prediction.is_file():
        return Pairing((Pair(mask_name(prediction), prediction, reference),))
    predictions, references = _masks(prediction), _masks(reference)
    match = {name: name for name in predictions if name in references}
    predicted, referred = _by_unique_number(predictions), _by_unique_number(references)
    for number, name in predicted.items():
        other = referred.get(number)
        if other is not None and name not in match and other not in match:
            match[name] = other
    matched = set(match.values())
    return Pairing(
        tuple(Pair(name, predictions[name], references[match[name]]) for name in predictions if name in match),
        tuple(path for name, path in references.items() if name not in matched),
        tuple(path for name, path in predictions.items() if name not in match),
    )


def is_dicom(mask: Path) -> bool:
    """Whether a mask's name is that of a DICOM-SEG."""
    return ending(mask, (".dcm",)) is not None


def may_be_cropped(mask: Path) -> bool:
    """Whether a mask may hold no more than where organs are: a DICOM-SEG, or a segmentation of 3D Slicer."""
    return is_dicom(mask) or is_seg_nrrd(mask)


def mask_name(path: Path) -> str:
    """Name of a mask's file without its ending: `img0002.nii.gz` -> `"img0002"`.

    Raises
    ------
    UsageError
        If it has no ending of a mask.
    """
    if ending(path, COMPARED_SUFFIXES) is None:
        raise UsageError(f"{path}: not a mask's file; expected a name ending in {', '.join(COMPARED_SUFFIXES)}")
    return stem(path, COMPARED_SUFFIXES)


def read_label_names(mask: Path, numbering: str | None) -> LabelNames:
    """Which organ each id of a mask means.

    A DICOM-SEG and a `.seg.nrrd` of 3D Slicer say it themselves. Else the first of these that there is: the sidecar
    (`mask.json` beside `mask.nii.gz`), `labels.json` in the mask's folder, `numbering`. What stands beside a file
    speaks of that very file, so it comes first.

    Parameters
    ----------
    mask
        The mask's file; it need not be read.
    numbering
        A name of `labels.NUMBERINGS` or the path of a JSON file with `{"labels": {"spleen": 1}}` or `{"1": "spleen"}`.

    Raises
    ------
    UsageError
        If nothing names the ids, or `numbering` is neither a known name nor a file.
    InputRefusedError
        If a JSON file is unreadable, of another form, or gives an organ two ids or two organs one id; or as
        `io.dicom_seg.segment_numbers`.
    """
    if is_dicom(mask):
        from meddelinea.io.dicom_seg import segment_numbers

        return LabelNames(segment_numbers(mask), f"segments of {mask.name}")
    if is_seg_nrrd(mask):
        return LabelNames(seg_nrrd_numbers(mask), f"segments of {mask.name}")
    sidecar = mask.with_name(f"{mask_name(mask)}.json")
    files = [path for path in (sidecar, mask.parent / "labels.json") if path.is_file()]
    if files:
        return LabelNames(LabelIds.read(files[0]).one_each(), files[0].name)
    if numbering is None:
        raise UsageError(
            f"{mask}: nothing names its label ids; put {sidecar.name} beside it or labels.json in its "
            f"folder with {LABEL_FORM}, or give such a file or one of the numberings {', '.join(NUMBERINGS)}"
        )
    if numbering in NUMBERINGS:
        return LabelNames({name: index for index, name in NUMBERINGS[numbering].items()}, f"numbering {numbering}")
    path = Path(numbering)
    if not path.is_file():
        raise UsageError(f"unknown numbering '{numbering}'; expected {', '.join(NUMBERINGS)}, or a JSON file's path")
    return LabelNames(LabelIds.read(path).one_each(), path.name)


def files_read(path: Path, numbering: str | None) -> list[Path]:
    """The files that an evaluation of a mask or a folder of masks may read: nothing may be written in their place."""
    masks = (
        [path] if path.is_file() else [mask for mask in visible(path) if ending(mask, READ_SUFFIXES + MASK_SUFFIXES)]
    )
    names = [sidecar_path(mask) for mask in masks if ending(mask, MASK_SUFFIXES)]
    names.append((path if path.is_dir() else path.parent) / "labels.json")
    if numbering is not None:
        names.append(Path(numbering))
    return [*(file for mask in masks for file in files_of(mask)), *names]


def _masks(folder: Path) -> dict[str, Path]:
    """Masks directly in `folder` by name without ending, sorted."""
    masks = by_stem(folder, COMPARED_SUFFIXES)
    if not masks:
        raise InputRefusedError(
            f"{folder}: no mask in this folder; expected files ending in {', '.join(COMPARED_SUFFIXES)}"
        )
    return masks


def _by_unique_number(masks: Mapping[str, Path]) -> dict[int, str]:
    """Names by the number that they end with, where only one name ends with it."""
    numbers = {name: int(found[0]) for name in masks if (found := re.search(r"\d+$", name))}
    counts = Counter(numbers.values())
    return {number: name for name, number in numbers.items() if counts[number] == 1}
