"""`meddelinea evaluate`: masks against references."""

import json
from pathlib import Path

import numpy as np
import pytest

from support.cli import Run, save


def save_mask(path: Path, mask: np.ndarray, labels: dict[str, int]) -> Path:
    path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps({"labels": labels}))
    return save(mask.astype(np.uint8), path)


def test_evaluate_matches_by_name_and_reports(run: Run, tmp_path: Path) -> None:
    reference = np.zeros((12, 12, 6), np.uint8)
    reference[2:8, 2:8, 1:5] = 1
    shifted = np.roll(reference, 3, axis=0) * 9  # half of the box overlaps: Dice 0.5
    save_mask(tmp_path / "p.nii.gz", shifted, {"liver": 9})
    save_mask(tmp_path / "r.nii.gz", reference, {"Liver": 1, "spleen": 2})
    code, out, err = run(
        *("evaluate", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz"),
        *("--json", tmp_path / "e.json", "--csv", tmp_path / "e.csv"),
    )
    assert (code, err) == (0, "")
    assert "0.500" in out
    assert "cases" not in out  # there is but one
    assert "only in the reference: spleen" in out
    assert json.loads((tmp_path / "e.json").read_text())["cases"][0]["scores"][0]["dice"] == pytest.approx(0.5)
    assert (tmp_path / "e.csv").read_text().count("\n") == 2


def test_evaluate_says_of_a_single_case_what_was_missed_invented_or_absent(run: Run, tmp_path: Path) -> None:
    names = {"liver": 1, "spleen": 2, "aorta": 3, "pancreas": 4}
    box = np.zeros((8, 8, 8), np.uint8)
    box[2:5, 2:5, 2:5] = 1
    save_mask(tmp_path / "p.nii.gz", box + 2 * np.roll(box, 3, axis=0), names)
    save_mask(tmp_path / "r.nii.gz", box + 3 * np.roll(box, 3, axis=0), names)
    code, out, _ = run("evaluate", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz")
    ends = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line.split() and line.split()[0] in names}
    assert code == 0
    assert ends == {"liver": "0.0", "spleen": "invented", "aorta": "missed", "pancreas": "absent"}
    assert "2 infinite" in out


def test_evaluate_a_folder_with_a_case_missing_is_exit_code_4(run: Run, tmp_path: Path) -> None:
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    for side in ("p", "r"):
        (tmp_path / side).mkdir()
        save_mask(tmp_path / side / "a.nii.gz", mask, {"liver": 1})
    save_mask(tmp_path / "r" / "b.nii.gz", mask, {"liver": 1})
    code, out, err = run("evaluate", tmp_path / "p", tmp_path / "r")
    assert code == 4
    assert "1.000" in out
    assert "failed: b" in err
    assert err.splitlines()[-1] == "error: 1 of 2 cases could not be measured"


def test_evaluate_refuses_other_geometry_with_nothing_written(run: Run, tmp_path: Path) -> None:
    save_mask(tmp_path / "p.nii.gz", np.ones((8, 8, 8)), {"liver": 1})
    save_mask(tmp_path / "r.nii.gz", np.ones((8, 8, 9)), {"liver": 1})
    code, out, err = run("evaluate", tmp_path / "p.nii.gz", tmp_path / "r.nii.gz", "--json", tmp_path / "e.json")
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert not (tmp_path / "e.json").exists()


@pytest.mark.parametrize(
    ("option", "name"),
    [
        *(("--json", name) for name in ("p/a.json", "r/a.json", "p/labels.json", "r/LABELS.json", "names.json")),
        *(("--json", name) for name in ("linked.json", "r/new/../a.json")),
        ("--csv", "voxels.csv"),
    ],
)
def test_an_evaluation_takes_the_place_of_no_mask_and_no_labels(
    run: Run, tmp_path: Path, option: str, name: str
) -> None:
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    for side in ("p", "r"):
        (tmp_path / side).mkdir()
        save_mask(tmp_path / side / "a.nii.gz", mask, {"liver": 1})
    (tmp_path / "r" / "new").mkdir()
    (tmp_path / "names.json").write_text('{"labels": {"liver": 1}}')
    (tmp_path / "linked.json").symlink_to("p/a.json")
    (tmp_path / "p" / "b.nhdr").write_text("NRRD0004\ndata file: ../voxels.csv\n")
    (tmp_path / "voxels.csv").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = ("evaluate", tmp_path / "p", tmp_path / "r", "--reference-numbering", tmp_path / "names.json")
    code, out, err = run(*words, option, tmp_path / name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "would overwrite a mask or its labels" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
