"""Runs that meet: with another run, with files of others, and with scans that cannot even be looked at.

The network is tiny and random, so masks mean nothing; scans are small parts of a real one.
"""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from meddelinea.errors import InputRefusedError, OutputClashError
from meddelinea.folders.batch import ScanOutcome, segment_scans
from meddelinea.folders.found import find_scans
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.locks import LOCK_FILE
from meddelinea.segmentation.sampling import Sampling
from meddelinea.temporary import remove_abandoned_folders
from meddelinea.volume import Volume
from support.tiny_models import write_model
from support.waiting import wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scan(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small part of a real scan."""
    whole = read_volume(data / "btcv" / "img" / "img0005.nii.gz")
    part = Volume(np.ascontiguousarray(whole.array[::4, ::4, 60:68]), whole.affine @ np.diag([4.0, 4.0, 1.0, 1.0]))
    write_volume(part, tmp_path_factory.mktemp("scan") / "scan.nii.gz")
    return tmp_path_factory.getbasetemp() / "scan0" / "scan.nii.gz"


@pytest.fixture
def scans(scan: Path, tmp_path: Path) -> Path:
    """A folder with three scans."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.nii.gz").write_bytes(scan.read_bytes())
    return folder


def run(source: Path, output: Path, model: Path, *, overwrite: bool = False) -> Iterator[ScanOutcome]:
    found = find_scans(source, output)
    return segment_scans(found, output, Sampling(steps=1), model=str(model), device="cpu", overwrite=overwrite)


def states(outcomes: Iterator[ScanOutcome]) -> dict[str, str]:
    return {outcome.case.name: outcome.state for outcome in outcomes}


def predict(scans: Path, output: Path, model: Path, *words: str) -> list[str]:
    command = [sys.executable, "-m", "meddelinea", "predict", "-i", str(scans), "-o", str(output)]
    return [*command, "--model", str(model), "--steps", "1", "--quiet", *words]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ALL = sorted(["status.jsonl", "statistics.csv", *(f"{name}{end}" for name in "abc" for end in (".json", ".nii.gz"))])


# Two runs


def test_a_second_run_is_refused_and_the_first_loses_nothing(scans: Path, tmp_path: Path, model: Path) -> None:
    output = tmp_path / "masks"
    first = run(scans, output, model)
    assert next(first).state == "done"
    standing = names(output)
    with pytest.raises(InputRefusedError, match=rf"masks: another run writes .*process {os.getpid()} on") as caught:
        next(run(scans, output, model, overwrite=True))
    assert caught.value.code == "output_locked"
    assert names(output) == standing
    assert states(first) == {"b": "done", "c": "done"}
    assert names(output) == ALL
    assert len([json.loads(line) for line in (output / "status.jsonl").read_text().splitlines()]) == 3
    assert states(run(scans, output, model)) == dict.fromkeys("abc", "present")


def test_masks_of_two_lists_in_one_folder_are_two_runs_too(scans: Path, tmp_path: Path, model: Path) -> None:
    (scans / "list.csv").write_text(f"input,output\na.nii.gz,{tmp_path}/both/m.nii.gz\nb.nii.gz,n.nii.gz\n")
    first = run(scans / "list.csv", tmp_path / "one", model)
    next(first)
    with pytest.raises(InputRefusedError, match="both: another run writes"):
        next(run(scans / "list.csv", tmp_path / "two", model))
    assert set(states(first).values()) == {"done"}


def test_a_lock_of_a_killed_run_is_none(scans: Path, tmp_path: Path, model: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / LOCK_FILE).write_text("process 1 on another machine")
    assert states(run(scans, tmp_path / "masks", model)) == dict.fromkeys("abc", "done")
    assert names(tmp_path / "masks") == ALL


