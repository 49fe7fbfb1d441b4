"""One uploaded scan to its results, in the worker's process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.serving.job import THUMBNAIL, JobOutcome, ResultFile, Trouble
from meddelinea.serving.limits import Limits
from meddelinea.serving.reading import answer_to, describe, read_upload

if TYPE_CHECKING:
    from meddelinea.results.result import Result
    from meddelinea.scan import Modality
    from meddelinea.segmentation.model import Model


def segment_upload(
    model: Model, upload: Path, modality: Modality | None, limits: Limits, progress: Callable[[int, int], None]
) -> JobOutcome | Trouble:
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
    JobOutcome or Trouble
        `done`, or `refused` with the reason, or what the server lacks. Other errors are raised.
    """
    try:
        return _segment(model, upload, modality, limits, progress)
    except (MedDelineaError, OSError) as error:
        return answer_to(error, upload)


def _segment(
    model: Model, upload: Path, modality: Modality | None, limits: Limits, progress: Callable[[int, int], None]
) -> JobOutcome:
    from meddelinea.data.fingerprint import fingerprint
    from meddelinea.results.result import segment

    scan = read_upload(upload, limits)
    result = segment(scan, model, modality=modality if scan.modality is None else None, progress=progress)
    expected = [organ.expected_dice for organ in result.segmentation.confidence.values()]
    found = [dice for dice in expected if dice is not None]
    outcome = JobOutcome(
        state="done",
        warnings=tuple(finding.message for finding in result.findings),
        scan=fingerprint(result.scan.volume),
        files=tuple(write_results(result, model.files.card, upload.parent)),
        expected_dice=float(np.mean(found)) if found else None,
    )
    return describe(result.scan, outcome)


def write_results(
    result: Result, card: str, folder: Path, remarks: Mapping[str, Any] | None = None
) -> list[ResultFile]:
    """Write all that a job gives; each file that is listed here can be downloaded.

    A DICOM-SEG is among them where the scan is a series that one can refer to, and the uncertainty where a model made
    the mask.

    Parameters
    ----------
    result
        The scan, its mask and its measurements.
    card
        The model's card.
    folder
        Where the files go.
    remarks
        What else the file of organ ids and settings is to say.
    """
    from meddelinea.files import whole, write_json
    from meddelinea.io.volumes import write_volume
    from meddelinea.results.files import require_referable, sidecar_path, statistics_document, write_segmentation
    from meddelinea.results.page import write_scan_report
    from meddelinea.results.pictures import thumbnail

    scan, made = result.scan, result.segmentation
    mask = folder / "mask.nii.gz"
    write_segmentation(made, mask, scan, remarks=remarks)
    document = statistics_document(result.statistics, scan.modality, made)
    write_json(document, folder / "statistics.json")
    # Not compressed: it is looked at more often than it is sent far.
    write_volume(scan.volume, folder / "scan.nii", scan.forms)
    write_scan_report(folder / "report.html", result, card)
    with whole(folder / THUMBNAIL) as part:
        part.write_bytes(thumbnail(scan, result.mask, result.labels))
    files = [
        ResultFile("mask", mask.name, "Mask (NIfTI)"),
        ResultFile("labels", sidecar_path(mask).name, "Organ ids and settings (JSON)"),
        ResultFile("statistics", "statistics.json", "Measurements (JSON)"),
        ResultFile("report", "report.html", "Report (HTML)"),
        ResultFile("scan", "scan.nii", "Scan (NIfTI)"),
    ]
    if made.uncertainty is not None:
        write_volume(result.uncertainty, folder / "uncertainty.nii.gz", scan.forms)
        files.append(ResultFile("uncertainty", "uncertainty.nii.gz", "Uncertainty in per cent (NIfTI)"))
    try:
        require_referable(scan, "dicom_seg")
    except InputRefusedError:
        return files
    write_segmentation(made, folder / "segmentation.dcm", scan, kind="dicom_seg")
    return [*files, ResultFile("dicom_seg", "segmentation.dcm", "Mask (DICOM-SEG)")]
