"""A folder of scans: each case for itself, done once, done again where something changed, and told of.

The network is tiny and random, so masks mean nothing; scans are small parts of a real one.
"""

import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from meddelinea.cli.main import main
from meddelinea.errors import InputRefusedError
from meddelinea.folders import batch
from meddelinea.folders.batch import ScanOutcome, segment_scans
from meddelinea.folders.found import FoundScans, ScanCase, find_scans
from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.pool import local
from meddelinea.pool.local import in_this_process, on_this_machine
from meddelinea.pool.pool import Make, Outcomes, Progress
from meddelinea.results.statistics import organ_statistics
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.predict import segment
from meddelinea.segmentation.sampling import Sampling
from meddelinea.volume import Volume
from support.scans import as_ct
from support.tiny_models import write_model
from support.waiting import PATIENCE, wait_until


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scans(data: Path, tmp_path: Path) -> Path:
    """A folder with two scans, a damaged file, and other things."""
    whole = read_volume(data / "btcv" / "img" / "img0005.nii.gz")
    folder = tmp_path / "scans"
    (folder / "nothing").mkdir(parents=True)
    for name, first in (("a.nii.gz", 60), ("b.nrrd", 70)):
        affine = whole.affine @ np.diag([4.0, 4.0, 1.0, 1.0])
        write_volume(Volume(np.ascontiguousarray(whole.array[::4, ::4, first : first + 8]), affine), folder / name)
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    (folder / "notes.txt").write_text("no scan")
    (folder / ".hidden.nii.gz").write_bytes(b"a file that somebody is writing")
    return folder


