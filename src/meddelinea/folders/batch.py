"""A folder of scans in, a folder of masks out: each case for itself, whole or not at all, and done once.

A mask's sidecar says what was asked for, so that a second run knows which results still hold; beside the masks stand
`status.jsonl`, a line a case as they end, and `statistics.csv`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from meddelinea.checks.scan import examine, require_accepted
from meddelinea.collisions import require_apart
from meddelinea.errors import InputRefusedError
from meddelinea.files import append_line, ensure_name, ensure_writable, remove_abandoned, write_text
from meddelinea.folders.found import FoundScans, ScanCase
from meddelinea.io.input_files import files_of
from meddelinea.io.volumes import read_scan
from meddelinea.locks import LOCK_FILE, LockedError, locked
from meddelinea.pool.local import in_this_process
from meddelinea.pool.pool import Engine, Progress
from meddelinea.results.files import read_sidecar, sidecar_path, statistics_document, write_segmentation
from meddelinea.results.result import Result
from meddelinea.scan import Modality
from meddelinea.segmentation.model import ModelFiles, load_model, read_model_files, require_device
from meddelinea.segmentation.predict import segment
from meddelinea.segmentation.sampling import Sampling
from meddelinea.tables import write_table
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

    def writers(self, case: ScanCase, result: Result, card: str) -> Mapping[Path, Callable[[Path], object]]:
        """Each of them, and what writes it to the path that it is given; `card` is the model's."""


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

    Results of an earlier run are left alone where scan, model and settings are the same. A scan that is refused leaves
    no mask, an outdated one of an earlier run included. One run at a time writes to a folder.

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
        Redo what was done before, and replace files that this package did not write.
    engine
        Where: `in_this_process`, `on_this_machine` or `on_cluster` of `pool`.
    progress
        Called with (name of the case, slices done, slices in all).

    Raises
    ------
    WeightsMissingError, UsageError
        If the model cannot be loaded, or the engine not be had.
    InputRefusedError
        If the model does not know an organ, the output folder cannot be written, another run writes to it, it holds
        files of others in the place of results, two results would be one file, or one a file that is needed.
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
        output=output,
        extras=extras,
        overwritten_by=uuid.uuid4().hex if overwrite else None,
    )
    tables = (output / STATUS_FILE, output / STATISTICS_FILE)
    results = [path for case in found.cases for path in run.outputs(case)]
    require_apart([*results, *tables], _needed(run, found), files.folder)
    if not overwrite:
        _require_own(run, found, tables)
    _make_folders({output, *(path.parent for path in results)})
    for table in tables:
        ensure_writable(table, (table.suffix,))

    with ExitStack() as stack:
        for folder in sorted({output, *(case.output.parent for case in found.cases)}):
            stack.enter_context(_alone(folder))
        yield from stack.enter_context(closing(_segment(run, found, tables, engine=engine, progress=progress)))


def _segment(
    run: _Run,
    found: FoundScans,
    tables: tuple[Path, Path],
    *,
    engine: Engine[ScanCase, ScanOutcome],
    progress: Progress,
) -> Generator[ScanOutcome, None, None]:
    """See `segment_scans`; nobody else writes to the folder meanwhile."""
    status, statistics = tables
    due: list[ScanCase] = []
    standing: list[ScanCase] = []
    write_text("", status)

    def record(outcome: ScanOutcome) -> ScanOutcome:
        append_line(json.dumps(status_line(outcome), ensure_ascii=False), status)
        if outcome.state in ("present", "done"):
            standing.append(outcome.case)
        return outcome

    try:
        remove_abandoned(path for case in found.cases for path in run.outputs(case))
        for case in found.cases:
            try:
                for path in run.outputs(case):
                    ensure_name(path)
                if run.is_done(case):
                    yield record(ScanOutcome(case=case, state="present"))
                else:
                    due.append(case)
            except InputRefusedError as error:
                yield record(ScanOutcome(case=case, state="refused", reason=str(error)))
        with closing(engine(partial(_Segmenter, run), due, progress)) as outcomes:
            for ended in outcomes:
                outcome = ended.answer or ScanOutcome(case=ended.item, state="failed", reason=ended.reason)
                if outcome.state == "present":  # its worker died between writing it and saying so
                    outcome = replace(outcome, state="done")
                elif outcome.state == "refused":
                    run.discard(outcome.case)
                yield record(outcome)
    finally:
        remove_abandoned(path for case in due for path in run.outputs(case))
        _write_statistics([case for case in found.cases if case in standing], statistics)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What is the same for all scans of a run; it goes to the workers.

    Parameters
    ----------
    model
        What a worker loads it by.
    device, modality, sampling, output, extras
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
    output: Path
    extras: ExtraOutputs | None
    overwritten_by: str | None

    def outputs(self, case: ScanCase) -> tuple[Path, ...]:
        """All files of a case."""
        extras = () if self.extras is None else self.extras.paths(case)
        return case.output, sidecar_path(case.output), *extras

    def inputs(self, case: ScanCase) -> tuple[Path, ...]:
        """The files of a scan, without results of earlier runs that stand among them."""
        return files_of(case.source, without=self.output)

    def request(self, case: ScanCase) -> str:
        """SHA-256 of all that a mask depends on; the scan's files go by name, size and time, as in `make`."""
        sampling = asdict(replace(self.sampling, batch_size=1))  # which changes no mask
        scan = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.inputs(case)]
        asked = [__version__, self.digest, self.modality, sampling, scan]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def is_done(self, case: ScanCase) -> bool:
        """Whether the case's files stand, are what is asked for, and were made by the run that is to make them."""
        sidecar = read_sidecar(case.output)
        there = all(path.is_file() for path in self.outputs(case))
        made = self.overwritten_by in (None, sidecar.get("run"))
        return there and made and sidecar.get("request") == self.request(case)

    def discard(self, case: ScanCase) -> None:
        """Remove what an earlier run made of what is now refused."""
        if "request" in read_sidecar(case.output):
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
        except InputRefusedError as error:  # of the scan, or of a disk that is full
            state = "failed" if error.code == "output" else "refused"
            return ScanOutcome(case=case, state=state, reason=str(error))

    def _segment(self, case: ScanCase, progress: Progress) -> ScanOutcome:
        run, files = self._run, self._model.files
        if run.is_done(case):
            return ScanOutcome(case=case, state="present")
        request = run.request(case)

        began = time.monotonic()
        scan = examine(read_scan(case.source), files.limits, run.modality)
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

        others = {} if run.extras is None else run.extras.writers(case, result, files.card)
        with self.writing:
            write_segmentation(segmentation, case.output, scan, remarks=remarks, others=others)
        seconds = round(read_seconds + time.monotonic() - began, 3)
        warnings = tuple(finding.message for finding in result.findings)
        return ScanOutcome(case=case, state="done", seconds=seconds, warnings=warnings)


