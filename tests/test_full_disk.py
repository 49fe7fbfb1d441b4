"""A full disk is refused in one line by whatever is written, and what stood there before stays."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
from matplotlib.figure import Figure

from meddelinea.cli.benchmark import _show
from meddelinea.errors import InputRefusedError
from meddelinea.evaluation.compare import Report
from meddelinea.evaluation.summary import write_report_csv, write_report_json
from meddelinea.files import append_line, write_json, write_text
from meddelinea.folders.batch import _write_statistics
from meddelinea.io.volumes import write_volume
from meddelinea.results.figures import preview
from meddelinea.training.curves import write_curves
from meddelinea.volume import Volume
from support.cli import Run, save
from support.scans import as_ct

SCAN = Volume(np.zeros((8, 8, 8), np.int16), np.diag([-2.0, -2.0, 3.0, 1.0]))
MASK = Volume(np.ones((8, 8, 8), np.uint8), SCAN.affine)
WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: write_text("text", path),
    "JSON": lambda path: write_json({"a": 1}, path),
    "a line": lambda path: append_line("{}", path),
    "a report in JSON": lambda path: write_report_json(Report((), (), 2.0), path),
    "a report in CSV": lambda path: write_report_csv(Report((), (), 2.0), path),
    "a table of a benchmark": lambda path: _show(["| a |"], path),
    "a table of a folder's organs": lambda path: _write_statistics((), path),
    "a preview": lambda path: preview(as_ct(SCAN), MASK, {"liver": 1}, path, "title"),
    "curves": lambda path: write_curves([run_folder(path.parent / "run")], path),
    "a NIfTI": lambda path: write_volume(MASK, path.with_suffix(".nii")),
    "a NRRD": lambda path: write_volume(MASK, path.with_suffix(".nrrd")),
}


def run_folder(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    if not (folder / "metrics.jsonl").exists():
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "seconds": 1.0, "total": 1.0}) + "\n")
    return folder


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """FAKE: from its call on a file can be opened, and nothing be written to it."""

    def refuse(*anything: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def begin() -> None:
        there = Path.open

        def opened(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
            stream = there(path, mode, *rest, **more)
            if mode[0] in "wax":
                stream.close()
                refuse()
            return stream

        monkeypatch.setattr(Path, "open", opened)
        monkeypatch.setattr(Figure, "savefig", refuse)
        monkeypatch.setattr(nib, "save", refuse)
        monkeypatch.setattr(nrrd, "write", refuse)

    return begin


@pytest.mark.parametrize("what", WRITERS)
def test_what_is_written_to_a_full_disk_is_refused(full_disk: Callable[[], None], tmp_path: Path, what: str) -> None:
    run_folder(tmp_path / "run")
    standing = [tmp_path / f"out{suffix}" for suffix in ("", ".nii", ".nrrd")]
    for path in standing:
        path.write_text("what stood there")
    before = sorted(path.name for path in tmp_path.iterdir())
    full_disk()
    with pytest.raises(InputRefusedError, match=r"out.*cannot be written \(No space left on device\)") as caught:
        WRITERS[what](tmp_path / "out")
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert all(path.read_text() == "what stood there" for path in standing)


@pytest.mark.parametrize("command", ["evaluate --json", "evaluate --csv", "curves"])
def test_commands_end_with_exit_code_3_and_one_line(
    run: Run, full_disk: Callable[[], None], tmp_path: Path, command: str
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        save(MASK.array, tmp_path / folder / "x.nii.gz")
        (tmp_path / folder / "labels.json").write_text('{"labels": {"liver": 1}}')
    masks = (tmp_path / "a" / "x.nii.gz", tmp_path / "b" / "x.nii.gz")
    words = {
        "evaluate --json": ("evaluate", *masks, "--json", tmp_path / "out.json"),
        "evaluate --csv": ("evaluate", *masks, "--csv", tmp_path / "out.csv"),
        "curves": ("curves", run_folder(tmp_path / "run"), "-o", tmp_path / "out.png"),
    }[command]
    full_disk()
    code, out, err = run(*words)
    assert (code, out) == (InputRefusedError.exit_code, "")
    assert err.startswith("error: ")
    assert "cannot be written (No space left on device)" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*out*"))
