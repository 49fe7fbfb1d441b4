"""Measuring predictions against references: one case, or folders of them.

Organs are matched by name, so the two sides may number them differently. Nothing is dropped: a case without a
prediction and a case that cannot be compared are failures of the report, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.evaluation.metrics import NSD_TOLERANCE_MM, OrganScore, score_organ
from meddelinea.evaluation.pairing import (
    LabelNames,
    Pair,
    is_dicom,
    mask_name,
    may_be_cropped,
    pair_files,
    read_label_names,
)
from meddelinea.io.seg_nrrd import is_seg_nrrd, read_seg_nrrd
from meddelinea.io.volumes import read_volume
from meddelinea.labels import LabelIds, canonical_name
from meddelinea.volume import Volume


@dataclass(frozen=True)
class CaseResult:
    """The scores of one case.

    Attributes
    ----------
    case
        Its name; of two files that of the prediction without its ending.
    scores
        One for each organ that was compared.
    only_in_prediction, only_in_reference
        Organs that only one side names; they were not compared.
    """

    case: str
    scores: tuple[OrganScore, ...]
    only_in_prediction: tuple[str, ...] = ()
    only_in_reference: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FilesResult(CaseResult):
    """The scores of one case whose masks were read from files.

    Attributes
    ----------
    prediction, reference
        Names of the two files, without folders: those often hold patients' names.
    prediction_names, reference_names
        Where the organ names of their ids were found.
    unnamed_in_prediction, unnamed_in_reference
        Ids that occur in a mask and have no name; their voxels belong to no organ.
    """

    prediction: str
    reference: str
    prediction_names: str
    reference_names: str
    unnamed_in_prediction: tuple[int, ...]
    unnamed_in_reference: tuple[int, ...]


@dataclass(frozen=True)
class CaseFailure:
    """A case that could not be measured, and why."""

    case: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Every case of a comparison. With any `failures` the command ends with exit code 4."""

    cases: tuple[CaseResult, ...]
    failures: tuple[CaseFailure, ...]
    nsd_tolerance_mm: float


def evaluate_case(
    prediction: Volume,
    prediction_labels: Mapping[str, int],
    reference: Volume,
    reference_labels: Mapping[str, int],
    organs: tuple[str, ...] | None = None,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
) -> list[OrganScore]:
    """Score each organ of a label volume against a reference on the same grid.

    Parameters
    ----------
    prediction, reference
        Label ids. Axes may be permuted and flipped between the two if the affines say so.
    prediction_labels, reference_labels
        Ids by organ name, in any spelling that `labels.canonical_name` knows.
    organs
        Names of the organs to score; by default those that both sides name, in the prediction's order.
    nsd_tolerance_mm
        Tolerance of the normalised surface Dice.

    Raises
    ------
    UsageError
        If an organ asked for has no id on a side, or the sides name no organ in common.
    InputRefusedError
        If the grids differ or a volume does not hold whole numbers.
    """
    predicted_ids = LabelIds.of(prediction_labels, "prediction").one_each()
    reference_ids = LabelIds.of(reference_labels, "reference").one_each()
    compared = _compared_organs(predicted_ids, reference_ids, organs)
    _require_ids(prediction, "prediction")
    _require_ids(reference, "reference")
    aligned = _on_the_grid_of(reference, prediction)
    return [
        score_organ(
            organ,
            aligned.array == predicted_ids[organ],
            reference.array == reference_ids[organ],
            reference.affine,
            nsd_tolerance_mm,
        )
        for organ in compared
    ]


def evaluate_paths(
    prediction: Path,
    reference: Path,
    *,
    organs: tuple[str, ...] | None = None,
    prediction_numbering: str | None = None,
    reference_numbering: str | None = None,
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM,
) -> Report:
    """Score a mask file, or each mask of a folder, against its reference.

    Files are paired by `pairing.pair_files` and ids named by `pairing.read_label_names`.

    Parameters
    ----------
    prediction, reference
        Two files or two folders.
    organs
        As in `evaluate_case`, for every case.
    prediction_numbering, reference_numbering
        A name of `labels.NUMBERINGS` or a JSON file's path, for masks without names of their own.
    nsd_tolerance_mm
        Tolerance of the normalised surface Dice.

    Returns
    -------
    Report
        Files without a counterpart and cases that were refused are its failures.

    Raises
    ------
    UsageError
        Before anything is measured: as `evaluate_case`, `pair_files` and `read_label_names`.
    InputRefusedError
        If a folder holds no mask, or two single files cannot be compared.
    """
    pairing = pair_files(prediction, reference)
    failures = [
        *(
            CaseFailure(mask_name(path), f"{path}: no prediction for this reference")
            for path in pairing.without_prediction
        ),
        *(
            CaseFailure(mask_name(path), f"{path}: no reference for this prediction")
            for path in pairing.without_reference
        ),
    ]
    # All names first: they cost nothing, and a wrong request should not surface after an hour of measuring.
    named: list[tuple[Pair, LabelNames, LabelNames]] = []
    for pair in pairing.pairs:
        try:
            predicted = read_label_names(pair.prediction, prediction_numbering)
            referred = read_label_names(pair.reference, reference_numbering)
        except InputRefusedError as error:
            if prediction.is_file():
                raise
            failures.append(CaseFailure(pair.case, str(error)))
            continue
        try:
            _compared_organs(predicted.ids, referred.ids, organs)
        except UsageError as error:
            raise UsageError(f"{pair.prediction} and {pair.reference}: {error}") from error
        named.append((pair, predicted, referred))
    cases = []
    for pair, predicted, referred in named:
        try:
            cases.append(_evaluate_pair(pair, predicted, referred, organs, nsd_tolerance_mm))
        except InputRefusedError as error:
            if prediction.is_file():
                raise
            failures.append(CaseFailure(pair.case, str(error)))
    return Report(tuple(cases), tuple(failures), nsd_tolerance_mm)


