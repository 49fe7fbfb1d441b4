"""Bad scans through the command line: each is refused or warned about for its reason, and none in silence.

Each runs through `check --json` and `predict --json`. For those that are warned about the network is replaced by
a threshold, except where the mask is what the test is about.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea.checks.limits import FILE, VERSION
from meddelinea.cli.main import main
from meddelinea.findings import Caution, Refusal
from meddelinea.scan import Scan
from meddelinea.segmentation.model import model_folder
from meddelinea.segmentation.predict import Segmentation
from meddelinea.volume import Volume
from support.bad_scans import REFUSALS, WARNINGS, BadScan
from support.scans import a_segmentation
from support.spoiled_scans import AFFINE, body, forms, nifti, pipe

DOCUMENT = Path(__file__).parents[2] / "docs" / "checks.md"
SOURCE = Path(__file__).parents[2] / "src" / "meddelinea"
REFUSED = 3
#: Words that a remedy begins with.
REMEDY = re.compile(
    r"expected .*[;:,] (is it complete|check|choose|convert|copy|correct|do not|export|fetch|find|give|move|pass|read|"
    r"remove|repair|replace|resample|save|say|split|subtract|add|unpack|use|zip|multiply)\b"
)
#: Reasons that no scan on a disk can give: of the library's arrays, of the options, of the outputs, and of all else.
NOT_OF_FILES = {"not_numbers", "too_large", "unknown_organ", "refused"} | {
    *("output", "output_exists", "output_locked", "output_clash"),
}
OF_MASKS = {"left_out", "empty_mask", "unlikely_sizes"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By what they were trained on: models of which only the description is there."""
    described = {}
    for name, modalities in {"CT": ["CT"], "MR": ["MR"], "both": ["CT", "MR"]}.items():
        folder = tmp_path_factory.mktemp("model")
        for file in ("labels.json", "preprocessing.json", "training_cases.json", "model_index.json"):
            shutil.copy(model_folder("small") / file, folder)
        content = json.loads((folder / "preprocessing.json").read_text())
        (folder / "preprocessing.json").write_text(json.dumps(content | {"modalities": modalities}))
        described[name] = str(folder)
    limits = {"version": VERSION, "planes": ["coronal"]}
    folder = Path(shutil.copytree(described["MR"], tmp_path_factory.mktemp("model") / "coronal"))
    shutil.copy(model_folder("small") / "preprocessing.json", folder)
    (folder / FILE).write_text(json.dumps(limits))
    return {**described, "coronal": str(folder)}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, Any, str]]:
    """Run `meddelinea WORDS... --json`: exit code, the object on stdout, stderr."""
    monkeypatch.setattr("logging.disable", lambda level: None)  # process-wide, so it would outlive the test

    def call(*words: object) -> tuple[int, Any, str]:
        with pytest.raises(SystemExit) as stop:
            main([*(str(word) for word in words), "--json"])
        out, err = capsys.readouterr()
        assert out, err
        return int(stop.value.code or 0), json.loads(out), err

    return call


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def coded(answer: dict[str, Any], level: str) -> list[str]:
    return [finding["code"] for finding in answer["findings"] if finding["level"] == level]


def test_the_zoo_has_sixty_beasts_and_one_for_each_reason() -> None:
    names = [bad.name for bad in REFUSALS + WARNINGS]
    assert len(set(names)) == len(names) >= 60
    assert {bad.level for bad in REFUSALS} == {"refuse"}
    assert {bad.level for bad in WARNINGS} == {"warn"}
    assert {bad.code for bad in REFUSALS} == set(get_args(Refusal)) - NOT_OF_FILES
    assert {bad.code for bad in WARNINGS} == set(get_args(Caution)) - OF_MASKS


