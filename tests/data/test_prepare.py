"""Preparing a store: the same bytes from any engine and after any death, which costs its own case alone."""

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from meddelinea.data.case import Case, FoundCases, LabelledScan, LabelMap
from meddelinea.data.datasets import find_cases
from meddelinea.data.prepare import prepare_store
from meddelinea.data.preprocess import Preprocessing
from meddelinea.data.store import SliceStore, case_file, read_manifest
from meddelinea.errors import InputRefusedError
from meddelinea.pool.local import in_this_process, on_this_machine
from meddelinea.pool.pool import Engine, Make, Outcomes, Progress
from meddelinea.scan import Scan
from support.cli import Run
from support.ray_cluster import run_on_cluster
from support.waiting import wait_until

SMALL = Preprocessing(size=64, spacing_mm=4.0)
NAMES = tuple(f"img{number:04d}" for number in range(1, 7))
PREPARE = ["prepare", "--format", "btcv", "--size", "64", "--spacing-mm", "4"]
COMMAND = [sys.executable, "-m", "meddelinea", *PREPARE]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans of random boxes in BTCV's layout."""
    root = tmp_path_factory.mktemp("btcv")
    rng = np.random.default_rng(0)
    for folder in ("img", "label"):
        (root / folder).mkdir()
    for name in NAMES:
        mask = np.zeros((60, 50, 12), np.uint8)
        for organ in range(1, 14):
            low = rng.integers(0, (50, 40, 8))
            mask[tuple(slice(start, start + 10) for start in low)] = organ
        scan = (mask * 20.0 - 100 + rng.normal(0, 5, mask.shape)).astype(np.int16)
        for array, path in ((scan, f"img/{name}"), (mask, f"label/{name.replace('img', 'label')}")):
            nib.save(nib.Nifti1Image(array, np.diag([3.0, 3.0, 5.0, 1.0])), root / f"{path}.nii.gz")
    return root


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Contents of the store that an uninterrupted run makes."""
    root = tmp_path_factory.mktemp("expected") / "store"
    assert prepare_store("btcv", source, root, preprocessing=SMALL).stored == NAMES
    return contents(root)


def contents(root: Path) -> dict[str, bytes]:
    """Each file of a store."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def backwards(make: Make[Case, str], cases: Sequence[Case], progress: Progress) -> Outcomes[Case, str]:
    return in_this_process(make, cases[::-1], progress)


@pytest.mark.parametrize(
    "engine", [backwards, partial(on_this_machine, workers=1), partial(on_this_machine, workers=3)]
)
def test_every_engine_makes_the_same_bytes(
    source: Path, tmp_path: Path, expected: dict[str, bytes], engine: Engine[Case, str]
) -> None:
    seen = []
    report = prepare_store(
        "btcv", source, tmp_path, preprocessing=SMALL, engine=engine, progress=lambda *step: seen.append(step)
    )
    assert contents(tmp_path) == expected
    assert (report.stored, report.present, dict(report.failed)) == (NAMES, (), {})
    assert [step[:2] for step in seen] == [(done, 6) for done in range(1, 7)]
    assert {step[2] for step in seen} == set(NAMES)


@pytest.mark.parametrize("cases", [0, 2, 5])
def test_a_killed_run_is_completed_to_the_same_bytes(
    run: Run, source: Path, tmp_path: Path, expected: dict[str, bytes], cases: int
) -> None:
    words = ["--workers", "2", str(source), str(tmp_path / "store")]
    begun = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "store" / "cases"

    def far_enough() -> bool:
        assert begun.poll() is None
        return (tmp_path / "store" / "store.json").is_file() and len(list(folder.glob("*.json"))) >= cases

    wait_until(far_enough)
    kill(begun)
    if cases < 5:
        assert not (tmp_path / "store" / "cases.jsonl").exists()
        with pytest.raises(InputRefusedError, match="interrupted"):
            SliceStore(tmp_path / "store")
    # What a writer that died in the middle leaves.
    (folder / f".img0004.h5.{'0f' * 16}.h5").write_bytes(b"half")
    case_file(tmp_path / "store", "img0006").write_bytes(b"written, but not yet known")
    (folder / "img0006.json").unlink(missing_ok=True)
    code, _, err = run(*PREPARE, "--workers", "1", source, tmp_path / "store")
    assert (code, err) == (0, "")
    assert contents(tmp_path / "store") == expected


def test_workers_end_with_a_killed_parent(source: Path, tmp_path: Path) -> None:
    begun = subprocess.Popen([*COMMAND, "--workers", "2", str(source), str(tmp_path)], stdout=subprocess.DEVNULL)
    wait_until(lambda: list((tmp_path / "cases").glob("*.json")))
    assert kill(begun) >= 2


def kill(run: subprocess.Popen[bytes]) -> int:
    """Kill a process and wait until its children, whose number is returned, have ended of themselves."""
    children = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    run.kill()
    assert run.wait() == -signal.SIGKILL
    wait_until(lambda: not any(running(pid) for pid in children))
    return len(children)


