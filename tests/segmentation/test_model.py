"""A model's folder: what it holds is read, and one that is incomplete or absent is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from meddelinea.errors import UsageError, WeightsMissingError
from meddelinea.segmentation.model import load_model, read_model_files


def test_a_models_files_are_read(folder: Path) -> None:
    files = read_model_files(folder)
    assert (files.name, files.folder) == ("model", folder)
    assert files.labels == {"spleen": 1, "liver": 2, "gallbladder": 3}
    assert (files.preprocessing.size, files.preprocessing.spacing_mm) == (64, 6.0)
    assert files.preprocessing.window_hu == (-125.0, 275.0)
    assert files.modalities == ("CT",)
    assert 0.0 <= files.least_component_share <= 1.0
    assert files.training_cases == {"train": ["a", "b"], "validation": ["c"]}
    assert files.licence is None


def test_the_licence_is_read_from_the_model_card(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    (copy / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A model\n")
    assert read_model_files(copy).licence == "cc-by-4.0"


def test_weights_saved_as_float16_are_computed_with_in_float32(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    for weights in copy.rglob("*.safetensors"):
        save_file({name: value.half() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    pipeline = load_model(copy, "cpu").pipeline
    for component in (pipeline.codec, pipeline.dit, pipeline.control, pipeline.mask_head):
        assert {p.dtype for p in component.parameters()} == {torch.float32}


def copied(folder: Path, to: Path) -> Path:
    """A copy of a model's folder to damage."""
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / "copy" / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to / "copy"


def control_weights(model: Path) -> Path:
    return next((model / "control").glob("*.safetensors"))


def cut_short(model: Path) -> None:
    path = control_weights(model)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble(model: Path) -> None:
    control_weights(model).write_bytes(b"\xff" * 1000)


def forget_a_tensor(model: Path) -> None:
    tensors = load_file(control_weights(model))
    del tensors["blocks.0.mlp.fc1.weight"]
    save_file(tensors, control_weights(model), {"format": "pt"})


def widen_a_tensor(model: Path) -> None:
    tensors = load_file(control_weights(model))
    tensors["blocks.0.mlp.fc1.weight"] = torch.zeros(7, 7)
    save_file(tensors, control_weights(model), {"format": "pt"})


def name_no_modality(model: Path) -> None:
    content = json.loads((model / "preprocessing.json").read_text())
    del content["modalities"]
    (model / "preprocessing.json").write_text(json.dumps(content))


def name_a_class_of_tomorrow(model: Path) -> None:
    content = json.loads((model / "model_index.json").read_text())
    content["dit"][1] = "DiTOfTomorrow"
    (model / "model_index.json").write_text(json.dumps(content))


def pickle_the_weights(model: Path) -> None:
    torch.save(load_file(control_weights(model)), model / "control" / "diffusion_pytorch_model.bin")
    control_weights(model).unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "weights missing": lambda model: control_weights(model).unlink(),
    "weights cut short": cut_short,
    "weights scrambled": scramble,
    "a tensor missing": forget_a_tensor,
    "a tensor of another shape": widen_a_tensor,
    "index missing": lambda model: (model / "model_index.json").unlink(),
    "index no JSON": lambda model: (model / "model_index.json").write_text("{"),
    "component's configuration missing": lambda model: (model / "dit" / "config.json").unlink(),
    "labels missing": lambda model: (model / "labels.json").unlink(),
    "labels no JSON": lambda model: (model / "labels.json").write_text("spleen"),
    "labels a list": lambda model: (model / "labels.json").write_text('["spleen"]'),
    "preprocessing missing": lambda model: (model / "preprocessing.json").unlink(),
    "no modality": name_no_modality,
    "a class that does not exist": name_a_class_of_tomorrow,
    "weights as a pickle": pickle_the_weights,
    "cases missing": lambda model: (model / "training_cases.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_incomplete_model_is_refused_in_one_line(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = copied(folder, tmp_path)
    DAMAGES[damage](copy)
    with pytest.raises(WeightsMissingError) as caught:
        load_model(copy, "cpu")
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["large", "/nowhere/at/all"])
def test_an_absent_model_is_refused(name: str) -> None:
    with pytest.raises(WeightsMissingError, match=r"no model_index.json in .*or one of: small"):
        load_model(name, "cpu")


def test_an_absent_device_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="device 'tpu'"):
        load_model(folder, "tpu")