@pytest.mark.parametrize("bad", REFUSALS, ids=lambda bad: bad.name)
def test_it_is_refused_for_its_reason_and_nothing_is_written(
    bad: BadScan,
    tmp_path: Path,
    models: dict[str, str],
    run: Callable[..., tuple[int, Any, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_model(*_: object) -> None:
        raise AssertionError("a refused scan must not cost the loading of a model")

    monkeypatch.setattr("meddelinea.segmentation.model.load_model", load_model)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    if bad.make is pipe and not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    source = bad.make(tmp_path / "in")
    before = listing(tmp_path)

    code, answer, err = run("check", source, "--model", models[bad.model])
    assert (code, answer["accepted"], err) == (REFUSED, False, "")
    assert coded(answer, "refuse") == [bad.code]
    (message,) = (finding["message"] for finding in answer["findings"] if finding["level"] == "refuse")
    assert bad.says in message
    assert REMEDY.search(message), message

    out = tmp_path / "out"
    words = ("-o", out / "mask.nii.gz", "--statistics", out / "s.json", "--preview", out / "p.png")
    code, said, err = run("predict", "-i", source, *words, "--model", models[bad.model])
    assert (code, said["accepted"], said["findings"]) == (REFUSED, False, answer["findings"])
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert str(source) in err
    assert " ".join(message.split()) in err
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "bad", [bad for bad in REFUSALS if bad.model == "CT" and bad.code != "modality"], ids=lambda bad: bad.name
)
def test_a_model_of_both_modalities_gives_the_same_reason(
    bad: BadScan, tmp_path: Path, models: dict[str, str], run: Callable[..., tuple[int, Any, str]]
) -> None:
    if bad.make is pipe and not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes on this system")
    code, answer, _ = run("check", bad.make(tmp_path), "--model", models["both"])
    (met,) = coded(answer, "refuse")
    assert code == REFUSED
    # What is no CT as far as its values tell may well be an MR, unless its file says that it is a CT.
    assert met == bad.code or (bad.code, met) == ("not_hounsfield", "modality_unknown")


@pytest.fixture
def threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAKE: a model that calls all that is above 20 HU liver."""

    def segment(_: object, scan: Scan, *_rest: object) -> Segmentation:
        mask = Volume((scan.volume.array > 20).astype(np.uint8), scan.volume.affine)
        return a_segmentation(mask, {"liver": 1})

    monkeypatch.setattr("meddelinea.segmentation.model.load_model", lambda *_: object())
    monkeypatch.setattr("meddelinea.segmentation.predict.segment", segment)


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("bad", WARNINGS, ids=lambda bad: bad.name)
def test_it_is_warned_about_and_segmented(
    bad: BadScan, tmp_path: Path, models: dict[str, str], run: Callable[..., tuple[int, Any, str]]
) -> None:
    (tmp_path / "in").mkdir()
    source = bad.make(tmp_path / "in")
    code, answer, err = run("check", source, "--model", models[bad.model])
    assert (code, answer["accepted"], err) == (0, True, "")
    assert coded(answer, "warn") == [bad.code]
    assert bad.says in answer["findings"][0]["message"]

    code, said, err = run("predict", "-i", source, "-o", tmp_path / "mask.nii.gz", "--model", models[bad.model])
    assert (code, said["accepted"], said["findings"]) == (0, True, answer["findings"])
    assert err.splitlines() == [f"warning: {source}: {answer['findings'][0]['message']}"]
    assert np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).any()


def test_a_mask_without_any_organ_is_warned_about(tmp_path: Path, run: Callable[..., tuple[int, Any, str]]) -> None:
    """Seen by the shipped model itself: a bottle of water on foam is a sound CT without liver and gallbladder."""
    x, y, _ = np.meshgrid(*(np.linspace(-96, 96, n) for n in (48, 48, 4)), indexing="ij")
    bottle = np.select([np.hypot(x, y) < 25, abs(y - 40) < 6], [0.0, -90.0], -1000.0)
    noise = np.random.default_rng(0).normal(0, 8, bottle.shape)
    source = nifti((bottle + noise).astype(np.int16))(tmp_path)
    code, answer, err = run("predict", "-i", source, "-o", tmp_path / "mask.nii.gz", "--organs", "liver,gallbladder")
    assert (code, answer["found_ml"]) == (0, {})
    assert "empty_mask" in coded(answer, "warn")
    assert "no organ was found" in err
    assert not np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).any()


def test_the_document_lists_the_reasons_with_their_levels() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (refuse|warn) \| ", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    source = "".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "findings.py")
    given = {code for code in (*get_args(Refusal), *get_args(Caution)) if f'"{code}"' in source}
    assert given == {code for code, _ in rows}, "each reason is given by some check"
    expected = [(code, "refuse") for code in get_args(Refusal)] + [(code, "warn") for code in get_args(Caution)]
    assert sorted(rows) == sorted(expected)


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii"])
def test_every_nifti_that_is_written_has_both_forms_of_its_scan(
    name: str, tmp_path: Path, run: Callable[..., tuple[int, Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = AFFINE.copy()
    turned[0, 1] = 0.01
    source = nifti(body(), change=forms(AFFINE, turned))(tmp_path)
    monkeypatch.setattr(
        "meddelinea.results.result.Result.uncertainty", property(lambda result: result.mask), raising=True
    )
    code, _, _ = run("predict", "-i", source, "-o", tmp_path / name, "--uncertainty", tmp_path / "doubt.nii.gz")
    assert code == 0
    scan = sitk.ReadImage(str(source))
    for path in (tmp_path / name, tmp_path / "doubt.nii.gz"):
        header = nib.load(path).header
        np.testing.assert_allclose(header.get_sform(), turned, atol=1e-6)
        np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-6)
        made = sitk.ReadImage(str(path))  # it opens the scan by its qform
        assert (made.GetOrigin(), made.GetSpacing(), made.GetDirection()) == (
            scan.GetOrigin(),
            scan.GetSpacing(),
            scan.GetDirection(),
        )