def status_line(outcome: ScanOutcome) -> dict[str, Any]:
    """What the status file says of a case, as plain JSON types."""
    case = {"case": outcome.case.name, "input": str(outcome.case.source), "output": str(outcome.case.output)}
    rest = {key: value for key, value in asdict(outcome).items() if key != "case"}
    return case | rest | {"warnings": list(outcome.warnings)}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the one run that writes masks to a folder; a run that was killed holds nothing."""
    try:
        with locked(folder / LOCK_FILE, wait=False):
            yield
    except LockedError as error:
        raise InputRefusedError(
            f"{folder}: another run writes to this folder ({error}); wait for its end, or choose another folder",
            "output_locked",
        ) from error


def _needed(run: _Run, found: FoundScans) -> dict[str, list[Path]]:
    """The files of all scans, and of their list. Scans that cannot be looked at are told of one by one, later."""
    files: list[Path] = []
    for case in found.cases:
        with suppress(InputRefusedError):
            files += run.inputs(case)
    return {"a scan": files, "the list": [] if found.listing is None else [found.listing]}


def _require_own(run: _Run, found: FoundScans, tables: tuple[Path, Path]) -> None:
    """Refuse results in whose place there are files that this package did not write."""
    others = [
        path
        for case in found.cases
        for path in run.outputs(case)
        if os.path.lexists(path) and not read_sidecar(case.output)
    ]
    for table, is_own in zip(tables, (_is_status, _is_statistics), strict=True):
        if os.path.lexists(table) and not is_own(table):
            others.append(table)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise InputRefusedError(
            f"{others[0]}{more}: there already, and not written by MedDelinea; choose another folder, or allow to "
            "overwrite them",
            "output_exists",
            parameter="overwrite",
        )


def _is_status(path: Path) -> bool:
    """Whether a file is a status file, or was to become one."""
    try:
        lines = path.read_text("utf-8").splitlines()
        return all({"case", "state"} <= json.loads(line).keys() for line in lines[:1])
    except (OSError, ValueError, AttributeError):
        return False


def _is_statistics(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.readline().startswith("case,organ")
    except (OSError, ValueError):
        return False


def _make_folders(folders: Iterable[Path]) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputRefusedError(
                f"{folder}: cannot make this folder ({error.strerror}); choose another", "output"
            ) from error


def _model_digest(folder: Path) -> str:
    """SHA-256 of a model's files: another model under the same name is another one."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _write_statistics(cases: Iterable[ScanCase], path: Path) -> None:
    """One table of the measurements of all cases that have a mask: a line an organ, lists as words."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        measured = read_sidecar(case.output).get("statistics") if case.output.is_file() else None
        if measured is None:
            continue
        for organ, values in measured["organs"].items():
            low, high = values["interval_ml"] or (None, None)
            flat = {**values, "interval_low_ml": low, "interval_high_ml": high, **(values["confidence"] or {})}
            del flat["confidence"], flat["interval_ml"]
            cells = {name: " ".join(map(str, v)) if isinstance(v, list) else v for name, v in flat.items()}
            rows.append({"case": case.name, "organ": organ, "intensity_unit": measured["intensity_unit"], **cells})
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["case", "organ"]
    write_table(columns, rows, path)
