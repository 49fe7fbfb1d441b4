"""A folder of scans in, a folder of masks out: each case for itself, whole or not at all, and done once.

A mask's sidecar says what was asked for, so that a second run knows which results still hold; beside the masks stand
`status.jsonl`, a line a case as they end, and `statistics.csv`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from meddelinea.checks.scan import examine, require_accepted
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.files import append_line, ensure_writable, read_object, remove_unfinished, whole, write_text
from meddelinea.folders.found import FoundScans, ScanCase
from meddelinea.io.volumes import read_scan
from meddelinea.pool.local import in_this_process
from meddelinea.pool.pool import Engine, Progress
from meddelinea.results.files import sidecar_path, statistics_document, write_segmentation
from meddelinea.results.result import Result
from meddelinea.scan import Modality
from meddelinea.segmentation.model import ModelFiles, load_model, read_model_files, require_device
from meddelinea.segmentation.predict import segment
from meddelinea.segmentation.sampling import Sampling
from meddelinea.version import __version__

STATUS_FILE = "status.jsonl"
STATISTICS_FILE = "statistics.csv"


@dataclass(frozen=True, kw_only=True)
class ScanOutcome:
    """What became of a scan.

    Parameters
    ----------
    state
        `done`; `present`: it was done before; `refused`: its input would give a wrong mask; `failed`.
    reason
        Why it was refused or failed.
    seconds
        Time spent on it; waiting for the network does not count.
    warnings
        What is to be taken care of in its mask.
    """

    case: ScanCase
    state: str
    reason: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


class ExtraOutputs(Protocol):
    """What else is made of each scan beside its mask. It goes to the workers, so it can be pickled."""

    def paths(self, case: ScanCase) -> tuple[Path, ...]:
        """The files, which stand where the case is done."""

    def write(self, case: ScanCase, result: Result, card: str) -> None:
        """Write them; `card` is the model's."""


def segment_scans(
    found: FoundScans,
    output: Path,
    sampling: Sampling | None = None,
    *,
    model: str | Path | ModelFiles = "small",
    device: str = "auto",
    modality: Modality | None = None,
    extras: ExtraOutputs | None = None,
    overwrite: bool = False,
    engine: Engine[ScanCase, ScanOutcome] = in_this_process,
    progress: Progress = lambda name, done, total: None,
) -> Generator[ScanOutcome, None, None]:
    """Segment scans and yield what became of each as it ends; the table is written after the last, or when closed.

    Results of an earlier run are left alone where scan, model and settings are the same. A case that cannot be
    segmented leaves no mask, an outdated one of an earlier run included. One run at a time may write to a folder.

    Parameters
    ----------
    found
        From `find_scans`.
    output
        Folder of the status file and of the table of statistics; made if absent.
    sampling
        How masks are sampled; the model's own way where None.
    model, device
        As `load_model` takes them; each worker loads the model.
    modality
        What the scans are where their files do not say it; None where the model tells.
    extras
        What else is made of each scan; None for masks and no more.
    overwrite
        Redo what was done before.
    engine
        Where: `in_this_process`, `on_this_machine` or `on_cluster` of `pool`.
    progress
        Called with (name of the case, slices done, slices in all).

    Raises
    ------
    WeightsMissingError, UsageError
        If the model cannot be loaded, or the engine not be had.
    InputRefusedError
        If the model does not know an organ, or the output folder cannot be written.
    UsageError
        If two files would be one, or a scan be overwritten.
    """
    sampling = sampling or Sampling()
    files = model if isinstance(model, ModelFiles) else read_model_files(model)
    sampling.labels(files.labels)
    require_device(device)
    run = _Run(
        model=files.source,
        digest=_model_digest(files.folder),
        device=device,
        modality=modality,
        sampling=sampling,
        extras=extras,
        overwritten_by=uuid.uuid4().hex if overwrite else None,
    )
    _require_apart(found, extras)
    _make_folders(output, (path for case in found.cases for path in run.outputs(case)))
    ensure_writable(output / STATUS_FILE, (".jsonl",))

    due = []
    with _status(output / STATUS_FILE) as record:
        for case in found.cases:
            remove_unfinished(case.output)
            remove_unfinished(sidecar_path(case.output))
            if run.is_done(case):
                yield record(ScanOutcome(case=case, state="present"))
            else:
                due.append(case)
        try:
            with closing(engine(partial(_Segmenter, run), due, progress)) as outcomes:
                for ended in outcomes:
                    outcome = ended.answer or ScanOutcome(case=ended.item, state="failed", reason=ended.reason)
                    if outcome.state == "present":  # its worker died between writing it and saying so
                        outcome = replace(outcome, state="done")
                    elif outcome.state != "done":
                        run.discard(outcome.case)
                    yield record(outcome)
        finally:
            for case in due:
                for path in run.outputs(case):
                    remove_unfinished(path)
            _write_statistics(found.cases, output / STATISTICS_FILE)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is the same for all scans of a run; it goes to the workers.

    Parameters
    ----------
    model
        What a worker loads it by.
    device, modality, sampling, extras
        As of `segment_scans`.
    digest
        Of the model's files: another model under the same name is another one.
    overwritten_by
        Name of the run whose masks alone are taken for done; None where those of earlier runs are, too.
    """

    model: str
    digest: str
    device: str
    modality: Modality | None
    sampling: Sampling
    extras: ExtraOutputs | None
    overwritten_by: str | None

    def outputs(self, case: ScanCase) -> tuple[Path, ...]:
        """All files of a case."""
        extras = () if self.extras is None else self.extras.paths(case)
        return case.output, sidecar_path(case.output), *extras

    def request(self, case: ScanCase) -> str:
        """SHA-256 of all that a mask depends on; the scan's files go by name, size and time, as in `make`."""
        sampling = asdict(replace(self.sampling, batch_size=1))  # which changes no mask
        scan = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _files_of(case.source)]
        asked = [__version__, self.digest, self.modality, sampling, scan]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def is_done(self, case: ScanCase) -> bool:
        """Whether the case's files stand, are what is asked for, and were made by the run that is to make them."""
        sidecar = _read_sidecar(case)
        there = all(path.is_file() for path in self.outputs(case))
        made = self.overwritten_by in (None, sidecar.get("run"))
        return there and made and sidecar.get("request") == self.request(case)

    def discard(self, case: ScanCase) -> None:
        """Remove what an earlier run made of what is now refused or fails."""
        if "request" in _read_sidecar(case):
            for path in self.outputs(case):
                path.unlink(missing_ok=True)


