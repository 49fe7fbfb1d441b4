"""Mean Dice on held-out cases while a model trains: a quick figure on the model's own grid, to compare runs with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meddelinea.data.store import SliceStore
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.labels import PAPER_ORGANS
from meddelinea.training.config import RunConfig

Predict = Callable[[Tensor, Tensor, list[NoiseKey]], Tensor | None]

BATCH = 16


@torch.no_grad()
def validation_dice(predict: Predict, store: SliceStore, config: RunConfig, device: torch.device) -> dict[str, float]:
    """Dice of each organ, over the voxels of a case and then averaged over the cases that hold the organ.

    Every `config.validation.stride`-th slice is taken. Returned are `dice/<organ>`, `dice` (the mean over all organs)
    and `dice_paper` (over the paper's eight); nothing where the stage makes no masks or no slice holds
    an organ.
    """
    organs = store.manifest.organs
    rows = []
    for case, stored in enumerate(store.cases):
        overlap = np.zeros(len(organs) + 1)
        sizes = np.zeros(len(organs) + 1)
        indices = list(range(0, stored.slices, config.validation.stride))
        for chunk in (indices[i : i + BATCH] for i in range(0, len(indices), BATCH)):
            pixels = np.stack([store.image(case, i, config.data.neighbours) for i in chunk])
            masks = torch.from_numpy(np.stack([store.mask(case, i) for i in chunk])).long().to(device)
            keys = [NoiseKey(config.seed, case, i, 0) for i in chunk]
            logits = predict(torch.from_numpy(pixels).float().to(device) / 127.5 - 1.0, masks, keys)
            if logits is None:
                return {}
            found = logits.argmax(dim=1)
            overlap += _pixels(torch.where(found == masks, masks, 0), len(organs))
            sizes += _pixels(found, len(organs)) + _pixels(masks, len(organs))
        truth = store.organ_pixels(case)[indices].any(axis=0)
        rows.append(np.where(truth, 2.0 * overlap[1:] / np.maximum(sizes[1:], 1.0), np.nan))
    table = np.array(rows)
    seen = ~np.isnan(table).all(axis=0)
    dice = {organ: float(np.nanmean(table[:, i])) for i, organ in enumerate(organs) if seen[i]}
    paper = [dice[organ] for organ in PAPER_ORGANS if organ in dice]
    if not dice:
        return {}
    figures = {f"dice/{organ}": value for organ, value in dice.items()}
    figures["dice"] = float(np.mean(list(dice.values())))
    if paper:
        figures["dice_paper"] = float(np.mean(paper))
    return figures


def _pixels(ids: Tensor, organs: int) -> NDArray[np.int64]:
    """Pixels of each id 0..L."""
    return torch.bincount(ids.flatten(), minlength=organs + 1).cpu().numpy()
