"""What a stage is worth on held-out cases while it trains: quick figures on its own grid, to compare runs with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meddelinea.data.store import SliceStore
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.labels import PAPER_ORGANS
from meddelinea.methods.windows import blended_slabs
from meddelinea.training.batches import shrink, shrink_factors
from meddelinea.training.config import RunConfig

Predict = Callable[[Tensor, Tensor, list[NoiseKey]], Tensor | None]
LogitsOf = Callable[[Sequence[int]], Tensor | None]
Answers = Iterator[tuple[Sequence[int], Tensor | None]]
ReadBack = Callable[[Tensor], Tensor | None]

BATCH = 16


@torch.no_grad()
def image_psnr(read_back: ReadBack, *, store: SliceStore, config: RunConfig, device: torch.device) -> dict[str, float]:
    """How well images come back from their latents: `image_psnr` in dB, of the range -1 to 1.

    The squared error is averaged over the pixels of every `config.validation.stride`-th slice of a case and its
    neighbours, then over cases. Nothing where `read_back`, images (B, 3, H, W) -> the same, is that of a stage that
    makes none.
    """
    errors = []
    for case, stored in enumerate(store.cases):
        squares = []
        for index in range(0, stored.slices, config.validation.stride):
            pixels = torch.from_numpy(store.image(case, index, config.data.neighbours, 1))[None].to(device)
            image = shrink(pixels, 1)  # (1, 3, H, W)
            back = read_back(image)
            if back is None:
                return {}
            squares.append(float((back - image).square().mean()))
        errors.append(np.mean(squares))
    return {"image_psnr": float(10.0 * np.log10(4.0 / np.mean(errors)))}


@torch.no_grad()
def validation_dice(
    predict: Predict,
    known: tuple[str, ...],
    *,
    store: SliceStore,
    config: RunConfig,
    device: torch.device,
    depth: int = 1,
) -> dict[str, float]:
    """Dice of each organ, over the voxels of a case and then averaged over the cases that hold the organ.

    Every `config.validation.stride`-th slice is taken, at the first of the run's resolutions.

    Parameters
    ----------
    predict
        Images, masks and noise keys -> logits, or None where the stage makes no masks.
    known
        Organs behind the logits' channels 1..L; an organ of the store that is not among them scores 0.
    store
        The cases.
    depth
        Consecutive slices that are segmented together. Above 1 all are segmented, and every `stride`-th is measured.

    Returns
    -------
    `dice/<organ>`, `dice` (the mean over all organs) and `dice_paper` (over the paper's eight); nothing where the stage
    makes no masks or no slice holds an organ.
    """
    organs = store.manifest.organs
    to_store = torch.tensor([0, *(organs.index(name) + 1 if name in organs else 0 for name in known)], device=device)
    factor = shrink_factors(config.data, store.manifest.preprocessing.size)[0]
    reach, pairs = config.data.neighbours, config.data.neighbour_pairs

    def masks_of(case: int, chunk: Sequence[int]) -> Tensor:
        masks = torch.from_numpy(np.stack([store.mask(case, i) for i in chunk])).long().to(device)
        return masks[:, factor // 2 :: factor, factor // 2 :: factor]

    def logits_of(case: int, chunk: Sequence[int]) -> Tensor | None:
        pixels = torch.from_numpy(np.stack([store.image(case, i, reach, pairs) for i in chunk]))
        keys = [NoiseKey(config.seed, case, i, 0) for i in chunk]
        return predict(shrink(pixels.to(device), factor), masks_of(case, chunk), keys)

    # Of each case the overlap and the sizes of each organ, in pixels of the slices that are measured.
    rows = []
    for case, stored in enumerate(store.cases):
        overlap, found_size, true_size = np.zeros((3, len(organs)))
        measured = range(0, stored.slices, config.validation.stride)
        answers = _slice_by_slice if depth == 1 else partial(_slab_by_slab, depth=depth, slices=stored.slices)
        for chunk, logits in answers(partial(logits_of, case), measured):
            if logits is None:
                return {}
            masks, found = masks_of(case, chunk), to_store[logits.argmax(dim=1)]
            overlap += _pixels(torch.where(found == masks, masks, 0), len(organs))
            found_size += _pixels(found, len(organs))
            true_size += _pixels(masks, len(organs))
        rows.append(np.where(true_size > 0, 2.0 * overlap / np.maximum(found_size + true_size, 1.0), np.nan))

    # Means over the cases that hold an organ, then over the organs.
    table = np.array(rows).reshape(-1, len(organs))
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
    """Pixels of each id 1..L."""
    return torch.bincount(ids.flatten(), minlength=organs + 1).cpu().numpy()[1:]


def _slice_by_slice(logits_of: LogitsOf, measured: range) -> Answers:
    """The logits of slices, some at a time."""
    for chunk in (measured[i : i + BATCH] for i in range(0, len(measured), BATCH)):
        yield chunk, logits_of(chunk)


def _slab_by_slab(logits_of: LogitsOf, measured: range, *, depth: int, slices: int) -> Answers:
    """The shares of slices that are segmented with their neighbours; those that are not measured are left out."""

    def shares_of(slab: range) -> Tensor:
        logits = logits_of(slab)
        assert logits is not None, "a stage that is trained on patches makes masks"
        return logits.softmax(dim=1)

    for slab, shares in blended_slabs(shares_of, slices, depth):
        if chunk := [index for index in slab if index in measured]:
            yield chunk, shares[[index - slab.start for index in chunk]]
