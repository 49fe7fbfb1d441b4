"""One uploaded scan to its results, in the worker's process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.serving.jobs import JobOutcome, ResultFile, Trouble
from meddelinea.serving.limits import Limits
from meddelinea.serving.memory import at_most_more
from meddelinea.serving.uploads import screen

#: Memory for decoders beside a scan and a copy of it.
DECODER_BYTES = 256 << 20
#: What the system may lack: room, a quota, a disk that works, files that may be open.
LACKING = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EMFILE", "ENFILE"))

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
        lacking = _lacking(error)
        if lacking is not None:
            return Trouble(f"the server cannot keep what it makes of the scan ({lacking}); ask its operator for space")
        if not isinstance(error, MedDelineaError):
            raise
        # The server's own paths are of no use to the sender.
        said = str(error).replace(f"{upload}: ", "").replace(str(upload), "the upload")
        return JobOutcome(state="refused", message=said.replace(f"{upload.parent}{os.sep}", ""))


def _lacking(error: BaseException | None) -> str | None:
    """What the system lacked where that is why a job failed, and not its scan; None where it is not."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None and error.errno in LACKING:
            return os.strerror(error.errno)
        error = error.__cause__ or error.__context__
    return None


def _segment(
    model: Model, upload: Path, modality: Modality | None, limits: Limits, progress: Callable[[int, int], None]
) -> JobOutcome:
    from meddelinea.data.fingerprint import fingerprint
    from meddelinea.io.room import at_most
    from meddelinea.io.volumes import read_scan
    from meddelinea.results.result import segment

    screen(upload, limits.unpacked_bytes)
    with at_most(limits.unpacked_bytes), at_most_more(2 * limits.unpacked_bytes + DECODER_BYTES):
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
