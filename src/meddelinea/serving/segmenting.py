"""One uploaded scan to its results, in the worker's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.serving.jobs import JobOutcome, ResultFile
from meddelinea.serving.limits import Limits
from meddelinea.serving.uploads import screen

if TYPE_CHECKING:
    from meddelinea.results.result import Result
    from meddelinea.scan import Modality
    from meddelinea.segmentation.model import Model


def segment_upload(
    model: Model, upload: Path, modality: Modality | None, limits: Limits, progress: Callable[[int, int], None]
) -> JobOutcome:
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
    JobOutcome
        `done`, or `refused` with the reason. Other errors are raised.
    """
    try:
        return _segment(model, upload, modality, limits, progress)
    except MedDelineaError as error:  # the server's own path is of no use to the sender
        said = str(error).replace(f"{upload}: ", "").replace(str(upload), "the upload")
        return JobOutcome(state="refused", message=said)


def _segment(
    model: Model, upload: Path, modality: Modality | None, limits: Limits, progress: Callable[[int, int], None]
) -> JobOutcome:
    from meddelinea.data.fingerprint import fingerprint
    from meddelinea.io.volumes import read_scan
    from meddelinea.results.result import segment

    screen(upload, limits.unpacked_bytes)
    scan = replace(read_scan(upload), name="scan")  # an upload has no name
    result = segment(scan, model, modality=modality if scan.modality is None else None, progress=progress)
    scan = result.scan
    return JobOutcome(
        state="done",
        warnings=tuple(finding.message for finding in result.findings),
        scan=fingerprint(scan.volume),
        modality=scan.modality,
        shape=scan.volume.shape,
        spacing_mm=tuple(round(mm, 3) for mm in scan.volume.spacing_mm),
        files=tuple(write_results(result, model, upload)),
    )


def write_results(result: Result, model: Model, upload: Path) -> list[ResultFile]:
    """Write all that a job gives beside its upload; each file that is listed here can be downloaded.

    A DICOM-SEG is among them where the upload is a series that one can refer to.
    """
    from meddelinea.files import write_json
    from meddelinea.io.volumes import write_volume
    from meddelinea.results.files import require_referable, sidecar_path, statistics_document, write_segmentation
    from meddelinea.results.page import write_scan_report

    folder, scan, made = upload.parent, result.scan, result.segmentation
    mask = folder / "mask.nii.gz"
    write_segmentation(made, mask, scan)
    document = statistics_document(result.statistics, scan.modality, made)
    write_json(document, folder / "statistics.json")
    # Not compressed: it is looked at more often than it is sent far.
    write_volume(scan.volume, folder / "scan.nii", scan.forms)
    write_volume(result.uncertainty, folder / "uncertainty.nii.gz", scan.forms)
    write_scan_report(folder / "report.html", result, model.files.card)
    files = [
        ResultFile("mask", mask.name, "Mask (NIfTI)"),
        ResultFile("labels", sidecar_path(mask).name, "Organ ids and settings (JSON)"),
        ResultFile("statistics", "statistics.json", "Measurements (JSON)"),
        ResultFile("report", "report.html", "Report (HTML)"),
        ResultFile("uncertainty", "uncertainty.nii.gz", "Uncertainty in per cent (NIfTI)"),
        ResultFile("scan", "scan.nii", "Scan (NIfTI)"),
    ]
    try:
        require_referable(scan, "dicom_seg")
    except InputRefusedError:
        return files
    write_segmentation(made, folder / "segmentation.dcm", scan, kind="dicom_seg")
    return [*files, ResultFile("dicom_seg", "segmentation.dcm", "Mask (DICOM-SEG)")]
