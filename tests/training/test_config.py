"""Run files: what is wrong with one is said in one line, before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from meddelinea.benchmark.bench_file import read_bench_file
from meddelinea.benchmark.paper_file import read_paper_bench
from meddelinea.errors import InputRefusedError, MedDelineaError, UsageError
from meddelinea.training.config import RunConfig
from meddelinea.training.run_file import load_config

LEAST: dict[str, Any] = {"stage": "base", "output": "out", "steps": 10, "data": {"store": "s", "train": ["a", "b"]}}


def load(folder: Path, changes: dict[str, Any] | None = None, overrides: tuple[str, ...] = ()) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**LEAST, **(changes or {})}))
    return load_config(path, overrides)


def refusal(kind: type[MedDelineaError], folder: Path, *arguments: Any) -> str:
    with pytest.raises(kind) as caught:
        load(folder, *arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_least_run_file(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert (config.stage, config.steps, config.output) == ("base", 10, Path("out"))
    assert config.data.train == ("a", "b")
    assert config.objective.prediction_type == "epsilon"  # the paper's
    assert config.precision == "no"


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml")), ids=str)
def test_every_recipe_is_valid(recipe: Path) -> None:
    content = yaml.safe_load(recipe.read_text())
    if "settings" in content:  # the paper's comparisons
        read_paper_bench(recipe)
    elif "methods" in content:  # a benchmark of run files
        read_bench_file(recipe)
    else:
        load_config(recipe)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": 3}, ["step", "3"]),
        ({"optimiser": {"lerning_rate": 1.0}}, ["optimiser.lerning_rate"]),
        ({"objective": {"predicts": "epsilon"}}, ["objective.predicts"]),
        ({"data": {**LEAST["data"], "augmentation": {"rotation": 5}}}, ["data.augmentation.rotation"]),
        ({"steps": "many"}, ["steps", "'many'"]),
        ({"steps": -1}, ["steps", "-1"]),
        ({"batch_size": -1}, ["batch_size", "-1"]),
        ({"stage": "decoder"}, ["stage", "'decoder'"]),
        ({"precision": "fp8"}, ["precision", "'fp8'"]),
        ({"precision": True}, ["precision", "True"]),
        ({"minutes": 0}, ["minutes", "0"]),
        ({"optimiser": {"ema_decay": 1.0}}, ["optimiser.ema_decay", "1.0"]),
        ({"optimiser": None}, ["optimiser"]),
        ({"data": {**LEAST["data"], "rare_organ_share": 1.5}}, ["data.rare_organ_share", "1.5"]),
        ({"data": {**LEAST["data"], "crop": 20}}, ["data.crop", "20"]),
        ({"data": {**LEAST["data"], "augmentation": {"crop": 64}}}, ["data.augmentation.crop", "64"]),
        ({"data": {"store": "s", "train": []}}, ["data.train"]),
        ({"data": {"store": "s", "train": "a"}}, ["data.train", "'a'"]),
        ({"data": {"train": ["a"]}}, ["data.store"]),
        ({"objective": {"prediction_type": "noise"}}, ["objective.prediction_type", "'noise'"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    message = refusal(UsageError, tmp_path, changes)
    assert all(word in message for word in [str(tmp_path / "run.yaml"), *words]), message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": ["a", "b", "c"], "validation": ["d", "b"]}, "cases b are named twice"),
        ({"train": ["a", "b"], "test": ["a"]}, "cases a are named twice"),
        ({}, "data.train, or data.split"),
        ({"train": ["a"], "split": {"train": 0.5}}, "data.train, or data.split"),
        ({"split": {"train": 0.5}, "test": ["a"]}, "leave their names out"),
        ({"split": {"train": 0.8, "validation": 0.3}}, "add up to more than 1"),
        ({"train": ["a"], "crop": 64, "resolutions": [64]}, "set one of them"),
    ],
)
def test_cases_that_contradict_each_other_are_refused(tmp_path: Path, data: dict[str, Any], words: str) -> None:
    assert words in refusal(UsageError, tmp_path, {"data": {"store": "s", **data}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "model", "model": {"trainable_decoder": "none"}}, "set objective.pixel_loss: cross_entropy"),
        (
            {"stage": "model", "model": {"method": "direct"}, "objective": {"segmentation": False}},
            "leave objective.segmentation: true",
        ),
        ({"sharding": True, "precision": "fp16"}, "set precision: bf16"),
        ({"sharding": True, "optimiser": {"kind": "muon"}}, "set optimiser.kind: adamw"),
        ({"validation": {"patience": 2}}, "set validation.every"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refusal(UsageError, tmp_path, changes)


def test_a_file_is_laid_over_the_one_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "ground.yaml").write_text(
        yaml.safe_dump({**LEAST, "optimiser": {"learning_rate": 0.5, "warmup_steps": 3}})
    )
    (tmp_path / "middle.yaml").write_text("extends: ground.yaml\nsteps: 7\n")
    (tmp_path / "top.yaml").write_text("extends: middle.yaml\noptimiser: {warmup_steps: 9}\ndata: {train: [c]}\n")
    config = load_config(tmp_path / "top.yaml")
    assert (config.steps, config.optimiser.learning_rate, config.optimiser.warmup_steps) == (7, 0.5, 9)
    assert (config.data.train, config.data.store) == (("c",), Path("s"))
    (tmp_path / "ground.yaml").write_text("extends: top.yaml\n")
    with pytest.raises(InputRefusedError, match="extends itself"):
        load_config(tmp_path / "top.yaml")


def test_overrides_reach_into_sections_and_are_yaml(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        {"optimiser": {"learning_rate": 0.5, "warmup_steps": 7}},
        (
            "steps=25",
            "optimiser.learning_rate=1e-3",
            "data.train=[c, d]",
            "data.augmentation.rotation_deg=3",
            "model.sizes={width: 64}",
            "minutes=null",
            "objective.segmentation=false",
            "output=a=b",
        ),
    )
    assert config.steps == 25
    assert config.optimiser.learning_rate == 1e-3
    assert config.optimiser.warmup_steps == 7  # the section's other settings stay
    assert config.data.train == ("c", "d")
    assert config.data.augmentation.rotation_deg == 3
    assert config.model.sizes == {"width": 64}
    assert config.minutes is None
    assert config.objective.segmentation is False
    assert config.output == Path("a=b")


def test_no_is_a_precision_although_yaml_takes_it_for_false(tmp_path: Path) -> None:
    assert load(tmp_path, {"precision": "bf16"}, ("precision=no",)).precision == "no"


@pytest.mark.parametrize(
    ("gpu", "capabilities", "precision"),
    [
        (True, {}, "bf16"),
        (False, {"amx_bf16": True}, "no"),  # a GPU of before bfloat16
        (None, {"amx_bf16": True}, "bf16"),
        (None, {"amx_bf16": False, "avx512_bf16": True}, "no"),
        (None, {"bf16": True}, "no"),  # an ARM processor
        (None, None, "no"),  # a torch that cannot tell
    ],
)
def test_auto_is_what_the_machine_multiplies_fast(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool | None,
    capabilities: dict[str, bool] | None,
    precision: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    if capabilities is not None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    config = load(tmp_path, {"precision": "auto"})
    assert config.precision == precision
    assert json.loads(config.model_dump_json())["precision"] == precision


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("steps", "key=value"),
        ("steps=-5", "steps"),
        ("optimiser.rate=1", "optimiser.rate"),
        ("steps.more=1", "steps"),
        ("data.train=[a", "not YAML"),
        ("=3", "key=value"),
    ],
)
def test_a_wrong_override_is_refused(tmp_path: Path, override: str, word: str) -> None:
    assert word in refusal(UsageError, tmp_path, {}, (override,))


def test_an_override_fills_a_section_that_the_file_leaves_empty(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(LEAST) + "model:\n")
    assert load_config(path, ("model.preset=paper",)).model.preset == "paper"


@pytest.mark.parametrize(
    "content", [b"stage: [base", b"\x89PNG\r\n\xff\xfe", b"just words", b"- a\n- b\n", b"", b"a: \x00"], ids=repr
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputRefusedError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"stage: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'made'}]\n")
    with pytest.raises(InputRefusedError):
        load_config(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("absent", ["missing.yaml", "."])
def test_an_absent_file_is_refused(tmp_path: Path, absent: str) -> None:
    with pytest.raises(InputRefusedError, match="not a readable YAML file"):
        load_config(tmp_path / absent)


def test_a_written_run_is_read_back(tmp_path: Path) -> None:
    config = load(tmp_path, {"minutes": 2.5, "objective": {"prediction_type": "sample"}})
    (tmp_path / "run.json").write_text(config.model_dump_json())
    assert load_config(tmp_path / "run.json") == config
