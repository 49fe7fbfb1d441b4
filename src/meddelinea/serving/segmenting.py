"""One uploaded scan to its results, in the worker's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meddelinea.errors import MedDelineaError
from meddelinea.serving.jobs import Outcome, ResultFile
from meddelinea.serving.limits import Limits
from meddelinea.serving.uploads import screen

if TYPE_CHECKING:
    from meddelinea.inference.model import Model
    from meddelinea.inference.predict import Segmentation
    from meddelinea.volume import Modality, Volume


def segment_upload(
    model: Model, upload: Path, modality: Modality | None, limits: Limits, progress: Callable[[int, int], None]
) -> Outcome:
    """Check, read and segment `upload`, and write the results beside it.

    Parameters
    ----------
    model
        From `load_model`.
    upload
        The scan, alone in its folder.
    modality
        What the sender says it is; None where the file says it, or the model knows one only.
    limits
        `unpacked_bytes` of them.
    progress
        Called with (slices done, slices in all).

    Returns
    -------
    Outcome
        `done`, or `refused` with the reason. Other errors are raised.
    """
    try:
        return _segment(model, upload, modality, limits, progress)
    except MedDelineaError as error:  # the server's own path is of no use to the sender
        return Outcome("refused", str(error).replace(f"{upload}: ", "").replace(str(upload), "the upload"))


def _segment(
    model: Model, upload: Path, modality: Modality | None, limits: Limits, progress: Callable[[int, int], None]
) -> Outcome:
    from meddelinea.data.fingerprint import fingerprint
    from meddelinea.inference.predict import segment, with_modality
    from meddelinea.inference.quality import check_volume
    from meddelinea.io import read_volume

    screen(upload, limits.unpacked_bytes)
    volume = read_volume(upload)
    if volume.modality is None:
        volume = replace(volume, modality=modality)
    volume = with_modality(volume, model.files.modalities)
    findings = check_volume(volume, model.files.modalities)
    refusals = [finding.message for finding in findings if finding.level == "refuse"]
    if refusals:
        return Outcome("refused", "; ".join(refusals))
    segmentation = segment(model, volume, progress=progress)
    return Outcome(
        "done",
        warnings=tuple(finding.message for finding in findings),
        scan=fingerprint(volume),
        modality=volume.modality,
        shape=tuple(volume.array.shape),
        spacing_mm=tuple(round(mm, 3) for mm in volume.spacing_mm),
        files=tuple(write_results(volume, segmentation, upload.parent)),
    )


def write_results(volume: Volume, segmentation: Segmentation, folder: Path) -> list[ResultFile]:
    """Write all that a job gives; each file that is listed here can be downloaded.

    Parameters
    ----------
    volume, segmentation
        The scan and its mask.
    folder
        Where the files go.
    """
    from meddelinea.inference.output import sidecar_path, statistics_document, write_json, write_segmentation
    from meddelinea.inference.statistics import organ_statistics
    from meddelinea.io import write_volume

    mask = folder / "mask.nii.gz"
    write_segmentation(segmentation, mask, Path("scan"))  # an upload has no name
    measured = organ_statistics(volume, segmentation.mask, segmentation.labels)
    write_json(statistics_document(measured, volume.modality), folder / "statistics.json")
    write_volume(volume, folder / "scan.nii")  # not compressed: it is looked at more often than it is sent far
    return [
        ResultFile("mask", mask.name, "Mask (NIfTI)"),
        ResultFile("labels", sidecar_path(mask).name, "Organ ids and settings (JSON)"),
        ResultFile("statistics", "statistics.json", "Measurements (JSON)"),
        ResultFile("scan", "scan.nii", "Scan (NIfTI)"),
    ]