def test_what_a_living_writer_has_begun_is_left_to_it(scans: Path, tmp_path: Path, model: Path) -> None:
    """A command that segments one scan writes the very mask that a run of many is about to write."""
    part = tmp_path / "masks" / f".a.nii.gz.{'0f' * 16}.nii.gz"
    part.parent.mkdir()
    part.write_bytes(b"half")
    descriptor = os.open(part.parent, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    assert set(states(run(scans, part.parent, model)).values()) == {"done"}
    assert part.read_bytes() == b"half"
    os.close(descriptor)
    states(run(scans, part.parent, model))
    assert not part.exists()


@pytest.mark.slow
def test_twenty_times_two_runs_at_once_lose_no_mask(scans: Path, tmp_path: Path, model: Path) -> None:
    for attempt in range(20):
        output = tmp_path / f"masks{attempt}"
        runs = []
        for _ in range(2):
            runs.append(subprocess.Popen(predict(scans, output, model), stderr=subprocess.PIPE, text=True))
            time.sleep(0.1)
        said = [process.communicate()[1] for process in runs]
        codes = [process.returncode for process in runs]
        assert set(codes) in ({0}, {0, 3})  # 0 twice where one ended before the other had begun
        assert all("another run writes" in err for code, err in zip(codes, said, strict=True) if code)
        assert names(output) == ALL
        lines = [json.loads(line) for line in (output / "status.jsonl").read_text().splitlines()]
        assert {line["case"]: line["state"] in ("done", "present") for line in lines} == dict.fromkeys("abc", True)


# Files of others


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", "{}"),
        ("b.nii.gz", "drawn by hand"),
        ("status.jsonl", "not ours"),
        ("status.jsonl", '{"mine": 1}\n'),
        ("statistics.csv", "patient,dose\n"),
    ],
)
def test_files_of_others_are_replaced_on_request_only(
    scans: Path, tmp_path: Path, model: Path, name: str, content: str
) -> None:
    output = tmp_path / "masks"
    output.mkdir()
    (output / name).write_text(content)
    with pytest.raises(InputRefusedError, match=rf"{name}: there already") as caught:
        next(run(scans, output, model))
    assert (caught.value.code, caught.value.parameter) == ("output_exists", "overwrite")
    assert {path.name: path.read_text() for path in output.iterdir()} == {name: content}
    assert set(states(run(scans, output, model, overwrite=True)).values()) == {"done"}
    assert set(states(run(scans, output, model)).values()) == {"present"}


def test_no_result_is_a_scan_its_data_file_or_the_list(scans: Path, tmp_path: Path, model: Path) -> None:
    (scans / "h.nhdr").write_text("NRRD0004\ndata file: status.jsonl\n")
    (scans / "status.jsonl").write_bytes(b"voxels")
    with pytest.raises(OutputClashError, match="would overwrite a scan"):
        next(run_list(scans, "h.nhdr", model))
    (scans / "statistics.csv").write_text("input,output\na.nii.gz,m.nii.gz\n")
    with pytest.raises(OutputClashError, match="would overwrite the list"):
        next(run(scans / "statistics.csv", scans, model, overwrite=True))
    assert (scans / "status.jsonl").read_bytes() == b"voxels"


def run_list(folder: Path, name: str, model: Path) -> Iterator[ScanOutcome]:
    (folder / "list.csv").write_text(f"input,output\n{name},m.nii.gz\n")
    return run(folder / "list.csv", folder, model, overwrite=True)


def test_results_below_the_folder_of_a_series_are_no_part_of_it(data: Path, tmp_path: Path, model: Path) -> None:
    """A run into a sub-folder of the series itself, and its second run, which has nothing to do."""
    series = tmp_path / "series"
    series.mkdir()
    for file in sorted((data / "totalsegmentator" / "ct_dicom").iterdir()):
        (series / file.name).symlink_to(file)
    assert states(run(series, series / "masks", model)) == {"series": "done"}
    assert states(run(series, series / "masks", model)) == {"series": "present"}


# Scans that cannot be looked at