def running(pid: int) -> bool:
    """Whether a process runs: it is neither gone nor a zombie that its new parent has not yet buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass(frozen=True)
class DeadlyLabels:
    """FAKE: labels that reading is the death of its process, always, or only until a file is there."""

    labels: LabelMap
    once: Path | None

    @property
    def organs(self) -> tuple[str, ...]:
        return self.labels.organs

    def read(self, scan: Scan, organs: tuple[str, ...]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        if self.once is None or not self.once.exists():
            if self.once is not None:
                self.once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.labels.read(scan, organs)


def test_the_death_of_a_worker_costs_only_the_case_that_kills_again(
    source: Path, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from meddelinea.data import prepare

    def deadly(case: Case, once: Path | None) -> Case:
        assert isinstance(case.labels, LabelMap)
        return replace(case, labels=DeadlyLabels(case.labels, once))

    btcv = find_cases("btcv", source).cases
    cases = (btcv[0], deadly(btcv[1], None), deadly(btcv[2], tmp_path / "once"), *btcv[3:])
    monkeypatch.setattr(prepare, "find_cases", lambda layout, source: FoundCases(cases, {}))
    store = tmp_path / "store"
    report = prepare_store("btcv", source, store, preprocessing=SMALL, engine=partial(on_this_machine, workers=2))
    assert (tmp_path / "once").exists()
    assert report.stored == (NAMES[0], *NAMES[2:])
    assert list(report.failed) == [NAMES[1]]
    assert "signal SIGKILL; probably out of memory" in report.failed[NAMES[1]]
    made = contents(store)
    assert {name: made[name] for name in made if name.endswith(".h5")} == {
        name: content for name, content in expected.items() if name.endswith(".h5") and NAMES[1] not in name
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_is_found_and_repaired_on_request(
    run: Run, source: Path, tmp_path: Path, expected: dict[str, bytes], workers: int
) -> None:
    prepare_store("btcv", source, tmp_path, preprocessing=SMALL)
    path = case_file(tmp_path, "img0003")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    assert prepare_store("btcv", source, tmp_path, preprocessing=SMALL).present == NAMES
    code, out, _ = run(*PREPARE, "--workers", workers, "--verify", source, tmp_path)
    assert code == 0
    assert "1 cases stored (1 of them were damaged), 5 already there, 0 failed" in out
    assert contents(tmp_path) == expected


def test_unexpected_errors_and_remarks_are_reported(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meddelinea.data import prepare

    read = prepare.read_case

    def remarkable(case: Case, organs: tuple[str, ...]) -> LabelledScan:
        if case.name == "img0005":
            raise gzip.BadGzipFile("not a gzip file")
        labelled = read(case, organs)
        return replace(labelled, remarks=("masks overlap",) if case.name == "img0001" else ())

    monkeypatch.setattr(prepare, "read_case", remarkable)
    report = prepare_store("btcv", source, tmp_path, preprocessing=SMALL)
    assert dict(report.failed) == {"img0005": "BadGzipFile: not a gzip file (unexpected)"}
    assert dict(report.remarks) == {"img0001": ("masks overlap",)}
    again = prepare_store("btcv", source, tmp_path, preprocessing=SMALL)
    assert dict(again.remarks) == {"img0001": ("masks overlap",)}  # kept with the case
    assert not list(tmp_path.rglob(".*"))


def test_a_name_that_another_dataset_took_is_refused_for_that_case(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meddelinea.data import prepare

    btcv = find_cases("btcv", source).cases
    other = tuple(
        Case(name=name, dataset="other", patient=c.patient, image=c.image, labels=c.labels, modality=c.modality)
        for name, c in zip("ab", btcv, strict=False)
    )
    same = Case(
        name=btcv[0].name, dataset="other", patient="9", image=btcv[1].image, labels=btcv[1].labels, modality="CT"
    )
    first = prepare_store("btcv", source, tmp_path, preprocessing=SMALL)
    before = contents(tmp_path)["cases/img0001.h5"]
    monkeypatch.setattr(prepare, "find_cases", lambda layout, source: FoundCases((*other, same), {"c": "no image"}))
    second = prepare_store("other", source, tmp_path, preprocessing=SMALL)
    assert (first.stored, second.stored) == (NAMES, ("a", "b"))
    assert set(second.failed) == {"c", "img0001"}
    assert "holds a case img0001 of dataset btcv already" in second.failed["img0001"]
    assert contents(tmp_path)["cases/img0001.h5"] == before
    assert [case.name for case in read_manifest(tmp_path).cases] == ["a", "b", *NAMES]


@pytest.mark.parametrize(
    "words",
    [["--engine", "ray"], ["--address", "auto"], ["--engine", "ray", "--address", "auto", "--workers", "2"]],
)
def test_options_of_one_engine_do_not_go_with_the_other(
    run: Run, source: Path, tmp_path: Path, words: list[str]
) -> None:
    code, _, err = run(*PREPARE, *words, source, tmp_path / "s")
    assert code == 2
    assert "--engine ray needs --address" in err
    assert not (tmp_path / "s").exists()


def test_a_cluster_makes_the_same_bytes(source: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    broken = tmp_path / "btcv"
    broken.mkdir()
    for folder in ("img", "label"):
        (broken / folder).mkdir()
        for path in (source / folder).iterdir():
            (broken / folder / path.name).symlink_to(path)
    (broken / "img" / "img0007.nii.gz").write_bytes(b"no scan")
    (broken / "label" / "label0007.nii.gz").write_bytes(b"no mask")
    words = [*COMMAND, "--engine", "ray", "--address", "local", str(broken), str(tmp_path / "store")]
    done = run_on_cluster(words)
    assert done.returncode == 4, done.stderr
    assert "img0007" in done.stderr
    files = contents(tmp_path / "store")
    assert list(json.loads(files.pop("report.json"))["failed"]) == ["img0007"]
    assert files == {name: content for name, content in expected.items() if name != "report.json"}
