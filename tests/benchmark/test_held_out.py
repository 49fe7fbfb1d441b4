"""A model is scored on the organs that are asked for, whether it knows them or not."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from meddelinea.benchmark import held_out
from meddelinea.data.case import LabelledScan
from meddelinea.data.preprocess import Preprocessing
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.scan import Scan
from meddelinea.segmentation.model import Model
from meddelinea.volume import Volume

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def test_an_organ_that_a_model_does_not_know_is_missed_whatever_ids_the_model_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = np.zeros((8, 8, 8), np.uint8)
    true[1:4, 1:4, 1:4], true[5:7, 5:7, 5:7] = 1, 2
    made = np.zeros_like(true)
    made[1:4, 1:4, 1:4] = 255  # the model's id of the liver
    made[5:7, 5:7, 5:7] = 7  # and of an organ that the labels do not have
    mask, labels = Volume(made, AFFINE), {"liver": 255, "heart": 7}
    monkeypatch.setattr(held_out, "segment", lambda model, scan, sampling: SimpleNamespace(mask=mask, seconds=0.5))
    model = SimpleNamespace(files=SimpleNamespace(labels=labels))

    reference = Volume(true, AFFINE)
    scan = Scan(volume=reference, modality="CT", name="one")
    labelled = LabelledScan(scan=scan, mask=reference, organs=("liver", "spleen", "aorta"))
    result, seconds = held_out.score_scan(model, labelled, ("spleen", "liver"))
    spleen, liver = result.scores
    assert (spleen.organ, spleen.status, spleen.dice, spleen.hd95_mm) == ("spleen", "missed", 0.0, math.inf)
    assert (spleen.prediction_ml, spleen.reference_ml) == (0.0, pytest.approx(8 * 12 / 1000))
    assert (liver.organ, liver.status, liver.dice) == ("liver", "scored", 1.0)
    assert (result.case, seconds) == ("one", 0.5)
    assert (result.only_in_prediction, result.only_in_reference) == (("heart",), ("aorta",))

    absent, _ = held_out.score_scan(model, labelled, ("aorta",))
    assert [score.status for score in absent.scores] == ["both_empty"]


def test_true_boxes_are_those_of_each_slices_labels_with_the_models_ids() -> None:
    true = np.zeros((64, 64, 4), np.uint8)
    true[20:30, 16:40, 2], true[40:50, 16:40, 3] = 1, 2
    scan = Scan(volume=Volume(np.full(true.shape, 50.0, np.float32), AFFINE), modality="CT", name="one")
    labelled = LabelledScan(scan=scan, mask=Volume(true, AFFINE), organs=("liver", "spleen"))
    pipeline = SimpleNamespace(organs=("spleen", "aorta"), prompted_by=lambda masks: masks)
    settings = Preprocessing(size=64, spacing_mm=2.0, slice_mm=3.0)
    model = Model(SimpleNamespace(preprocessing=settings), pipeline)  # type: ignore[arg-type]
    given = held_out.with_true_boxes(model, labelled).pipeline
    keys = [NoiseKey(seed=0, case=1, slice=index, sample=0) for index in (3, 2, 3)]
    masks = given(torch.zeros(3, 3, 64, 64), keys)  # type: ignore[operator]
    spleen = pytest.approx(10 * 24, rel=0.2)  # pixels, on a grid that lies otherwise; the liver is none of its organs
    assert [int((mask == 1).sum()) for mask in masks] == [spleen, 0, spleen]
    assert set(masks.unique().tolist()) == {0, 1}
