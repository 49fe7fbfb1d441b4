"""A model's folder: what it holds is read, and one that is incomplete or absent is refused in one line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def edited(file: str, **changes: Any) -> Callable[[Path], None]:
    """Values of a JSON file of the model's folder, changed."""

    def change(model: Path) -> None:
        content = json.loads((model / file).read_text())
        (model / file).write_text(json.dumps(content | changes))

    return change


def weighing(change: Callable[[dict[str, torch.Tensor]], None], part: str = "control") -> Callable[[Path], None]:
    """The weights of a part, changed."""

    def edit(model: Path) -> None:
        path = next((model / part).glob("*.safetensors"))
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return edit


def labelled(**labels: Any) -> Callable[[Path], None]:
    return lambda model: (model / "labels.json").write_text(json.dumps({"labels": labels}))


def text(file: str, content: str) -> Callable[[Path], None]:
    return lambda model: (model / file).write_text(content)


FC1 = "blocks.0.mlp.fc1.weight"
INDEX, PREPROCESSING, CALIBRATION = "model_index.json", "preprocessing.json", "calibration.json"
CALIBRATED = {
    "temperature": 2.0,
    "level": 0.9,
    "spread": 1.0,
    "floor": 0.1,
    "dice": [[0.0, 0.0], [1.0, 1.0]],
    "review_below": 0.5,
    "fitted_on": "three cases",
}


def calibrated(**changes: Any) -> Callable[[Path], None]:
    return lambda model: (model / CALIBRATION).write_text(json.dumps(CALIBRATED | changes))


