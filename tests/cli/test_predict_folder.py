"""`meddelinea predict` of a folder or a list of scans."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.cli import Run, written


def test_predict_of_a_folder_tells_of_each_case(
    run: Run, folder: Path, tmp_path: Path, fake_model: dict[str, Any]
) -> None:
    code, out, err = run("predict", "-i", folder, "-o", tmp_path / "masks", "--workers", 3)
    assert code == 4
    assert "1 done, 0 already there, 1 refused, 0 failed" in out
    refusal, error = err.splitlines()
    assert refusal.startswith("refused: bad: ")
    assert error == "error: 1 of 2 scans have no mask; the others are done"
    assert fake_model["workers"] == 3
    assert written(tmp_path / "masks") == ["scan.json", "scan.nii.gz", "statistics.csv", "status.jsonl"]
    code, out, _ = run("predict", "-i", folder, "-o", tmp_path / "masks", "--json")
    answer = json.loads(out)
    assert (code, answer["done"], answer["present"], answer["refused"]) == (4, 0, 1, 1)
    code, out, _ = run("predict", "-i", folder, "-o", tmp_path / "masks", "--progress-json", "--overwrite")
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == ["begin", "case", "slices", "case", "end"]
    assert {event["case"]: event["state"] for event in events if event["event"] == "case"} == {
        "bad": "refused",
        "scan": "done",
    }
    (folder / "bad.nii.gz").unlink()
    assert run("predict", "-i", folder, "-o", tmp_path / "masks", "-q") == (0, "", "")


def test_predict_of_a_list(run: Run, folder: Path, tmp_path: Path) -> None:
    (folder / "list.csv").write_text("input,output\nscan.nii.gz,deep/a.nrrd\n")
    assert run("predict", "-i", folder / "list.csv", "-o", tmp_path / "masks", "-q") == (0, "", "")
    assert written(tmp_path / "masks" / "deep") == ["a.json", "a.nrrd"]


@pytest.mark.parametrize(
    "words",
    [
        ("one.nii.gz", "m.nii.gz", "--engine", "ray"),
        ("one.nii.gz", "m.nii.gz", "--json", "--progress-json"),
        (".", "masks", "--address", "head:6379"),
        (".", "masks", "--preview", "p.png"),
    ],
)
def test_options_of_one_scan_do_not_go_with_those_of_many(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(folder)
    code, out, err = run("predict", "-i", words[0], "-o", *words[1:])
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["bad.nii.gz", "scan.nii.gz"]
