"""The cases of a run: drawn by share, inherited, recorded, and none twice from two datasets."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from meddelinea.data.store import read_manifest
from meddelinea.errors import InputRefusedError
from meddelinea.scan import Modality
from meddelinea.training.cases import choose_cases, mixed_datasets, model_limits
from support.tiny_models import CASES, blobs, change_cases, run_config, write_store
from support.training_runs import control_config, train


def test_cases_are_drawn_by_share_and_recorded(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    config = control_config(
        store, parts, tmp_path / "run", data={"train": (), "split": {"train": 0.4, "validation": 0.3}}
    )
    cases = json.loads((train(config) / "pipeline" / "training_cases.json").read_text())
    parted = {role: [case["name"] for case in cases[role]] for role in ("train", "validation", "test")}
    del parted["train"][1:]  # those that the codec and the base were trained on
    assert sorted(parted["train"] + parted["validation"] + parted["test"]) == list(CASES)
    assert [len(part) for part in parted.values()] == [1, 1, 1]
    few = choose_cases(config.data.model_copy(update={"train_share": 0.01}))
    assert few.train == tuple(parted["train"])


def test_training_cases_are_inherited(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    """What the base has seen is no test case of a model made from it."""
    first = train(control_config(store, parts, tmp_path / "first")) / "pipeline"
    config = run_config("model", store, tmp_path / "second", model={"pipeline": first}, data={"train": CASES[2:]})
    cases = json.loads((train(config) / "pipeline" / "training_cases.json").read_text())
    assert [case["name"] for case in cases["train"]] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("modality", "appearance", "expected"),
    [("CT", 0.0, ("CT",)), ("CT", 0.5, ("CT", "MR")), ("MR", 0.5, ("MR",))],
)
def test_a_model_of_cts_of_random_appearance_takes_mrs_too(
    store: Path, tmp_path: Path, modality: Modality, appearance: float, expected: tuple[Modality, ...]
) -> None:
    config = run_config("codec", store, tmp_path / "run", data={"augmentation": {"appearance": appearance}})
    manifest = read_manifest(store)
    cases = [replace(case, modality=modality) for case in manifest.cases]
    assert model_limits(config, cases, manifest.preprocessing).modalities == expected


def test_a_run_that_mixes_datasets_which_share_scans_is_told(
    store: Path, parts: dict[str, Path], tmp_path: Path
) -> None:
    root = write_store(tmp_path / "mixed", blobs())
    keys = dict(zip(CASES, ("abdomenatlas", "abdomenatlas", "btcv"), strict=True))
    change_cases(root, lambda case: replace(case, dataset=keys[case.name]))
    config = control_config(root, parts, tmp_path / "run", data={"validation": CASES[2:]})
    (warning,) = mixed_datasets(config)
    assert "trained on abdomenatlas, tested on btcv" in warning
    assert mixed_datasets(control_config(root, parts, tmp_path / "run")) == []
    # A model that was pre-trained on the one is not tested unseen on the other either.
    pipeline = train(config) / "pipeline"
    onwards = run_config(
        "model", root, tmp_path / "on", model={"pipeline": pipeline},
        data={"train": (), "split": {"train": 0.5}},
    )  # fmt: skip
    change_cases(root, lambda case: replace(case, dataset="amos"))
    (warning,) = mixed_datasets(onwards)
    assert "trained on abdomenatlas, tested on amos" in warning


def test_cases_that_the_store_lacks_are_named(store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError, match="cases z are not in the store"):
        train(run_config("codec", store, tmp_path / "run", data={"train": ["a", "z"]}))