def test_what_cannot_be_looked_at_is_told_and_the_others_are_done(
    scans: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsdecode(b"\xff\xfe.nii.gz")
    (scans / odd).write_bytes((scans / "a.nii.gz").read_bytes())
    (scans / "loop.nii.gz").symlink_to("loop.nii.gz")
    (scans / "gone.nii.gz").symlink_to("nowhere.nii.gz")
    (scans / "round").symlink_to(scans)
    os.mkfifo(scans / "pipe.nii.gz")
    (scans / "closed").mkdir()
    (scans / f"{'x' * 250}.nrrd").write_bytes(b"no scan")
    there = Path.iterdir

    def closed(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return there(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    bad = {"loop": "no such file", "gone": "no such file", "pipe": "not a kind", "closed": "Permission denied"}
    bad["x" * 250] = "too long"
    for again in (False, True):
        outcomes = {outcome.case.name: outcome for outcome in run(scans, tmp_path / "masks", model)}
        assert {name for name, outcome in outcomes.items() if outcome.state == "refused"} == set(bad)
        assert all(reason in outcomes[name].reason for name, reason in bad.items())
        good = {"a", "b", "c", odd.removesuffix(".nii.gz")}
        assert {name for name, outcome in outcomes.items() if outcome.state == ("present" if again else "done")} == good
        lines = [json.loads(line) for line in (tmp_path / "masks" / "status.jsonl").read_text().splitlines()]
        assert {line["case"] for line in lines} == good | set(bad)


def test_names_like_formulas_are_words_in_the_table(scans: Path, tmp_path: Path, model: Path) -> None:
    (scans / "a.nii.gz").rename(scans / "=1+1.nii.gz")
    states(run(scans, tmp_path / "masks", model))
    with (tmp_path / "masks" / "statistics.csv").open(newline="") as stream:
        cases = {row["case"] for row in csv.DictReader(stream)}
    assert cases == {"'=1+1", "b", "c"}
    (scans / "list.csv").write_text("input,output\n'=1+1.nii.gz,'=m.nii.gz\n")
    assert states(run(scans / "list.csv", tmp_path / "listed", model)) == {"=m.nii.gz": "done"}


# Signals


@pytest.mark.parametrize(
    ("kind", "many"),
    [
        ("TERM", False),
        ("TERM", True),
        *(pytest.param(kind, many, marks=pytest.mark.slow) for kind in ("HUP", "INT") for many in (False, True)),
    ],
)
def test_unpacked_files_do_not_outlive_a_signal(
    data: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, kind: str, many: bool
) -> None:
    """The process is stopped while it unpacks or reads a series; of many scans a worker process does."""
    (tmp_path / "zips").mkdir()
    with zipfile.ZipFile(tmp_path / "zips" / "series.zip", "w") as archive:
        for file in sorted((data / "totalsegmentator" / "ct_dicom").iterdir()):
            for copy in range(20):
                archive.write(file, f"{copy}/{file.name}")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    source, output = (("zips", "masks"), ("zips/series.zip", "m.nii.gz"))[not many]
    command = predict(tmp_path / source, tmp_path / output, model)
    number = signal.Signals[f"SIG{kind}"]

    def heard() -> None:  # what a shell starts in the background ignores it
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heard) as process:
        wait_until(lambda: any(scratch.glob("meddelinea-*/files/*")) or process.poll() is not None)
        process.send_signal(number)
        err = process.communicate()[1]
    assert process.returncode == (130 if kind == "INT" else -number)
    assert b"Traceback" not in err
    assert not list(scratch.glob("meddelinea-*"))


def test_a_process_that_ends_leaves_no_folder_without_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that unpacks finds its files gone and would take the rest apart, and the end may come in between."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # read anew
    program = (
        "import os, threading\n"
        "from meddelinea.temporary import remove_own_folders, temporary_folder\n"
        "begun, gone = threading.Event(), threading.Event()\n"
        "def unpack():\n"
        "    with temporary_folder():\n"
        "        begun.set()\n"
        "        gone.wait()\n"
        "thread = threading.Thread(target=unpack)\n"
        "thread.start()\n"
        "begun.wait()\n"
        "remove_own_folders()\n"
        "gone.set()\n"
        "thread.join(0.5)\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    (folder,) = tmp_path.glob("meddelinea-unpacked-*")
    assert [file.name for file in folder.iterdir()] == [LOCK_FILE]
    remove_abandoned_folders()
    assert not folder.exists()


def test_folders_of_killed_processes_are_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    program = (
        "from meddelinea.temporary import temporary_folder\n"
        "with temporary_folder() as folder:\n"
        "    (folder / 'patient').write_text('x')\n"
        "    print(folder, flush=True)\n"
        "    input()"
    )
    command = [sys.executable, "-c", program]
    (tmp_path / "meddelinea-unpacked-results1").mkdir()  # somebody's own
    (tmp_path / "meddelinea-unpacked-results1" / "mine").touch()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        assert first.stdout is not None
        assert second.stdout is not None
        places = [Path(stream.readline().decode().strip()) for stream in (first.stdout, second.stdout)]
        assert all((place / "patient").exists() for place in places)  # the living are left alone
        first.kill()
        second.communicate(b"\n")
    assert not places[1].parent.exists()
    subprocess.run(command, input="\n", stdout=subprocess.DEVNULL, text=True, check=True)
    assert names(tmp_path) == ["meddelinea-unpacked-results1"]