def _evaluate_pair(
    pair: Pair, predicted: LabelNames, referred: LabelNames, organs: tuple[str, ...] | None, nsd_tolerance_mm: float
) -> FilesResult:
    compared = _compared_organs(predicted.ids, referred.ids, organs)
    prediction, reference = _read_mask(pair.prediction, compared), _read_mask(pair.reference, compared)
    if may_be_cropped(pair.prediction) or may_be_cropped(pair.reference):
        prediction, reference = _continued(pair, prediction, reference)
    try:
        scores = evaluate_case(prediction, predicted.ids, reference, referred.ids, organs, nsd_tolerance_mm)
    except InputRefusedError as error:
        raise InputRefusedError(f"{pair.prediction} and {pair.reference}: {error}") from error
    return FilesResult(
        case=pair.case,
        prediction=pair.prediction.name,
        reference=pair.reference.name,
        prediction_names=predicted.source,
        reference_names=referred.source,
        scores=tuple(scores),
        only_in_prediction=tuple(name for name in predicted.ids if name not in referred.ids),
        only_in_reference=tuple(name for name in referred.ids if name not in predicted.ids),
        unnamed_in_prediction=_unnamed_ids(prediction, predicted.ids),
        unnamed_in_reference=_unnamed_ids(reference, referred.ids),
    )


def _read_mask(path: Path, organs: tuple[str, ...]) -> Volume:
    """Label ids of a mask, those of a DICOM-SEG or a `.seg.nrrd` being its segment numbers; of the latter `organs`."""
    if is_seg_nrrd(path):
        return read_seg_nrrd(path, organs)
    if not is_dicom(path):
        return read_volume(path)
    from meddelinea.io.dicom_seg import read_dicom_seg

    return read_dicom_seg(path)[0]


def _continued(pair: Pair, prediction: Volume, reference: Volume) -> tuple[Volume, Volume]:
    """Both masks over the space of the two together, background where one does not reach.

    A DICOM-SEG or a `.seg.nrrd` means background by not reaching somewhere, as it may hold only where organs are. Of
    any other file it means that it is of another scan: the masks then come back as they are, as do those whose voxels
    do not coincide.
    """
    affine, shape = reference.grid_over(prediction)
    grown = []
    for path, mask in ((pair.prediction, prediction), (pair.reference, reference)):
        there = mask.onto(affine, shape)
        if there is None or (there.array.size != mask.array.size and not may_be_cropped(path)):
            return prediction, reference
        grown.append(there)
    return grown[0], grown[1]


def _compared_organs(
    predicted: Mapping[str, int], referred: Mapping[str, int], organs: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Canonical names of the organs to score; UsageError where there is none or one asked for cannot be scored."""
    if organs is None:
        shared = tuple(name for name in predicted if name in referred)
        if not shared:
            raise UsageError(
                f"the prediction names {', '.join(predicted) or 'no organ'} and the reference "
                f"{', '.join(referred) or 'no organ'}: none in common; check both numberings"
            )
        return shared
    wanted = tuple(canonical_name(name) for name in organs)
    if not wanted or len(set(wanted)) != len(wanted):
        raise UsageError(f"organs to score: '{', '.join(wanted)}'; expected one or more, each once")
    for side, ids in (("prediction", predicted), ("reference", referred)):
        lacking = [name for name in wanted if name not in ids]
        if lacking:
            raise UsageError(f"the {side} does not name {', '.join(lacking)}; it names: {', '.join(ids)}")
    return wanted


def _require_ids(volume: Volume, side: str) -> None:
    """Refuse voxels that are not label ids: a scan or a probability map given in place of a mask."""
    array = volume.array
    if np.issubdtype(array.dtype, np.floating):
        fractional = array[array != np.rint(array)]  # NaN differs from itself, so it is among them
        if fractional.size:
            raise InputRefusedError(f"the {side} holds {fractional[0]}; expected whole label ids: is it a mask?")
    if array.min(initial=0) < 0:
        raise InputRefusedError(f"the {side} holds {array.min()}; expected label ids of at least 0: is it a mask?")


def _on_the_grid_of(reference: Volume, prediction: Volume) -> Volume:
    """The prediction with its axes in the reference's order; refused where the grids then differ."""
    aligned = prediction.onto(reference.affine, reference.array.shape)
    if aligned is not None and aligned.array.size == prediction.array.size:
        return aligned
    raise InputRefusedError(
        f"the prediction's grid ({_describe(prediction)}) is not the reference's ({_describe(reference)}); "
        "predict from the scan that the reference was drawn on, or resample the prediction to the reference's grid"
    )


def _describe(volume: Volume) -> str:
    spacing = " x ".join(f"{s:.4g}" for s in volume.spacing_mm)
    origin = ", ".join(f"{x:.2f}" for x in volume.affine[:3, 3])
    return f"{volume.array.shape} voxels of {spacing} mm, {volume.orientation}, first voxel at ({origin}) mm"


def _unnamed_ids(volume: Volume, ids: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sorted({int(index) for index in np.unique(volume.array)} - {0, *ids.values()}))
