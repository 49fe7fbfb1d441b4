"""Adapting a model: who is held out, when it stops, and that a worse model never replaces a better one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from meddelinea.cli.main import main
from meddelinea.data.store import SliceStore
from meddelinea.errors import MedDelineaError, UsageError
from meddelinea.segmentation.model import load_model
from meddelinea.training.adapt import Adaptation, AdaptSettings
from support.tiny_models import CASES, blobs, change_cases, run_config, write_blobs, write_store
from support.training_runs import adapt, train

SETTINGS = AdaptSettings(steps=6, every=2, patience=2, batch_size=2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("store") / "store")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for a few steps on a store of its own."""
    folder = tmp_path_factory.mktemp("base")
    slices = {f"base_{name}": pair for name, pair in blobs().items()}
    own = write_store(folder / "store", slices)
    names = tuple(slices)
    parts = {"codec": train(run_config("codec", own, folder / "codec", data={"crop": 32, "train": names})) / "codec"}
    parts["dit"] = train(run_config("base", own, folder / "dit", model=parts, data={"train": names})) / "dit"
    config = run_config("model", own, folder / "control", model=parts, data={"train": names}, precision="bf16")
    (train(config) / "pipeline").rename(folder / "tiny")
    return folder / "tiny"


def scored(monkeypatch: pytest.MonkeyPatch, score: Callable[[int, tuple[str, ...]], float]) -> None:
    """Let validation return a score of the step (0 for the base) and of the cases that are measured."""

    def dice(predict: Any, known: Any, *, store: SliceStore, config: Any, **_: Any) -> dict[str, float]:
        log = config.output / "metrics.jsonl"
        step = len(log.read_text().splitlines()) + 1 if config.steps else 0
        value = score(step, tuple(case.name for case in store.cases))
        return {"dice/liver": value, "dice": value}

    monkeypatch.setattr("meddelinea.training.run.validation_dice", dice)


def with_patients(store: Path, folder: Path, patients: dict[str, str]) -> Path:
    """A store whose cases are copies of the first one's, each of the patient it is given."""
    slices = blobs()["a"]
    root = write_store(folder / "many", dict.fromkeys(patients, slices))
    return change_cases(root, lambda case: replace(case, patient=patients[case.name]))


