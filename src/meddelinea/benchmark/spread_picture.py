"""Pictures of many answers for one slice: what a model draws at few steps and at many, and where it hesitates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from meddelinea.benchmark.spread import ModelSpread, answers
from meddelinea.data.case import LabelledScan, read_case
from meddelinea.data.datasets import find_cases
from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.preprocess import mask_to_model_grid, to_model_grid
from meddelinea.files import whole
from meddelinea.labels import colour_of
from meddelinea.segmentation.model import Model, load_model
from meddelinea.segmentation.sampling import Sampling

#: Sampling steps that are shown of a model that samples.
STEPS = (1, 4, 20)
#: Answers that the disagreement is of, and those of them that are shown.
ANSWERS, SHOWN = 16, 5
#: Answers by which the slice is chosen, of every so many slices.
TRIED, STRIDE = 4, 2


@dataclass(frozen=True)
class AnswerRow:
    """What a model answers for the slice: (ANSWERS, H, W) organ ids."""

    name: str
    masks: NDArray[np.uint8]

    @property
    def disagreement(self) -> NDArray[np.float64]:
        """(H, W) share of the answers that differ from the most frequent one."""
        counts = np.stack([(self.masks == organ).sum(axis=0) for organ in np.unique(self.masks)])
        shares: NDArray[np.float64] = 1.0 - counts.max(axis=0) / len(self.masks)
        return shares


@dataclass(frozen=True)
class SpreadPicture:
    """A slice (H, W) in [-1, 1], its true organ ids, and what models answer for it."""

    case: str
    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    organs: tuple[str, ...]
    rows: tuple[AnswerRow, ...]


def ask(
    models: Sequence[str | Path], layout: str, source: Path, found: Sequence[ModelSpread], sampling: Sampling
) -> SpreadPicture:
    """Answers of measured models for one slice: that about which the first model's disagree most, in the case in which
    organs' volumes vary most over its answers.
    """
    case = max(found[0].cases, key=lambda case: float(np.nanmean(case.deviation)))
    loaded = [load_model(model) for model in models]
    scan = next(each for each in find_cases(layout, source).cases if each.name == case.case)
    return _ask(loaded, read_case(scan, tuple(loaded[0].files.labels)), sampling)


def _ask(models: Sequence[Model], labelled: LabelledScan, sampling: Sampling) -> SpreadPicture:
    grid = to_model_grid(labelled.scan, models[0].files.preprocessing)
    slices, key = grid.slices(), fingerprint(labelled.volume)
    truth = mask_to_model_grid(labelled.mask, grid).slices()  # (S, H, W)

    def masks(model: Model, indices: Sequence[int], how: Sampling, count: int) -> NDArray[np.uint8]:
        shares = islice(answers(model, slices, indices, key=key, sampling=how), count)
        return np.stack([one.argmax(dim=1).numpy().astype(np.uint8) for one in shares])  # (count, n, H, W)

    tried = range(0, len(slices), STRIDE)
    doubt = [
        AnswerRow("", each).disagreement.sum()
        for each in masks(models[0], tried, sampling, TRIED).transpose(1, 0, 2, 3)
    ]
    chosen = tried[int(np.argmax(doubt))]
    rows = []
    for model in models:
        samples = model.pipeline.sampler().steps is not None
        for steps in STEPS if samples else (None,):
            how = "augmented images" if steps is None else f"{steps} step{'s' if steps > 1 else ''}"
            rows.append(
                AnswerRow(
                    f"{model.files.name}, {how}", masks(model, [chosen], replace(sampling, steps=steps), ANSWERS)[:, 0]
                )
            )
    organs = tuple(models[0].files.labels)
    return SpreadPicture(labelled.scan.name, slices[chosen], truth[chosen], organs, tuple(rows))


def draw_picture(found: SpreadPicture, path: Path) -> None:
    """A row a model and number of steps: the image with the true organs, answers, and where they disagree."""
    columns = 1 + SHOWN + 1
    figure = Figure(figsize=(1.8 * columns, 2.0 * len(found.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(found.rows), columns, squeeze=False)
    for row, cells in zip(found.rows, axes, strict=True):
        for axis in cells:
            axis.set_axis_off()
        _show(cells[0], found, found.truth)
        for axis, mask in zip(cells[1:], row.masks[:SHOWN], strict=False):
            _show(axis, found, mask)
        cells[-1].imshow(row.disagreement, cmap="magma", vmin=0.0, vmax=0.7)
        cells[1].set_title(row.name, loc="left", fontsize=9)
    axes[0][0].set_title(f"{found.case}, reference", loc="left", fontsize=9)
    axes[0][-1].set_title("disagreement", loc="left", fontsize=9)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=130)


def _show(axis: Axes, found: SpreadPicture, mask: NDArray[np.uint8]) -> None:
    """The slice in grey, its organs in their colours over it."""
    colours = np.array([(0, 0, 0), *(colour_of(organ) for organ in found.organs)], dtype=np.float64) / 255.0
    grey = ((found.image + 1.0) / 2.0)[..., None].repeat(3, axis=2)
    axis.imshow(np.where(mask[..., None] > 0, 0.35 * grey + 0.65 * colours[mask], grey), interpolation="nearest")