def meddelinea(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def run(found: FoundScans, output: Path, model: Path, **options: Any) -> dict[str, ScanOutcome]:
    """What became of each scan, segmented on the CPU in one step; `options` are of `Sampling`, or `overwrite`."""
    overwrite = options.pop("overwrite", False)
    sampling = Sampling(steps=1, **options)
    outcomes = segment_scans(found, output, sampling, model=str(model), device="cpu", overwrite=overwrite)
    return {outcome.case.name: outcome for outcome in outcomes}


def states(outcomes: dict[str, ScanOutcome]) -> dict[str, str]:
    return {name: outcome.state for name, outcome in outcomes.items()}


def inodes(folder: Path) -> dict[str, int]:
    """Which file stands behind each mask: another one after it was written again."""
    return {path.name: path.stat().st_ino for path in folder.glob("[!.]*.nii.gz")}


def test_a_folder_is_done_once_and_again_where_something_changed(scans: Path, tmp_path: Path, model: Path) -> None:
    output = tmp_path / "new" / "masks"
    found = find_scans(scans, output)
    assert [case.name for case in found.cases] == ["a", "b", "bad"]
    assert [path.name for path in found.others] == ["notes.txt", "nothing"]

    first = run(found, output, model)
    assert states(first) == {"a": "done", "b": "done", "bad": "refused"}
    assert "not a readable NIfTI file" in first["bad"].reason
    names = {"a.json", "a.nii.gz", "b.json", "b.nii.gz", "statistics.csv", "status.jsonl"}
    assert {path.name for path in output.iterdir()} == names
    lines = [json.loads(line) for line in (output / "status.jsonl").read_text().splitlines()]
    assert {line["case"]: line["state"] for line in lines} == states(first)
    assert all(line["seconds"] > 0 for line in lines if line["state"] == "done")

    loaded = load_model(model, "cpu")
    with (output / "statistics.csv").open(newline="") as stream:
        table = {(row["case"], row["organ"]): row for row in csv.DictReader(stream)}
    for name, source in (("a", "a.nii.gz"), ("b", "b.nrrd")):
        scan = read_volume(scans / source)
        alone = segment(loaded, as_ct(scan), Sampling(steps=1))
        assert np.array_equal(np.asarray(nib.load(output / f"{name}.nii.gz").dataobj), alone.mask.array)
        for organ, measured in organ_statistics(scan, alone.mask, alone.labels).items():
            assert float(table[name, organ]["volume_ml"]) == pytest.approx(measured.volume_ml)
    assert len(table) == 6

    written = inodes(output)
    assert states(run(found, output, model)) == {"a": "present", "b": "present", "bad": "refused"}
    assert inodes(output) == written
    os.utime(scans / "a.nii.gz", (1, 1))
    assert states(run(found, output, model)) == {"a": "done", "b": "present", "bad": "refused"}
    assert states(run(found, output, model, batch_size=1))["b"] == "present"
    assert states(run(found, output, model, seed=1))["b"] == "done"
    (output / "b.nii.gz").unlink()
    outcomes = run(found, output, model, seed=1)
    assert (outcomes["a"].state, outcomes["b"].state) == ("present", "done")
    outcomes = run(found, output, model, seed=1, overwrite=True)
    assert (outcomes["a"].state, outcomes["b"].state) == ("done", "done")

    # A scan that is no longer one leaves no mask of what it was.
    (scans / "a.nii.gz").write_bytes(b"damaged since")
    (output / f".b.nii.gz.{'0f' * 16}.nii.gz").write_bytes(b"left by a killed writer")
    assert states(run(found, output, model))["a"] == "refused"
    assert {path.name for path in output.iterdir()} == names - {"a.json", "a.nii.gz"}
    with (output / "statistics.csv").open(newline="") as stream:
        assert {row["case"] for row in csv.DictReader(stream)} == {"b"}


def test_what_stands_beside_the_masks_is_made_once_and_goes_with_them(
    scans: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first run has a worker process; what the later ones have to do is found out without one."""
    beside = {kind: tmp_path / kind for kind in ("report", "uncertainty", "preview")}
    words = ["predict", "-i", scans, "-o", tmp_path / "masks", "--model", model, "--steps", 1, "--workers", 1]
    for kind, folder in beside.items():
        words += [f"--{kind}", folder]

    def files() -> set[str]:
        return {path.name for folder in beside.values() for path in folder.iterdir()}

    assert meddelinea(*words) == 4  # one of the scans is damaged
    made = {f"{name}{suffix}" for name in ("a", "b") for suffix in (".html", ".nii.gz", ".png")}
    assert files() == made
    uncertainty = read_volume(beside["uncertainty"] / "a.nii.gz")
    assert uncertainty.array.shape == read_volume(scans / "a.nii.gz").array.shape
    assert "liver" in (beside["report"] / "b.html").read_text()

    def here(
        make: Make[ScanCase, ScanOutcome], cases: Sequence[ScanCase], progress: Progress, workers: int
    ) -> Outcomes[ScanCase, ScanOutcome]:
        return in_this_process(make, cases, progress)

    monkeypatch.setattr(local, "on_this_machine", here)
    kept = {path: path.stat().st_ino for folder in (tmp_path / "masks", *beside.values()) for path in folder.glob("b*")}
    (beside["report"] / "a.html").unlink()
    assert meddelinea(*words) == 4
    assert files() == made
    assert {path: path.stat().st_ino for path in kept} == kept

    (scans / "a.nii.gz").write_bytes(b"damaged since")
    assert meddelinea(*words) == 4
    assert files() == {name for name in made if name.startswith("b")}

    for folder in (tmp_path / "masks", scans):  # where masks or scans would be overwritten
        capsys.readouterr()
        assert meddelinea(*words[:11], "--uncertainty", folder) == 2
        assert "choose another folder" in capsys.readouterr().err
    assert (scans / "a.nii.gz").read_bytes() == b"damaged since"


def test_a_case_is_read_while_another_is_on_the_network(
    scans: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to be segmented waits until the other is read, and the network is never with both."""
    both_read = threading.Barrier(2)
    read, on_network = batch.read_scan, threading.Semaphore(1)
    went_on: list[str] = []
    outcomes: list[tuple[str, str]] = []

    def read_scan(*words: object) -> object:
        scan = read(*words)
        went_on.append("read")
        return scan

    def segment(*words: object) -> object:
        assert on_network.acquire(blocking=False)
        wait_until(lambda: went_on.count("read") == 2)
        went_on.append("segment")
        on_network.release()
        raise InputRefusedError("seen enough")

    monkeypatch.setattr(batch, "read_scan", read_scan)
    monkeypatch.setattr(batch, "segment", segment)
    run = batch._Run(
        model=str(model),
        digest="",
        device="cpu",
        modality=None,
        sampling=Sampling(),
        output=tmp_path,
        extras=None,
        overwritten_by=None,
    )
    work = batch._Segmenter(run, None)

    def attempt(name: str) -> None:
        both_read.wait(PATIENCE)
        outcome = work(ScanCase("case", scans / name, tmp_path / "m.nii.gz"), lambda *step: None)
        outcomes.append((outcome.state, outcome.reason))

    threads = [threading.Thread(target=attempt, args=(name,)) for name in ("a.nii.gz", "b.nrrd")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert went_on == ["read", "read", "segment", "segment"]
    assert outcomes == [("refused", "seen enough")] * 2


def test_a_list_says_where_each_mask_goes(tmp_path: Path) -> None:
    path = tmp_path / "lists" / "todo.csv"
    path.parent.mkdir()
    path.write_text("\ufeffinput,output,comment\n../x.nii.gz,one/x.nrrd,first\n/far/away,/there/y.nii.gz,\n", "utf-8")
    found = find_scans(path, tmp_path / "out")
    assert [(case.source, case.output) for case in found.cases] == [
        (path.parent / "../x.nii.gz", tmp_path / "out" / "one" / "x.nrrd"),
        (Path("/far/away"), Path("/there/y.nii.gz")),
    ]
    assert len({case.name for case in found.cases}) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("scan,mask\na.nii,b.nii\n", "the columns are scan, mask; expected input,output"),
        ("", "the columns are none"),
        ("input,output\na.nii,b.nii\na.nii\n", "line 3 reads 'a.nii',''"),
        ("input,output\na.nii,b.png\n", "line 2 reads 'a.nii','b.png'"),
        ("input,output\na.nii,m.nii\nb.nii,m.nrrd\n", "both masks would be"),
        ("input,output\na.nii,{here}/a.nii\n", "would overwrite a scan"),
        ("input,output\n", "no scan in it"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.csv").write_text(text.replace("{here}", str(tmp_path)))
    with pytest.raises(InputRefusedError, match=said):
        find_scans(tmp_path / "list.csv", tmp_path / "out")


def test_what_a_folder_holds(data: Path, tmp_path: Path) -> None:
    series = data / "totalsegmentator" / "ct_dicom"
    for name in ("a.nii", "b.NII.GZ", "c.nhdr", "c.raw", "d.zip", ".e.nii"):
        (tmp_path / name).touch()
    (tmp_path / "p1" / "inner").mkdir(parents=True)
    (tmp_path / "p1" / "inner" / "slice").symlink_to(next(series.iterdir()))
    found = find_scans(tmp_path, tmp_path / "masks")
    assert [case.output.name for case in found.cases] == [f"{name}.nii.gz" for name in ("a", "b", "c", "d", "p1")]
    assert [path.name for path in found.others] == ["c.raw"]
    (tmp_path / "masks").mkdir()
    assert find_scans(tmp_path, tmp_path / "masks") == found  # the folder of the masks is not told of
    (whole,) = find_scans(series, tmp_path).cases  # its files are one scan
    assert (whole.source, whole.output) == (series, tmp_path / "ct_dicom.nii.gz")
    (tmp_path / "a.nrrd").touch()
    with pytest.raises(InputRefusedError, match=r"both masks would be .*a\.nii\.gz"):
        find_scans(tmp_path, tmp_path / "masks")
    (tmp_path / "p1" / "x.nii.gz").touch()
    with pytest.raises(InputRefusedError, match="would overwrite a scan"):
        find_scans(tmp_path / "p1", tmp_path / "p1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray's own: files and sockets that it leaves to the garbage collector
def test_twenty_scans_on_a_cluster_with_a_worker_killed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped model; while the command runs, each mask's file is watched, and one of two workers killed."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    (tmp_path / "scans").mkdir()
    for scan in sorted((data / "btcv" / "img").glob("*.nii.gz"))[:20]:
        (tmp_path / "scans" / scan.name).symlink_to(scan)
    alone, output = tmp_path / "alone", tmp_path / "masks"
    outcomes = segment_scans(
        find_scans(tmp_path / "scans", alone), alone, Sampling(steps=1), device="cpu", engine=partial(on_this_machine)
    )
    assert Counter(outcome.state for outcome in outcomes) == {"done": 20}

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    seen: dict[str, set[int]] = {}
    killed = 0
    try:
        cluster.add_node(num_cpus=1)
        words = ("predict", "-i", tmp_path / "scans", "-o", output, "--steps", 1, "--device", "cpu", "--json")
        words = (*words, "--engine", "ray", "--address", cluster.address, "--workers", 2)
        command = [sys.executable, "-m", "meddelinea", *map(str, words)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                for name, inode in inodes(output).items() if output.is_dir() else ():
                    seen.setdefault(name, set()).add(inode)
                if len(seen) >= 8 and not killed:
                    killed = kill_a_worker()
                time.sleep(0.005)
            out, err = process.communicate()
    finally:
        cluster.shutdown()
    assert process.returncode == 0, err
    assert killed
    answer = json.loads(out)
    assert (answer["done"], answer["present"], len(answer["cases"])) == (20, 0, 20)
    assert len(seen) == 20
    assert all(len(files) == 1 for files in seen.values())  # written once each
    for path in sorted(alone.glob("*.nii.gz")):
        assert np.array_equal(np.asarray(nib.load(output / path.name).dataobj), np.asarray(nib.load(path).dataobj))
    assert not list(output.glob(".*"))


def kill_a_worker() -> int:
    """Kill one process of this test's cluster that segments, and tell which."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(status.parent.name)
        try:
            if b"ray::_Actor" in status.read_bytes() and os.getpid() in ancestors(pid):
                os.kill(pid, 9)
                return pid
        except OSError:  # it has just ended
            continue
    return 0


def ancestors(pid: int) -> Iterator[int]:
    """The parent of a process, its parent, and so on."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid
