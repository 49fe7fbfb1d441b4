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

from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.files import append_line, ensure_writable, remove_unfinished, whole, write_text
from meddelinea.folders.found import FoundScans, ScanCase
from meddelinea.pool.local import in_this_process
from meddelinea.pool.pool import Engine, Progress
from meddelinea.results.files import sidecar_path, statistics_document, write_segmentation
from meddelinea.results.result import Result
from meddelinea.segmentation.model import load_model, read_model_files
from meddelinea.segmentation.settings import Settings, read_scan, segment_scan
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


class Beside(Protocol):
    """What else is to be made of each case. It goes to the workers, so it can be pickled."""

    def paths(self, case: ScanCase) -> tuple[Path, ...]:
        """The files, which stand where the case is done."""

    def write(self, case: ScanCase, result: Result, card: str) -> None:
        """Write them; `card` is the model's."""


class Nothing:
    """Masks and no more."""

    def paths(self, case: ScanCase) -> tuple[Path, ...]:
        return ()

    def write(self, case: ScanCase, result: Result, card: str) -> None:
        return


#: Masks and no more.
NOTHING: Beside = Nothing()


def segment_scans(
    found: FoundScans,
    output: Path,
    settings: Settings,
    *,
    engine: Engine[ScanCase, ScanOutcome] = in_this_process,
    overwrite: bool = False,
    beside: Beside = NOTHING,
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
    settings
        How to segment.
    engine
        Where: `in_this_process`, `on_this_machine` or `on_cluster` of `pool`.
    overwrite
        Segment also what was done before.
    beside
        What else is made of each case.
    progress
        Called with (name of the case, slices done, slices in all).

    Raises
    ------
    WeightsMissingError, UsageError
        If the model cannot be loaded, or the engine not be had.
    InputRefusedError
        If the output folder cannot be written.
    UsageError
        If two files would be one, or a scan be overwritten.
    """
    _require_apart(found, beside)
    run = uuid.uuid4().hex if overwrite else None
    model = _model_digest(read_model_files(settings.model).folder)
    _make_folders(output, (path for case in found.cases for path in (case.output, *beside.paths(case))))
    ensure_writable(output / STATUS_FILE, (".jsonl",))
    due = []
    with _status(output / STATUS_FILE) as tell:
        for case in found.cases:
            remove_unfinished(case.output)
            remove_unfinished(sidecar_path(case.output))
            if _is_done(case, _request(case, settings, model), run, beside):
                yield tell(ScanOutcome(case=case, state="present"))
            else:
                due.append(case)
        try:
            with closing(engine(partial(_Segmenter, settings, model, run, beside), due, progress)) as outcomes:
                for ended in outcomes:
                    outcome = ended.answer or ScanOutcome(case=ended.item, state="failed", reason=ended.reason)
                    if outcome.state == "present":  # its worker died between writing it and saying so
                        outcome = replace(outcome, state="done")
                    elif outcome.state != "done":
                        _discard(outcome.case, beside)
                    yield tell(outcome)
        finally:
            for case in due:
                for path in (case.output, sidecar_path(case.output), *beside.paths(case)):
                    remove_unfinished(path)
            _write_statistics(found.cases, output / STATISTICS_FILE)


class _Segmenter:
    """What a worker does with a case: the model is loaded once, and its network is used by one case at a time."""

    def __init__(
        self, settings: Settings, model_digest: str, run: str | None, beside: Beside, threads: int | None
    ) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.writing = threading.Lock()
        self._settings, self._digest, self._run, self._beside = settings, model_digest, run, beside
        self._files = read_model_files(settings.model)
        self._network = threading.Lock()
        self._model = load_model(settings.model, settings.device)

    def __call__(self, case: ScanCase, progress: Progress) -> ScanOutcome:
        try:
            return self._segment(case, progress)
        except InputRefusedError as error:
            return ScanOutcome(case=case, state="refused", reason=str(error))

    def _segment(self, case: ScanCase, progress: Progress) -> ScanOutcome:
        request = _request(case, self._settings, self._digest)
        if _is_done(case, request, self._run, self._beside):
            return ScanOutcome(case=case, state="present")
        began = time.monotonic()
        volume, findings = read_scan(case.source, self._settings.modality, self._files.modalities)
        read_seconds = time.monotonic() - began
        with self._network:
            began = time.monotonic()
            segmentation = segment_scan(self._model, volume, self._settings, partial(progress, case.name))
        result = Result.of(case.source.name, volume, segmentation, findings)
        document = statistics_document(result.statistics, volume.modality, segmentation)
        remarks = {"request": request, "statistics": document}
        if self._run is not None:
            remarks["run"] = self._run
        with self.writing:
            case.output.unlink(missing_ok=True)  # an outdated mask must not stand beside the new sidecar
            self._beside.write(case, result, self._files.card)
            write_segmentation(segmentation, case.output, case.source, remarks=remarks)
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
    """What adds an outcome to a status file that is begun anew; a line is there when the call returns."""
    write_text("", path)

    def tell(outcome: ScanOutcome) -> ScanOutcome:
        append_line(json.dumps(status_line(outcome), ensure_ascii=False), path)
        return outcome

    yield tell


def _require_apart(found: FoundScans, beside: Beside) -> None:
    """Refuse files beside the masks that are a mask, a sidecar or a scan."""
    taken = {path.resolve() for case in found.cases for path in (case.source, case.output, sidecar_path(case.output))}
    for case in found.cases:
        for path in beside.paths(case):
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


def _request(case: ScanCase, settings: Settings, model_digest: str) -> str:
    """SHA-256 of all that a mask depends on; the scan's files go by name, size and time, as in `make`."""
    kept = asdict(replace(settings, model=model_digest, device="", batch_size=0))  # these two change no mask
    scan = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in _files_of(case.source)]
    return hashlib.sha256(json.dumps([__version__, kept, scan]).encode()).hexdigest()


def _files_of(scan: Path) -> list[Path]:
    if scan.is_dir():
        return sorted(path for path in scan.rglob("*") if path.is_file())
    if scan.suffix.lower() == ".nhdr":  # its voxels are in a file beside it
        return sorted(path for path in scan.parent.glob(f"{scan.stem}.*") if path.is_file())
    return [scan] if scan.exists() else []


def _is_done(case: ScanCase, request: str, run: str | None, beside: Beside) -> bool:
    """Whether the case's files stand, are what is asked for, and were made by this run where `run` is given."""
    sidecar = _read_sidecar(case)
    there = all(path.is_file() for path in (case.output, *beside.paths(case)))
    return there and sidecar.get("request") == request and run in (None, sidecar.get("run"))


def _read_sidecar(case: ScanCase) -> dict[str, Any]:
    """What the sidecar of a case says; nothing where there is none."""
    try:
        content = json.loads(sidecar_path(case.output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _discard(case: ScanCase, beside: Beside) -> None:
    """Remove what an earlier run made of what is now refused or fails."""
    if "request" in _read_sidecar(case):
        for path in (case.output, sidecar_path(case.output), *beside.paths(case)):
            path.unlink(missing_ok=True)


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