class _Segmenter:
    """What a worker does with a case: the model is loaded once, and its network is used by one case at a time."""

    def __init__(self, run: _Run, threads: int | None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.writing = threading.Lock()
        self._network = threading.Lock()
        self._run = run
        self._model = load_model(run.model, run.device)

    def __call__(self, case: ScanCase, progress: Progress) -> ScanOutcome:
        try:
            return self._segment(case, progress)
        except InputRefusedError as error:
            return ScanOutcome(case=case, state="refused", reason=str(error))

    def _segment(self, case: ScanCase, progress: Progress) -> ScanOutcome:
        run, files = self._run, self._model.files
        if run.is_done(case):
            return ScanOutcome(case=case, state="present")
        request = run.request(case)

        began = time.monotonic()
        scan = examine(read_scan(case.source), files.modalities, run.modality)
        require_accepted(scan)
        read_seconds = time.monotonic() - began

        with self._network:
            began = time.monotonic()
            segmentation = segment(self._model, scan, run.sampling, partial(progress, case.name))
        result = Result.of(scan, segmentation)
        document = statistics_document(result.statistics, scan.modality, segmentation)
        remarks = {"request": request, "statistics": document}
        if run.overwritten_by is not None:
            remarks["run"] = run.overwritten_by

        with self.writing:
            if run.extras is not None:
                run.extras.write(case, result, files.card)
            write_segmentation(segmentation, case.output, scan, remarks=remarks)
        seconds = round(read_seconds + time.monotonic() - began, 3)
        warnings = tuple(finding.message for finding in result.findings)
        return ScanOutcome(case=case, state="done", seconds=seconds, warnings=warnings)


def status_line(outcome: ScanOutcome) -> dict[str, Any]:
    """What the status file says of a case, as plain JSON types."""
    case = {"case": outcome.case.name, "input": str(outcome.case.source), "output": str(outcome.case.output)}
    rest = {key: value for key, value in asdict(outcome).items() if key != "case"}
    return case | rest | {"warnings": list(outcome.warnings)}


@contextmanager
def _status(path: Path) -> Iterator[Callable[[ScanOutcome], ScanOutcome]]:
    """What records an outcome in a status file that is begun anew; the line is there when the call returns."""
    write_text("", path)

    def record(outcome: ScanOutcome) -> ScanOutcome:
        append_line(json.dumps(status_line(outcome), ensure_ascii=False), path)
        return outcome

    yield record


def _require_apart(found: FoundScans, extras: ExtraOutputs | None) -> None:
    """Refuse extra outputs that are a mask, a sidecar or a scan."""
    if extras is None:
        return
    taken = {path.resolve() for case in found.cases for path in (case.source, case.output, sidecar_path(case.output))}
    for case in found.cases:
        for path in extras.paths(case):
            if path.resolve() in taken:
                raise UsageError(f"{path}: is a scan or a mask; choose another folder for what stands beside the masks")


def _make_folders(output: Path, files: Iterable[Path]) -> None:
    for folder in {output, *(path.parent for path in files)}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputRefusedError(f"{folder}: cannot make this folder ({error.strerror}); choose another") from error


def _model_digest(folder: Path) -> str:
    """SHA-256 of a model's files: another model under the same name is another one."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _files_of(scan: Path) -> list[Path]:
    if scan.is_dir():
        return sorted(path for path in scan.rglob("*") if path.is_file())
    if scan.suffix.lower() == ".nhdr":  # its voxels are in a file beside it
        return sorted(path for path in scan.parent.glob(f"{scan.stem}.*") if path.is_file())
    return [scan] if scan.exists() else []


def _read_sidecar(case: ScanCase) -> dict[str, Any]:
    """What the sidecar of a case says; nothing where there is none."""
    try:
        return read_object(sidecar_path(case.output), "a mask's sidecar")
    except InputRefusedError:
        return {}


def _write_statistics(cases: Iterable[ScanCase], path: Path) -> None:
    """One table of the measurements of all cases that have a mask: a line an organ, lists as words."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        measured = _read_sidecar(case).get("statistics") if case.output.is_file() else None
        if measured is None:
            continue
        for organ, values in measured["organs"].items():
            low, high = values["interval_ml"] or (None, None)
            flat = {**values, "interval_low_ml": low, "interval_high_ml": high, **(values["confidence"] or {})}
            del flat["confidence"], flat["interval_ml"]
            cells = {name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in flat.items()}
            rows.append({"case": case.name, "organ": organ, "intensity_unit": measured["intensity_unit"], **cells})
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["case", "organ"]
    with whole(path) as part, part.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, columns)
        table.writeheader()
        table.writerows(rows)
