"""The run files of a plan: the stages of `recipes/small`, for another grid and another time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meddelinea.fitting.rules import SIDE

#: Shares of a training that codec and base have, and their most minutes.
CODEC, BASE = (0.06, 5.0), (0.03, 2.5)
#: Of what is left the coarse stage has a third.
COARSE = 1 / 3
#: Pixels of a side from which on Muon is known to teach more in the same time than AdamW (docs/history/round-9.md). Its
#: part of a step takes as long for slices of any size, so that smaller ones keep to AdamW.
MUON_SIDE = 96

Settings = Mapping[str, Any]


def stage_files(
    data: Settings, augmentation: Settings, sizes: Settings, *, side: int, batch: int, minutes: float
) -> dict[str, dict[str, Any]]:
    """The stages of a model from scratch by name, in their order.

    Parameters
    ----------
    data, augmentation, sizes
        What was chosen: settings of `data`, of `data.augmentation` and of `model.sizes`.
    side
        Pixels of a slice; at the smallest there is no coarse stage.
    batch
        Slices of a step of the stages that train a model.
    minutes
        Of the whole training.
    """
    codec, base = (min(share * minutes, most) for share, most in (CODEC, BASE))
    coarse = (minutes - codec - base) * COARSE if side > SIDE else 0.0
    fine = minutes - codec - base - coarse
    common: dict[str, Any] = {"precision": "auto", "saved_dtype": "float16"}
    network = {"preset": "small", "sizes": dict(sizes)}
    single = {"neighbours": data["neighbours"], "rare_organ_share": 0.5}
    shapes = {"rotation_deg": 20, "mirror": augmentation["mirror"]}
    half = [side // 2] if side > SIDE else []
    cosine = {"schedule": "cosine", "warmup_steps": 50}
    stages: dict[str, dict[str, Any]] = {
        "codec": {
            "stage": "codec",
            "model": network,
            "data": {**single, "empty_share": 0.2, "crop": 64, "augmentation": {**shapes, "scale": 0.25}},
            "optimiser": {**cosine, "learning_rate": 2e-3, "ema_decay": 0.99},
            "steps": 1500,
            "batch_size": 32,
            "cpu_minutes": codec,
            **common,
        },
        "base": {
            "stage": "base",
            "model": network,
            "data": {**single, "empty_share": 0.5, "resolutions": half, "augmentation": {**shapes, "noise": 0.0}},
            "objective": {"prediction_type": "v_prediction", "last_timestep_share": 0.1},
            "optimiser": {**cosine, "learning_rate": 1e-3, "ema_decay": 0.995},
            "steps": 450,
            "batch_size": 16,
            "cpu_minutes": base,
            **common,
        },
    }
    model = {
        "stage": "model",
        "model": {**network, "trainable_decoder": "all"},
        "data": {**data, "augmentation": dict(augmentation)},
        "objective": {
            "prediction_type": "v_prediction",
            "last_timestep_share": 0.8,
            "segmentation_weighting": "none",
            "pixel_loss": "cross_entropy",
        },
        "validation": {"stride": 3, "sampling_steps": 1},
        "steps": 20_000,
        "batch_size": batch,
        **common,
    }
    if half:
        coarse_data = {**model["data"], "resolutions": half}
        stages["coarse"] = {**model, "data": coarse_data, "optimiser": _optimiser(side // 2), "cpu_minutes": coarse}
    stages["fine"] = {**model, "optimiser": _optimiser(side), "cpu_minutes": fine}
    return stages


def _optimiser(side: int) -> dict[str, Any]:
    """Settings of the stages that train a model on slices of so many pixels."""
    settings: dict[str, Any] = {"kind": "muon" if side >= MUON_SIDE else "adamw", "schedule": "cosine"}
    return {**settings, "warmup_steps": 100, "learning_rate": 2e-3, "weight_decay": 0.01, "ema_decay": 0.998}


def from_model(first: str, folder: str) -> dict[str, Any]:
    """The run file of a first stage that goes on from a trained model."""
    return {"extends": f"{first}.yaml", "model": {"codec": None, "dit": None, "pipeline": folder}}
