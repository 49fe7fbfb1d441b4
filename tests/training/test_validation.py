"""Figures of the validation cases, and the model that a run ends with by them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meddelinea.cli.main import main
from meddelinea.data.store import SliceStore
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.methods.meddelinea_pipeline import MedDelineaPipeline
from meddelinea.training.validation import image_psnr, validation_dice
from support.tiny_models import CASES, ORGANS, run_config
from support.training_runs import assert_same_weights, control_config, metrics, train


def test_validation_dice_equals_counting_voxels(store: Path, tmp_path: Path) -> None:
    stride = 2
    config = run_config("base", store, tmp_path / "run", validation={"stride": stride}, data={"neighbours": 1})
    held_out = SliceStore(store, CASES[1:])
    guesses: dict[tuple[int, int], np.ndarray] = {}

    def predict(images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> Tensor:
        rng = np.random.default_rng([keys[0].case, keys[0].slice])
        truth = masks.numpy()
        guess = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, len(ORGANS) + 1, truth.shape))
        for key, image, ids in zip(keys, images.numpy(), guess, strict=True):
            guesses[key.case, key.slice] = ids
            wanted = held_out.image(key.case, key.slice, 1) / np.float32(127.5) - 1
            assert np.allclose(image, wanted, atol=1e-6)
        return nn.functional.one_hot(torch.from_numpy(guess), len(ORGANS) + 1).permute(0, 3, 1, 2).float()

    figures = validation_dice(predict, ORGANS, store=held_out, config=config, device=torch.device("cpu"))

    assert set(guesses) == {(case, index) for case in (0, 1) for index in (0, 2, 4)}
    dice: dict[str, float] = {}
    for organ, name in enumerate(ORGANS, start=1):
        of_cases = []
        for case in (0, 1):
            truth = np.stack([held_out.mask(case, index) for index in (0, 2, 4)]) == organ
            guess = np.stack([guesses[case, index] for index in (0, 2, 4)]) == organ
            if truth.any():
                of_cases.append(2 * (truth & guess).sum() / (truth.sum() + guess.sum()))
        if of_cases:
            dice[name] = float(np.mean(of_cases))
    assert set(dice) == {"spleen", "liver"}  # the gallbladder lies between the slices that are measured
    expected = {f"dice/{name}": value for name, value in dice.items()}
    expected |= {"dice": np.mean(list(dice.values())), "dice_paper": np.mean(list(dice.values()))}
    assert figures == pytest.approx(expected)


def test_validation_without_any_organ_gives_no_figures(store: Path, tmp_path: Path) -> None:
    config = run_config("base", store, tmp_path / "run", validation={"stride": 100})  # the first slices, all empty

    def predict(images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> Tensor:
        return torch.zeros(len(masks), len(ORGANS) + 1, 64, 64)

    assert validation_dice(predict, ORGANS, store=SliceStore(store), config=config, device=torch.device("cpu")) == {}


def test_an_image_that_comes_back_a_tenth_off_has_26_decibels(store: Path, tmp_path: Path) -> None:
    config = run_config("codec", store, tmp_path / "run", validation={"stride": 2}, data={"neighbours": 1})
    where = {"store": SliceStore(store), "config": config, "device": torch.device("cpu")}
    figures = image_psnr(lambda images: images + 0.1, **where)
    assert figures == {"image_psnr": pytest.approx(10 * np.log10(4 / 0.1**2))}
    assert image_psnr(lambda images: None, **where) == {}


def test_a_codec_says_how_well_its_images_come_back(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_config("codec", store, tmp_path / "run", data={"validation": CASES[2:]})
    (tmp_path / "run.json").write_text(run.model_dump_json())
    with pytest.raises(SystemExit):
        main(["train", str(tmp_path / "run.json")])
    said = capsys.readouterr().out
    assert f"image PSNR on the validation cases {metrics(tmp_path / 'run')[-1]['image_psnr']:.1f} dB" in said


def test_patience_ends_a_run_and_keeps_its_best_weights(
    store: Path, parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = iter([0.2, 0.5, 0.4, 0.3, 0.9, 0.1])
    seen: list[dict[str, Tensor]] = []

    def dice(predict: Any, *_: Any, **__: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in predict.__self__.state_dict().items()})
        return {"dice": next(course)}

    monkeypatch.setattr("meddelinea.training.run.validation_dice", dice)
    config = control_config(
        store, parts, tmp_path / "run", steps=40, data={"validation": CASES[2:]}, validation={"every": 3, "patience": 2}
    )
    folder = train(config)
    train(config, resume=True)  # as after a kill while the result was written: it goes no further
    assert [row["step"] for row in metrics(folder)] == list(range(1, 13))  # after 9 and 12 none better than 0.5
    control = MedDelineaPipeline.from_pretrained(folder / "pipeline").control
    for name, value in control.state_dict().items():
        assert torch.equal(value, seen[1][f"method.segmenter.control.{name}"]), name


def test_no_steps_measure_a_model_and_leave_it_alone(store: Path, parts: dict[str, Path], tmp_path: Path) -> None:
    first = train(control_config(store, parts, tmp_path / "first")) / "pipeline"
    config = run_config(
        "model", store, tmp_path / "again", steps=0, model={"pipeline": first},
        data={"train": CASES[:1], "validation": CASES[1:2], "test": CASES[2:]},
    )  # fmt: skip
    again = train(config)
    (row,) = metrics(again)
    assert row["step"] == 0
    assert 0.0 <= row["dice"] <= 1.0
    test = json.loads((again / "test.json").read_text())
    assert test["cases"] == ["c"]
    assert set(test) == {"cases", "dice", "dice/spleen", "dice/liver", "dice_paper"}  # the stride misses one organ
    before, after = (MedDelineaPipeline.from_pretrained(folder) for folder in (first, again / "pipeline"))
    for part in ("codec", "dit", "control", "mask_head"):
        assert_same_weights(getattr(before, part), getattr(after, part))


def test_the_command_prints_what_a_run_without_steps_measured(
    store: Path, parts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(control_config(store, parts, tmp_path / "first")) / "pipeline"
    config = run_config(
        "model", store, tmp_path / "again", steps=0, model={"pipeline": first},
        data={"train": CASES[:1], "validation": CASES[1:2], "test": CASES[2:]},
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(config.model_dump_json())
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["train", str(tmp_path / "run.yaml")])
    assert not ended.value.code
    (row,), test = metrics(config.output), json.loads((config.output / "test.json").read_text())
    assert capsys.readouterr().out.splitlines() == [
        f"mean Dice on the validation cases {row['dice']:.3f}",
        f"mean Dice on the test cases {test['dice']:.3f}",
    ]
