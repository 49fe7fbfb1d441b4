"""What a job is: what was asked for, how far it has come, and what came of it.

    receiving -> arrived -> checking -> queued -> running -> done | refused | failed
                       any of these but the last three -> cancelled

A segmentation is checked as soon as it has arrived, and waits for the model only then. A correction ends with its
check, because it needs no model; a learning has nothing to be checked and begins in the queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from meddelinea.scan import Modality

Kind = Literal["segmentation", "correction", "learning"]
State = Literal[
    "receiving", "arrived", "checking", "queued", "running", "done", "refused", "failed", "cancelled"
]  # fmt: skip

#: Final states.
ENDED = ("done", "refused", "failed", "cancelled")
#: States in which a process may take a job, and the state in which it then is.
TAKEN: Mapping[State, State] = {"arrived": "checking", "queued": "running"}
#: Name of the picture of a job in its folder.
THUMBNAIL = "thumbnail.png"


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What was asked for.

    Parameters
    ----------
    kind
        `"segmentation"` of a scan, `"correction"` of a mask by a person, or `"learning"` from corrected scans.
    model
        Name of the model that segments, that made the mask which is corrected, or that learns; empty for the server's.
    modality
        What the sender says the scan is; None where its file says it, or the model knows one only.
    parent
        Of a correction: the job whose mask was corrected.
    original
        Of a correction, and of a segmentation with another model: the job that the scan came with.
    labels
        Of a correction: organ name -> id in the mask that was sent; None where they are those of the mask before.
    label_info
        Of a correction from a client of MONAI Label: what it says of the ids instead, see `names_in_order`.
    comment
        Of a correction: its author's words.
    dataset
        Of a learning: name of the corrected scans that are learnt from.
    steps
        Of a learning: maximum number of training steps.
    """

    kind: Kind = "segmentation"
    model: str = ""
    modality: Modality | None = None
    parent: str | None = None
    original: str | None = None
    labels: Mapping[str, int] | None = None
    label_info: Sequence[Mapping[str, Any]] | None = None
    comment: str = ""
    dataset: str = ""
    steps: int = 400


@dataclass(frozen=True)
class ResultFile:
    """A file that a job produced.

    Parameters
    ----------
    kind
        Kind of file, for programs: `"mask"`, `"labels"`, `"statistics"`, `"scan"`. The page offers kinds that it does
        not know for download as well.
    name
        File name in the job's folder.
    title
        Kind of file, for people.
    """

    kind: str
    name: str
    title: str


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """How a job ended, or passed its check.

    Parameters
    ----------
    state
        `"done"`, `"refused"` (the scan is not one to segment), `"failed"`, or `"queued"` for a scan that passed.
    message
        The reason why the job is not done, for people; empty if it is.
    warnings
        Reasons to be careful with the result.
    scan
        Fingerprint of the voxels: the same scan has the same one in any file format.
    modality
        Modality as which the scan was segmented.
    shape, spacing_mm
        Size of the scan's grid in voxels, and the distance of its voxels in millimetres.
    files
        Files to display and to download.
    expected_dice
        Mean Dice that the model expects of the organs that it found; None where it found none.
    changes
        Of a correction: what was changed of each organ, with the fields of `OrganCorrection`.
    learnt
        Of a learning: what came of it, with the fields of `Learnt`.
    """

    state: State
    message: str = ""
    warnings: tuple[str, ...] = ()
    scan: str | None = None
    modality: Modality | None = None
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    files: tuple[ResultFile, ...] = ()
    expected_dice: float | None = None
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    learnt: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Trouble:
    """What keeps the server from a job that it may do later, such as a full disk; `message` is for people."""

    message: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request on its way through the server. Times are in seconds since 1970.

    `slices_done` of `slices` are segmented; of a learning they are training steps, and `stage` says of which part.
    """

    id: str
    state: State
    request: JobRequest
    suffix: str
    created: float
    ended: float | None
    attempts: int
    slices_done: int
    slices: int
    stage: str
    outcome: JobOutcome
