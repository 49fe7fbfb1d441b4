"""`meddelinea predict` of one scan: what it writes and prints, and that nothing is half written.

The network is replaced by a threshold (`fake_model`), so these tests are about the command and not about the mask.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from meddelinea.scan import Scan
from meddelinea.segmentation.predict import Segmentation
from meddelinea.volume import Volume
from support.cli import AFFINE, Run, body, save, written
from support.scans import a_segmentation


def test_predict_writes_mask_sidecar_statistics_and_preview(
    run: Run, scan: Path, tmp_path: Path, fake_model: dict[str, Any]
) -> None:
    code, out, err = run(
        *("predict", "-i", scan, "-o", tmp_path / "mask.nii.gz", "--steps", 4, "--seed", 7, "--device", "cpu"),
        *("--statistics", tmp_path / "s.json", "--preview", tmp_path / "p.png", "--organs", "Liver, spleen"),
    )
    assert (code, err) == (0, "")
    assert written(tmp_path) == ["mask.json", "mask.nii.gz", "p.png", "s.json"]
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), body() > 20)
    np.testing.assert_allclose(mask.affine, AFFINE)
    sidecar = json.loads((tmp_path / "mask.json").read_text())
    assert sidecar["labels"] == {"liver": 1, "spleen": 2}
    assert sidecar["input"] == "scan.nii.gz"
    assert (sidecar["steps"], sidecar["seed"], sidecar["scheduler"]) == (4, 7, "ddim")
    assert sidecar["precision"] == "float32"
    assert str(tmp_path) not in (tmp_path / "mask.json").read_text()
    statistics = json.loads((tmp_path / "s.json").read_text())
    liver_ml = np.count_nonzero(body() > 20) * 2 * 2 * 5 / 1000
    assert statistics["organs"]["liver"]["volume_ml"] == pytest.approx(liver_ml)
    assert statistics["organs"]["spleen"]["found"] is False
    assert fake_model["organs"] == ("liver", "spleen")
    assert (fake_model["device"], fake_model["model"], fake_model["batch_size"]) == ("cpu", "small", 16)
    assert f"{liver_ml:,.1f}" in out
    assert "not found: spleen" in out
    for name in written(tmp_path):
        assert name in out.replace("\n", "")


@pytest.mark.usefixtures("fake_model")
def test_predict_json_is_one_object(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, err = run("predict", "-i", scan, "-o", tmp_path / "mask.nii.gz", "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert list(answer["found_ml"]) == ["liver"]
    assert answer["not_found"] == ["spleen"]
    assert (answer["accepted"], answer["findings"]) == (True, [])
    assert answer["files"]["mask"] == str(tmp_path / "mask.nii.gz")


@pytest.mark.usefixtures("fake_model")
def test_quiet_prints_nothing(run: Run, scan: Path, tmp_path: Path) -> None:
    assert run("predict", "-i", scan, "-o", tmp_path / "m.nii", "-q") == (0, "", "")
    assert written(tmp_path) == ["m.json", "m.nii"]


@pytest.mark.usefixtures("fake_model")
def test_a_warning_goes_to_stderr_and_the_mask_is_made(run: Run, tmp_path: Path) -> None:
    clipped = save(np.clip(body(), -125, 275), tmp_path / "clipped.nii.gz")
    code, _, err = run("predict", "-i", clipped, "-o", tmp_path / "m.nii.gz", "--quiet")
    assert code == 0
    assert err.startswith("warning: ")
    assert err.count("\n") == 1
    assert "window" in err
    code, out, _ = run("predict", "-i", clipped, "-o", tmp_path / "m.nii.gz", "--json")
    assert [(finding["code"], finding["level"]) for finding in json.loads(out)["findings"]] == [("windowed", "warn")]


@pytest.mark.usefixtures("fake_model")
def test_progress_of_one_scan_is_an_object_a_line(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, err = run("predict", "-i", scan, "-o", tmp_path / "m.nii.gz", "--progress-json")
    assert (code, err) == (0, "")
    slices, case = map(json.loads, out.splitlines())
    assert slices == {"event": "slices", "case": "scan.nii.gz", "done": 1, "total": 1}
    assert (case["event"], case["state"], case["not_found"]) == ("case", "done", ["spleen"])


def bad_inputs() -> dict[str, Callable[[Path], Path]]:
    """Name of a kind of bad input -> what writes one."""
    values = body().astype(np.float32)
    poisoned = values.copy()
    poisoned[3, 3, 3] = np.nan
    unit = (values - values.min()) / np.ptp(values)

    def plain(content: bytes) -> Callable[[Path], Path]:
        return lambda folder: (folder / "bad.nii.gz", (folder / "bad.nii.gz").write_bytes(content))[0]

    def truncated(folder: Path) -> Path:
        path = save(body(), folder / "bad.nii.gz")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    def volume(array: np.ndarray) -> Callable[[Path], Path]:
        return lambda folder: save(array, folder / "bad.nii.gz")

    return {
        "absent": lambda folder: folder / "absent.nii.gz",
        "empty file": plain(b""),
        "not a volume": plain(b"no scan here\n" * 100),
        "truncated gzip": truncated,
        "2D": volume(values[:, :, 0]),
        "4D": volume(np.stack([values, values], axis=-1)),
        "NaN": volume(poisoned),
        "all zeros": volume(np.zeros_like(values)),
        "rescaled": volume(unit),
        "one slice": volume(values[:, :, :1]),
        "masks in a folder": lambda folder: save(body(), folder / "one.nii.gz").parent,
    }


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize("kind", list(bad_inputs()))
def test_bad_input_is_one_line_and_nothing_written(run: Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    bad = bad_inputs()[kind](tmp_path / "in")
    code, out, err = run(
        *("predict", "-i", bad, "-o", tmp_path / "m.nii.gz"),
        *("--statistics", tmp_path / "s.json", "--preview", tmp_path / "p.png"),
    )
    assert (code, out) == (3, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert bad.name in err
    assert written(tmp_path) == []


@pytest.mark.usefixtures("fake_model")
def test_predict_json_names_the_reasons_of_a_refusal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    bad = save(body()[:, :, :2] * 0, tmp_path / "in" / "bad.nii.gz")
    for source, output, organs, codes in (
        (bad, "m.nii.gz", "liver", ["too_few_slices", "constant"]),
        (tmp_path / "in" / "absent.nii.gz", "m.nii.gz", "liver", ["not_found"]),
        (bad, "none/m.nii.gz", "liver", ["output"]),
        (bad, "m.nii.gz", "tail", ["unknown_organ"]),
    ):
        code, out, err = run("predict", "-i", source, "-o", tmp_path / output, "--organs", organs, "--json")
        answer = json.loads(out)
        assert code == 3
        assert (answer["input"], answer["accepted"]) == (str(source), False)
        refusals = [finding for finding in answer["findings"] if finding["level"] == "refuse"]
        assert [finding["code"] for finding in refusals] == codes
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert all(finding["message"] in err for finding in refusals)
        assert written(tmp_path) == []


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize("how", ["--quiet", "--json"])
def test_an_empty_mask_is_never_silent(run: Run, scan: Path, tmp_path: Path, how: str) -> None:
    def segment(_: object, scan: Scan, *_rest: object) -> Segmentation:
        empty = Volume(np.zeros(scan.volume.shape, np.uint8), scan.volume.affine)
        return a_segmentation(empty, {"liver": 1, "spleen": 2})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meddelinea.segmentation.predict.segment", segment)
        code, out, err = run("predict", "-i", scan, "-o", tmp_path / "m.nii.gz", how)
    assert code == 0
    assert err.startswith("warning: ")
    assert err.count("\n") == 1
    assert "no organ was found" in err
    if how == "--json":
        assert [finding["code"] for finding in json.loads(out)["findings"]] == ["empty_mask"]


@pytest.mark.usefixtures("fake_model")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--organs", "liver,spleeen"], 3, "spleeen"),
        (["--organs", " , "], 2, "no name; expected one or more, separated by commas (--organs)"),
        (["--organs", "liver,liver"], 2, "twice"),
        (["--scheduler", "magic"], 2, "euler_ancestral"),
        (["--device", "abacus"], 2, "cuda"),
        (["--steps", "0"], 2, "steps"),
        (["--batch-size", "0"], 2, "batch"),
        (["--preview", "p.pdf"], 3, ".png"),
        (["--statistics", "s.csv"], 3, ".json"),
        (["--statistics", "OUT/m.json"], 2, "share"),
        (["--magic"], 2, "--help"),
        (["-o", "OUT/m.tiff"], 2, ".nii.gz"),
        (["-o", "OUT/none/m.nii.gz"], 3, "none"),
        (["--preview", "OUT/none/p.png"], 3, "none"),
        (["-o", "SCAN"], 2, "overwrite"),
    ],
)
def test_a_bad_request_is_one_line_and_nothing_written(
    run: Run, scan: Path, tmp_path: Path, words: list[str], code: int, said: str
) -> None:
    before = scan.read_bytes()
    words = [word.replace("OUT", str(tmp_path)).replace("SCAN", str(scan)) for word in words]
    met, out, err = run("predict", "-i", scan, "-o", tmp_path / "m.nii.gz", *words)
    assert (met, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert written(tmp_path) == []
    assert scan.read_bytes() == before
