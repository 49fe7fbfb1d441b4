"""From an upload to a scan, within bounds, and from what goes wrong on the way to an answer; in a worker's process."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

from meddelinea.checks.limits import ScanLimits
from meddelinea.checks.scan import examine, require_accepted
from meddelinea.errors import MedDelineaError
from meddelinea.io.room import at_most
from meddelinea.io.volumes import read_scan
from meddelinea.scan import Modality, Scan
from meddelinea.serving.job import JobOutcome, Trouble
from meddelinea.serving.limits import Limits
from meddelinea.serving.memory import at_most_more
from meddelinea.serving.uploads import screen

#: Memory for decoders beside a scan and a copy of it.
DECODER_BYTES = 256 << 20
#: What the system may lack: room, a quota, a disk that works, files that may be open.
LACKING = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EMFILE", "ENFILE"))


def read_upload(upload: Path, limits: Limits) -> Scan:
    """Read a stranger's file, once its header is known to claim no more than the limits allow.

    Raises
    ------
    InputRefusedError
        As `screen` and `read_scan`.
    """
    screen(upload, limits.unpacked_bytes)
    with at_most(limits.unpacked_bytes), at_most_more(2 * limits.unpacked_bytes + DECODER_BYTES):
        return replace(read_scan(upload), name="scan")  # an upload has no name


def check_upload(upload: Path, modality: Modality | None, accepted: ScanLimits, limits: Limits) -> JobOutcome | Trouble:
    """Find out whether a scan may be segmented, before it waits for the model.

    Parameters
    ----------
    upload
        The scan.
    modality
        What the sender says it is.
    accepted
        Which scans the model takes.
    limits
        `unpacked_bytes` of them.

    Returns
    -------
    JobOutcome or Trouble
        `queued` if it may, `refused` with the reason, or what the server lacks.
    """
    facts = JobOutcome(state="queued")
    try:
        scan = read_upload(upload, limits)
        facts = describe(scan, facts)
        examined = examine(scan, accepted, modality if scan.modality is None else None)
        facts = describe(examined, facts)
        require_accepted(examined)
    except (MedDelineaError, OSError) as error:
        answer = answer_to(error, upload)
        return answer if isinstance(answer, Trouble) else replace(facts, state=answer.state, message=answer.message)
    return facts


def describe(scan: Scan, outcome: JobOutcome) -> JobOutcome:
    """An outcome that says what the scan is."""
    spacing_mm = tuple(round(mm, 3) for mm in scan.volume.spacing_mm)
    return replace(outcome, modality=scan.modality, shape=scan.volume.shape, spacing_mm=spacing_mm)


def answer_to(error: MedDelineaError | OSError, upload: Path) -> JobOutcome | Trouble:
    """What the sender is told of an error: that the upload is refused, or what the server lacks.

    Raises
    ------
    OSError
        If it is neither.
    """
    lacking = _lacking(error)
    if lacking is not None:
        return Trouble(f"the server cannot keep what it makes of the scan ({lacking}); ask its operator for space")
    if not isinstance(error, MedDelineaError):
        raise error
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