def test_the_best_step_over_the_left_out_patients_is_trained_on_all(
    base: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)  # no AMX, unlike where the base was trained
    course = {0: 0.3, 2: 0.4, 4: 0.6, 6: 0.5}
    measured: list[tuple[int, tuple[str, ...]]] = []

    def score(step: int, names: tuple[str, ...]) -> float:
        measured.append((step, names))
        return course[step]

    scored(monkeypatch, score)
    result = adapt(base, store, CASES, tmp_path / "adapted", SETTINGS)
    assert (result.kept, result.check, result.steps) == ("adapted", "each patient left out in turn", 4)
    assert (result.base["dice"], result.adapted["dice"]) == (0.3, 0.6)
    assert set(measured) == {(step, (name,)) for step in course for name in CASES}
    run = json.loads((tmp_path / "adapted" / "run.json").read_text())
    assert (run["steps"], run["data"]["train"]) == (4, list(CASES))
    assert run["model"]["trainable_decoder"] == "final_layer"
    assert torch.cuda.is_available() or run["precision"] == "no"
    cases = json.loads((tmp_path / "adapted" / "training_cases.json").read_text())["train"]
    assert [case["name"] for case in cases] == [*CASES, *(f"base_{name}" for name in CASES)][: len(cases)]
    assert json.loads((tmp_path / "adapted" / "adaptation.json").read_text())["from"] == "tiny"
    assert load_model(tmp_path / "adapted", "cpu").files.labels == {"spleen": 1, "liver": 2, "gallbladder": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapted"]


@pytest.mark.parametrize("cases", [CASES[:2], CASES])
def test_a_model_that_is_not_better_does_not_replace_its_base(
    base: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: tuple[str, ...]
) -> None:
    scored(monkeypatch, lambda step, names: 0.5)
    result = adapt(base, store, cases, tmp_path / "adapted", SETTINGS)
    assert result.kept == "base"
    files = {path.relative_to(base): path.read_bytes() for path in base.rglob("*") if path.is_file()}
    for name, content in files.items():
        assert (tmp_path / "adapted" / name).read_bytes() == content, name
    assert json.loads((tmp_path / "adapted" / "adaptation.json").read_text())["kept"] == "base"


def test_of_many_patients_a_quarter_is_held_out_and_stops_the_training(
    base: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patients = {f"{patient}_{kind}": patient for patient in "pqrs" for kind in ("t1", "t2")}
    many = with_patients(store, tmp_path, patients)
    course = {0: 0.1, 2: 0.7, 4: 0.6, 6: 0.5, 8: 0.9}
    scored(monkeypatch, lambda step, names: course[step])
    result = adapt(base, many, tuple(patients), tmp_path / "adapted", replace(SETTINGS, steps=20))
    assert (result.kept, result.check, result.steps) == ("adapted", "held-out patients", 2)
    assert len({patients[name] for name in result.held_out}) == 1
    assert not {patients[name] for name in result.held_out} & {patients[name] for name in result.train}
    assert sorted(result.train + result.held_out) == sorted(patients)


def test_one_patient_is_adapted_to_unchecked(base: Path, store: Path, tmp_path: Path) -> None:
    result = adapt(base, store, ("a",), tmp_path / "adapted", SETTINGS)
    assert (result.kept, result.check, result.held_out) == ("adapted", "none: one patient", ())
    assert not result.base
    assert not result.adapted


def test_new_organs_and_another_modality(base: Path, store: Path, tmp_path: Path) -> None:
    root = write_store(tmp_path / "mr", blobs(), organs=("liver", "uterus", "spleen"))
    change_cases(root, lambda case: replace(case, modality="MR"))
    settings = replace(SETTINGS, steps=60, every=30, learning_rate=5e-3, batch_size=6)
    result = adapt(base, root, CASES[:2], tmp_path / "adapted", settings)
    assert result.kept == "adapted"
    assert result.base["dice/uterus"] == 0.0  # an organ that the base does not know
    assert result.adapted["dice"] > result.base["dice"]
    model = load_model(tmp_path / "adapted", "cpu")
    assert model.files.labels == {"liver": 1, "uterus": 2, "spleen": 3}
    assert model.files.modalities == ("MR",)


def test_an_output_that_exists_is_left_alone(base: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "adapted").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        adapt(base, store, CASES, tmp_path / "adapted", SETTINGS)
    with pytest.raises(UsageError, match="no case to adapt to"):
        adapt(base, store, (), tmp_path / "other", SETTINGS)
    assert not (tmp_path / "other").exists()


def test_a_training_that_fails_leaves_no_model(
    base: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    with pytest.raises(MedDelineaError, match="gradient norm inf at step 1"):
        adapt(base, store, ("a",), tmp_path / "adapted", SETTINGS)
    assert not any(tmp_path.glob("*adapted*"))
    assert not any(tmp_path.glob(".*"))


# On the command line, with real MRIs in a layout that a user would make


#: Every second pixel of slices that together show all four organs in each of the MRIs.
PART = np.s_[::2, ::2, 12:21]


def write_pairs(data: Path, source: Path, part: tuple[slice, ...] = np.s_[:, :, :]) -> Path:
    """Three of the real T2 MRIs, or a part of each, as `images/`, `labels/` and `labels.json`; returns `source`."""
    for folder, kind in (("images", "img"), ("labels", "label")):
        (source / folder).mkdir(parents=True)
        for number in ("01", "02", "03"):
            image = nib.load(data / "chaos_mr" / kind / f"t2spir_{number}.nii.gz")
            nib.save(image.slicer[part], source / folder / f"p{number}.nii.gz")
    labels = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}
    (source / "labels.json").write_text(json.dumps({"modality": "MR", "labels": labels}))
    return source


@pytest.fixture
def pairs(data: Path, tmp_path: Path) -> Path:
    return write_pairs(data, tmp_path / "mine", PART)


def meddelinea(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_adapt_then_predict(base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "mine-model"
    assert meddelinea("adapt", pairs, output, "--model", base, "--cases", "p01,p02", "--steps", 30) == 0
    printed = capsys.readouterr().out
    assert "compared on: each patient left out in turn (p01, p02)" in printed
    result = json.loads((output / "adaptation.json").read_text())
    assert f"{result['adapted']['dice']:.3f}" in printed
    assert result["adapted"].keys() >= {"dice/liver", "dice/right kidney", "dice/left kidney", "dice/spleen"}
    assert result["kept"] == ("adapted" if result["adapted"]["dice"] > result["base"]["dice"] else "base")
    assert not list(tmp_path.glob(".*")), "nothing unfinished is left behind"
    if result["kept"] == "adapted":
        scan = pairs / "images" / "p03.nii.gz"  # a NIfTI, which does not say that it is an MR
        assert meddelinea("predict", "-i", scan, "-o", tmp_path / "mask.nii.gz", "--model", output, "-q") == 0
        assert (
            meddelinea("predict", "-i", scan, "-o", tmp_path / "m.nii.gz", "--model", output, "--modality", "CT") == 3
        )
        assert "expected MR, which the model was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cases", "p01,p09"], "p09; expected some of p01, p02, p03"),
        (["--format", "magic"], "unknown dataset format 'magic'"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_adapt_refuses_what_cannot_be_meant(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    model = [] if "--model" in words else ["--model", base]
    assert meddelinea("adapt", pairs, tmp_path / "out", *model, *words) in (2, 5)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_shape_is_named(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = pairs / "labels" / "p02.nii.gz"
    short = nib.load(mask).slicer[:, :, 1:]
    nib.save(nib.Nifti1Image(np.asarray(short.dataobj), short.affine), mask)
    assert meddelinea("adapt", pairs, tmp_path / "out", "--model", base) == 3
    assert "p02" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_scan_without_its_mask_is_told_or_refused(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pairs / "labels" / "p03.nii.gz").unlink()
    words = ("adapt", pairs, tmp_path / "out", "--model", base, "--steps", 1)
    assert meddelinea(*words, "--cases", "p03") == 3
    assert "p03" in capsys.readouterr().err
    assert meddelinea(*words) == 0
    assert "left out: p03: " in capsys.readouterr().err


def test_the_few_shot_table(base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("benchmark", "few-shot", pairs, tmp_path / "out", "--format", "pairs", "--model", base, "--k", "1,2")
    assert meddelinea(*words, "--steps", 4) == 0
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "few_shot.json").read_text())
    assert len(document["given"]) == 2
    assert len(document["tested"]) == 1
    assert not set(document["given"]) & set(document["tested"])
    assert [row["volumes"] for row in document["rows"]] == [0, 1, 2]
    assert printed.count("\n| ") == 5  # head, rule, k = 0, 1, 2
    assert printed.endswith((tmp_path / "out" / "few_shot.md").read_text())
    for row in document["rows"]:
        assert [case["case"] for case in row["cases"]] == document["tested"]
        assert {score["organ"] for score in row["cases"][0]["scores"]} == set(document["organs"])
        dice = row["summary"]["mean_over_organs"]["dice"]
        assert f"| {dice:.3f} |" in printed
    assert meddelinea(*words) == 2  # the folder exists
    assert meddelinea(*words[:3], tmp_path / "new", *words[4:-1], "3") == 2  # nobody is left to test on


def test_organs_that_the_base_does_not_know_count_as_missed(
    base: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert meddelinea(
        "benchmark", "few-shot", pairs, tmp_path / "out", "--format", "pairs", "--model", base, "--k", "1", "--steps", 1
    ) == 0  # fmt: skip
    rows = json.loads((tmp_path / "out" / "few_shot.json").read_text())["rows"]
    as_it_is = {organ["organ"]: organ for organ in rows[0]["summary"]["organs"]}
    assert as_it_is["left kidney"]["dice"] == 0.0
    assert as_it_is["left kidney"]["missed"] == 2


@pytest.mark.slow
def test_the_shipped_model_learns_mri_from_two_volumes(data: Path, tmp_path: Path) -> None:
    """Trained on CT alone; the least that an adaptation has to do for a user."""
    pairs = write_pairs(data, tmp_path / "mine")
    words = ("benchmark", "few-shot", pairs, tmp_path / "out", "--format", "pairs", "--k", "2", "--steps", 75)
    assert meddelinea(*words) == 0
    before, after = json.loads((tmp_path / "out" / "few_shot.json").read_text())["rows"]
    dice = [row["summary"]["mean_over_organs"]["dice"] for row in (before, after)]
    print(f"mean Dice as it is {dice[0]:.3f}, adapted with 2 volumes {dice[1]:.3f}")
    assert after["adaptation"]["kept"] == "adapted"
    assert dice[1] > max(0.6, dice[0] + 0.2)


@pytest.mark.parametrize(("count", "kept"), [(1, "adapted"), (4, "adapted"), (4, "base")])
def test_a_model_adapted_to_small_crops_takes_such_crops(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    count: int,
    kept: str,
) -> None:
    """Crops that a model for whole abdomens refuses; most are none of its training. A kept base is warned of."""
    scored(monkeypatch, lambda step, names: 0.5 + (step > 0) * (0.1 if kept == "adapted" else -0.1))
    rng, source = np.random.default_rng(0), tmp_path / "crops"
    for folder in ("images", "labels"):
        (source / folder).mkdir(parents=True)
    for number in range(6):
        shape = tuple(rng.integers((30, 40, 24), (40, 56, 40)))
        mask = np.zeros(shape, np.uint8)
        mask[8:20, 10:30, 6:18] = 1
        values = rng.gamma(4.0, 25.0, shape) * 10.0 ** rng.integers(0, 4) * (1 + mask)
        for folder, array in (("images", values.astype(np.float32)), ("labels", mask)):
            nib.save(nib.Nifti1Image(array, np.diag([-1.0, 1.0, 1.0, 1.0])), source / folder / f"c{number}.nii.gz")
    (source / "labels.json").write_text(json.dumps({"modality": "MR", "labels": {"nucleus": 1}}))
    names = ",".join(f"c{number}" for number in range(count))
    words = ("adapt", source, tmp_path / "crop", "--model", base, "--cases", names, "--steps", 6, "-q")
    assert meddelinea(*words) == 0
    result = Adaptation.read(tmp_path / "crop")
    assert result.kept == kept
    warned = capsys.readouterr().err
    if kept == "base":
        assert set(result.refused) == set(names.split(","))
        assert warned.count("refuses to segment it") == count
        return
    assert (result.refused, warned) == ({}, "")
    for number in range(6):
        assert meddelinea("check", source / "images" / f"c{number}.nii.gz", "--model", tmp_path / "crop") == 0
        assert meddelinea("check", source / "images" / f"c{number}.nii.gz", "--modality", "MR", "--model", base) == 3
    scan, mask = source / "images" / "c5.nii.gz", tmp_path / "mask.nii.gz"
    assert meddelinea("predict", "-i", scan, "-o", mask, "--model", tmp_path / "crop", "-q") == 0


@pytest.mark.slow
def test_the_hippocampi_that_a_model_was_not_adapted_to_are_all_segmented(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cropped MRIs of the Medical Segmentation Decathlon, on wildly different scales."""
    root = data / "msd_hippocampus"
    images = sorted(path for path in (root / "imagesTr").glob("[!.]*.nii.gz") if "_118" not in path.name)
    names = ",".join(path.name.removesuffix(".nii.gz") for path in images[:20])
    model, given, masks = tmp_path / "hippocampus", tmp_path / "given", tmp_path / "masks"
    assert meddelinea("adapt", root, model, "--format", "msd", "--cases", names, "--steps", 30, "-q") == 0
    given.mkdir()
    for path in images[20:]:
        (given / path.name).symlink_to(path)
    assert meddelinea("predict", "-i", given, "-o", masks, "--model", model, "-q") == 0
    assert len(list(masks.glob("*.nii.gz"))) == len(images) - 20
