"""What a worker's process is asked to do. Each task is sent there as it stands, and runs by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from meddelinea.checks.limits import ScanLimits
from meddelinea.scan import Modality
from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.job import Job, JobOutcome, JobRequest, Trouble
from meddelinea.serving.jobs import JobStore
from meddelinea.serving.limits import Limits
from meddelinea.serving.models import Models

if TYPE_CHECKING:
    from meddelinea.segmentation.model import Model


class Progress(Protocol):
    """Called with what is done of what in all, and of which part of the work."""

    def __call__(self, done: int, total: int, stage: str = "") -> None: ...


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What a process has for its tasks.

    Parameters
    ----------
    limits
        Limits on what is read.
    load
        Gives the model of a folder or a name, see `load_model`.
    progress
        Raises `CancelledError` where the task is to be dropped.
    """

    limits: Limits
    load: Callable[[str], Model]
    progress: Progress


class Task(Protocol):
    """Something to do for a job, in whose folder temporary files go."""

    @property
    def folder(self) -> Path: ...

    def run(self, bench: Bench) -> JobOutcome | Trouble:
        """Do it, and say what came of it."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Find out whether a scan may be segmented."""

    folder: Path
    upload: Path
    modality: Modality | None
    accepted: ScanLimits

    def run(self, bench: Bench) -> JobOutcome | Trouble:
        """See `check_upload`."""
        from meddelinea.serving.reading import check_upload

        return check_upload(self.upload, self.modality, self.accepted, bench.limits)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Segment a scan with the model of a source, see `Models.source`."""

    folder: Path
    upload: Path
    modality: Modality | None
    model: str

    def run(self, bench: Bench) -> JobOutcome | Trouble:
        """See `segment_upload`."""
        from meddelinea.serving.segmenting import segment_upload

        return segment_upload(bench.load(self.model), self.upload, self.modality, bench.limits, bench.progress)


@dataclass(frozen=True, kw_only=True)
class Correct:
    """Make a result of a mask that a person has corrected; `parent` is the folder of the job that it was of."""

    folder: Path
    upload: Path
    request: JobRequest
    parent: Path
    kept: CorrectedScans

    def run(self, bench: Bench) -> JobOutcome | Trouble:
        """See `correct_mask`."""
        from meddelinea.serving.correcting import correct_mask

        return correct_mask(
            self.folder, self.upload, self.request, parent=self.parent, kept=self.kept, limits=bench.limits
        )


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Learn from corrected scans."""

    folder: Path
    model: str
    dataset: Path
    steps: int
    models: Path

    def run(self, bench: Bench) -> JobOutcome | Trouble:
        """See `learn`."""
        from meddelinea.serving.learning import learn

        return learn(
            self.folder, self.model, self.dataset, steps=self.steps, models=self.models, progress=bench.progress
        )


@dataclass(frozen=True)
class Tasks:
    """What is to be done for each job of a server."""

    store: JobStore
    models: Models
    kept: CorrectedScans

    def on_arrival(self, job: Job) -> Task:
        """For a job that has arrived."""
        folder, upload, request = self.store.folder_of(job), self.store.upload_of(job), job.request
        if request.kind == "correction":
            parent = self.store.folder_of(job).with_name(str(request.parent))
            return Correct(folder=folder, upload=upload, request=request, parent=parent, kept=self.kept)
        accepted = self.models.find(request.model).limits
        return Check(folder=folder, upload=upload, modality=request.modality, accepted=accepted)

    def in_queue(self, job: Job) -> Task:
        """For a job in the queue."""
        folder, request = self.store.folder_of(job), job.request
        model = self.models.source(request.model)
        if request.kind == "learning":
            dataset = self.kept.path(request.dataset)
            return Learn(folder=folder, model=model, dataset=dataset, steps=request.steps, models=self.models.folder)
        return Segment(folder=folder, upload=self.store.upload_of(job), modality=request.modality, model=model)