#: Folders whose files are bad by themselves or contradict each other, and what is said of them.
CONTRADICTIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    # labels.json
    "names exchanged": (labelled(liver=1, spleen=2, gallbladder=3), "'spleen' has id 2; expected 1"),
    "two organs with one id": (labelled(spleen=1, liver=2, gallbladder=2), "id 2 is named liver, gallbladder"),
    "an organ twice": (text("labels.json", '{"labels": {"spleen": 1, "spleen": 2}}'), "'spleen' occurs twice"),
    "an organ by two names": (labelled(**{"spleen": 1, "liver": 2, "gallbladder": 3, "gall bladder": 3}), "gall"),
    "an organ too few": (labelled(spleen=1, liver=2), "'gallbladder' has no id"),
    "an organ too many": (labelled(spleen=1, liver=2, gallbladder=3, aorta=4), "'aorta' is none of the 3 organs"),
    "id 999": (labelled(spleen=1, liver=2, gallbladder=999), "has id 999; expected 3"),
    "id -1": (labelled(spleen=1, liver=2, gallbladder=-1), "'gallbladder' is -1"),
    "id 0": (labelled(spleen=1, liver=2, gallbladder=0), "'gallbladder' has no id"),
    "id x": (labelled(spleen=1, liver=2, gallbladder="x"), "'gallbladder' is 'x'"),
    "id 3.0": (labelled(spleen=1, liver=2, gallbladder=3.0), "'gallbladder' is 3.0"),
    "id true": (labelled(spleen=True, liver=2, gallbladder=3), "'spleen' is True"),
    "id null": (labelled(spleen=None, liver=2, gallbladder=3), "'spleen' is None"),
    # model_index.json
    "other organs": (edited(INDEX, organs=["liver", "spleen", "gallbladder"]), "'liver' has id 2; expected 1"),
    "an organ repeated": (edited(INDEX, organs=["spleen", "liver", "liver"]), "'liver' occurs twice"),
    "organs are text": (edited(INDEX, organs="spleen"), "organs: "),
    "no organs": (edited(INDEX, organs=[]), "organs: "),
    "steps in words": (edited(INDEX, default_steps="many"), "default_steps: .*'many'"),
    "no steps": (edited(INDEX, default_steps=0), "default_steps: .*got 0"),
    "a million steps": (edited(INDEX, default_steps=10**6), "default_steps: "),
    "steps true": (edited(INDEX, default_steps=True), "default_steps: "),
    "steps NaN": (edited(INDEX, default_steps=float("nan")), "default_steps: "),
    "neighbours far away": (edited(INDEX, neighbours=10**9), "neighbours: "),
    "another prediction": (edited(INDEX, prediction_type="magic"), "prediction_type: "),
    "colours of fewer organs": (edited(INDEX, colours=[[0.0, 0.0, 0.0]]), "colours: 1 for 3 organs"),
    "slices that the stem does not know": (edited(INDEX, neighbour_pairs=4), "do not fit together"),
    "a class of diffusers": (edited(INDEX, dit=["diffusers", "UNet2DModel"]), "component dit is of diffusers;"),
    "a class of ours in another role": (
        edited(INDEX, dit=["meddelinea.models.control", "ControlDiT"]),
        "component dit",
    ),
    "a module of ours": (edited(INDEX, dit=["meddelinea", "DiT"]), "component dit is of meddelinea;"),
    "a component that is a text": (edited(INDEX, dit="DiT"), "component dit is of DiT;"),
    "a component left out": (edited(INDEX, dit=[None, None]), "component dit is of None;"),
    "a class that is a list": (edited(INDEX, _class_name=["pipeline", "Evil"]), "expected a model of meddelinea"),
    "an index that is a list": (text(INDEX, "[]"), "a JSON list; expected an object"),
    "an index nested deep": (text(INDEX, "[" * 100_000), "nested too deep"),
    "an index cut off in a character": (lambda m: (m / INDEX).write_bytes(b'{"a": "\xff'), "not readable as JSON"),
    "an index of 65 MiB": (lambda m: os.truncate(m / INDEX, 65 << 20), "larger than 64 MiB"),
    # the components' files
    "a width in words": (edited("dit/config.json", width="wide"), "width is 'wide'"),
    "a depth without end": (edited("dit/config.json", depth=10**9), "depth is 1000000000"),
    "another depth": (edited("dit/config.json", depth=1), "unexpected blocks.1"),
    "no depth": (edited("dit/config.json", depth=0), "unexpected blocks.0"),
    "no heads": (edited("dit/config.json", heads=0), "no DiT has these sizes"),
    "a patch of nothing": (edited("dit/config.json", patch_size=0), "no DiT has these sizes"),
    "another patch": (edited("control/config.json", patch_size=4), "expected"),
    "a class of another part": (edited("dit/config.json", _class_name="ControlDiT"), "a ControlDiT; expected DiT"),
    "a setting of tomorrow": (edited("dit/config.json", quantization_config={}), "quantization_config is unknown"),
    "a scale of nothing": (edited("codec/config.json", scaling_factor=0.0), "NaN or infinite"),
    "a scale that is infinite": (edited("codec/config.json", scaling_factor=float("inf")), "scaling_factor is inf"),
    "more organs in the head": (edited("mask_head/config.json", organs=4), "conv_out"),
    "a schedule of other length": (edited("scheduler/scheduler_config.json", num_train_timesteps=10), "noise levels"),
    "a schedule without end": (edited("scheduler/scheduler_config.json", num_train_timesteps=10**13), "num_train_time"),
    "other noise levels": (edited("scheduler/scheduler_config.json", beta_end=0.5), "noise levels"),
    # preprocessing.json, calibration.json and the training cases
    "a huge size": (edited(PREPROCESSING, size=100_000), "size: .*got 100000"),
    "a size that is no multiple": (edited(PREPROCESSING, size=60), "size 60; its networks need a multiple of 16"),
    "a size that is a float": (edited(PREPROCESSING, size=64.5), "size: "),
    "a spacing below zero": (edited(PREPROCESSING, spacing_mm=-1.0), "spacing_mm: "),
    "a spacing of NaN": (edited(PREPROCESSING, spacing_mm=float("nan")), "spacing_mm: "),
    "a window upside down": (edited(PREPROCESSING, window_hu=[275.0, -125.0]), "window_hu from 275 to -125"),
    "a window of one value": (edited(PREPROCESSING, window_hu=[275.0]), "window_hu"),
    "percentiles beyond 100": (edited(PREPROCESSING, percentiles=[0.5, 101.0]), "percentiles"),
    "an unknown modality": (edited(PREPROCESSING, modalities=["PET"]), "modalities"),
    "modalities as a text": (edited(PREPROCESSING, modalities="CT"), "modalities"),
    "a share above 1": (edited(PREPROCESSING, least_component_share=2.0), "least_component_share: "),
    "a temperature of 0": (calibrated(temperature=0.0), "temperature: "),
    "a temperature in words": (calibrated(temperature="hot"), "temperature: "),
    "an infinite spread": (calibrated(spread=float("inf")), "spread: "),
    "a falling line": (calibrated(dice=[[0.0, 1.0], [1.0, 0.0]]), "dice: "),
    "no line": (calibrated(dice=[]), "dice: "),
    "a calibration that is a list": (text(CALIBRATION, "[]"), "a JSON list"),
    "a calibration without level": (text(CALIBRATION, json.dumps({"temperature": 1.0})), "'level' is missing"),
    "cases that are numbers": (edited("training_cases.json", train=[1, 2]), "does not name the training cases"),
    "a case without a name": (
        edited("training_cases.json", train=[{"name": 1, "dataset": "x", "fingerprint": "0"}]),
        "does not name the training cases",
    ),
    # the weights
    "a NaN": (weighing(lambda t: t[FC1].view(-1)[3:4].fill_(float("nan"))), f"{FC1} holds 1 of "),
    "an infinity": (weighing(lambda t: t[FC1].fill_(-float("inf")), "dit"), f"{FC1} holds .* NaN or infinite"),
    "weights that overflow": (weighing(lambda t: [v.fill_(1e30) for v in t.values()]), "NaN or infinite"),
    "doubles beyond single precision": (
        weighing(lambda t: t.update({FC1: torch.full_like(t[FC1], 1e300, dtype=torch.float64)})),
        f"{FC1} holds ",
    ),
    "zeros alone": (weighing(lambda t: [v.zero_() for v in t.values()], "dit"), "every weight is 0"),
    "whole numbers": (weighing(lambda t: t.update({FC1: t[FC1].int()})), f"{FC1} is of type I32"),
    "eight bits": (weighing(lambda t: t.update({FC1: t[FC1].to(torch.float8_e4m3fn)})), f"{FC1} is of type F8_E4M3"),
    "a tensor too many": (weighing(lambda t: t.update(more=torch.ones(1))), "unexpected more"),
    "a tensor transposed": (weighing(lambda t: t.update({FC1: t[FC1].T.contiguous()})), f"{FC1} is .*, expected"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_contradicts_is_refused_before_any_use_in_one_line(folder: Path, tmp_path: Path, case: str) -> None:
    copy, (change, reason) = copied(folder, tmp_path), CONTRADICTIONS[case]
    change(copy)
    with pytest.raises(WeightsMissingError, match=reason) as caught:
        load_model(copy, "cpu")
    said = str(caught.value)
    assert str(copy) in said
    assert said.isprintable()
    assert len(said) < 600


def test_a_calibrated_model_is_accepted(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    calibrated()(copy)
    calibration = load_model(copy, "cpu").files.calibration
    assert calibration is not None
    assert calibration.dice == ((0.0, 0.0), (1.0, 1.0))


def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    for name in ("preprocessing.json", "model_index.json", "control/config.json", "labels.json", "training_cases.json"):
        copy = copied(folder, tmp_path / name.replace("/", "-"))
        (copy / name).unlink()
        os.mkfifo(copy / name)
        with pytest.raises(WeightsMissingError):
            load_model(copy, "cpu")


def test_no_python_file_of_a_model_is_run(folder: Path, tmp_path: Path) -> None:
    """Wherever diffusers has looked for code: beside the index, in a component's folder, by module or class."""
    copy = copied(folder, tmp_path)
    evil = f"open({str(tmp_path / 'ran')!r}, 'w')"
    modules = ("pipeline", "meddelinea", "meddelinea.models.dit", "diffusers", "DiT", "modeling", "__init__", "dit")
    for place in (copy, *(path for path in copy.iterdir() if path.is_dir())):
        for name in modules:
            (place / f"{name}.py").write_text(evil)
    edited("dit/config.json", auto_map={"AutoModel": "modeling.DiT"})(copy)
    with pytest.raises(WeightsMissingError, match="auto_map is unknown"):
        load_model(copy, "cpu")
    config = json.loads((copy / "dit" / "config.json").read_text())
    del config["auto_map"]
    (copy / "dit" / "config.json").write_text(json.dumps(config))
    program = f"from meddelinea import load_model; load_model({str(copy)!r}, 'cpu')"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert not (tmp_path / "ran").exists()
