"""What many answers for one scan are worth: whether they differ where they are wrong, and how good the best of them is.

A diffusion model answers as often as it is asked, from other noise each time. A network that does not sample is asked
as often as takes equal time, about turned, scaled, shifted and brightened images (test-time augmentation).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from meddelinea.benchmark.bootstrap import Estimate, column_means, draw_patients, estimate, row_means
from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.benchmark.markdown import cell, table
from meddelinea.benchmark.reliability import Reliability
from meddelinea.data.augment import Augmentation, Drawn, apply, draw
from meddelinea.data.case import LabelledScan, read_case
from meddelinea.data.datasets import find_cases
from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.preprocess import mask_to_model_grid, neighbour_offsets, to_model_grid
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import UsageError
from meddelinea.evaluation.summary import plain
from meddelinea.methods.protocol import Sampler
from meddelinea.segmentation.model import Model, load_model
from meddelinea.segmentation.sampling import Sampling

#: What test-time augmentation does to an image; left and right are never exchanged.
TURNED = Augmentation(
    rotation_deg=10.0, scale=0.1, shear=0.0, translation=0.03, elastic=0.0, contrast=0.1, brightness=0.1, noise=0.0
)
#: Slices that a network sees at once.
BATCH = 16
#: Share of the true volumes that an interval between quantiles of the answers is meant to hold.
COVERAGE = 0.9
#: Answers of a network that does not sample are at most so many, however fast it is.
MOST_PASSES = 128


@dataclass(frozen=True, kw_only=True)
class CaseSpread:
    """The answers for one scan, on the model's own grid; each organ's figures are NaN where the scan has it not.

    Parameters
    ----------
    case, passes, seconds
        Its name, the number of answers, and the time that they took.
    single, mean, best
        (L,) Dice of an answer on average, of the mean of all, and of each organ's best answer.
    deviation
        (L,) standard deviation of an organ's volume over the answers, as a share of their mean.
    inside
        (L,) 1 where the true volume lies between the answers' quantiles, else 0.
    voxel_auroc
        Chance that a wrong voxel is less agreed on than a right one, among those that any answer or the truth gives an
        organ: 0.5 where disagreement says nothing.
    calibration_error
        Expected calibration error of the mean's probabilities.
    """

    case: str
    passes: int
    seconds: float
    single: NDArray[np.float64]
    mean: NDArray[np.float64]
    best: NDArray[np.float64]
    deviation: NDArray[np.float64]
    inside: NDArray[np.float64]
    voxel_auroc: float
    calibration_error: float


@dataclass(frozen=True)
class ModelSpread:
    """A model, how it sampled (None: test-time augmentation), and its answers for each scan."""

    name: str
    steps: int | None
    cases: tuple[CaseSpread, ...]


def measure_spread(
    models: Sequence[str | Path],
    layout: str,
    source: Path,
    names: tuple[str, ...],
    sampling: Sampling,
    progress: ShowProgress = unwatched,
) -> tuple[ModelSpread, ...]:
    """Ask models again and again about labelled scans.

    Parameters
    ----------
    models
        The first has to sample: networks that do not are asked for as long as it takes for the same scan.
    layout, source, names
        The dataset's format and folder, and the cases.
    sampling
        How a model that samples does, `samples` times; nothing of it but the seed concerns one that does not.

    Raises
    ------
    UsageError
        If the first model does not sample, or a model knows other organs than the first.
    InputRefusedError
        If the dataset, or a case, is not there.
    """
    cases = {case.name: case for case in find_cases(layout, source).cases}
    unknown = [name for name in names if name not in cases]
    if unknown or not names:
        raise UsageError(f"{source}: no case {', '.join(unknown)}; expected some of: {', '.join(cases)}")
    loaded = [load_model(model) for model in models]
    organs = tuple(loaded[0].files.labels)
    for model in loaded[1:]:
        if tuple(model.files.labels) != organs:
            raise UsageError(f"{model.files.name}: knows {', '.join(model.files.labels)}; expected {', '.join(organs)}")
    if loaded[0].pipeline.sampler().steps is None:
        raise UsageError(f"{loaded[0].files.name}: does not sample; expected a model that does first")

    spent: dict[str, float] = {}  # by the first model, on each case
    rows = []
    for model in loaded:
        measured = []
        for done, name in enumerate(names):
            progress(f"{model.files.name}, {name}", done, len(names))
            spread = measure_case(model, read_case(cases[name], organs), sampling, spent.get(name))
            spent.setdefault(name, spread.seconds)
            measured.append(spread)
        rows.append(ModelSpread(model.files.name, _sampler(model, sampling).steps, tuple(measured)))
    return tuple(rows)


def _sampler(model: Model, sampling: Sampling) -> Sampler:
    """The model's method, sampling as asked where it samples."""
    if model.pipeline.sampler().steps is None:
        return model.pipeline.sampler()
    return model.pipeline.sampler(sampling.steps, sampling.scheduler)


def measure_case(model: Model, labelled: LabelledScan, sampling: Sampling, seconds: float | None) -> CaseSpread:
    """Ask a model about one scan: as often as `sampling` says, or for so many seconds where they are given."""
    grid = to_model_grid(labelled.scan, model.files.preprocessing)
    truth = mask_to_model_grid(labelled.mask, grid).slices()  # (S, H, W)
    organs, began = len(model.files.labels), time.monotonic()

    # All answers: their labels, and the sum of their shares.
    passes = sampling.samples if seconds is None else MOST_PASSES
    labels: list[NDArray[np.uint8]] = []
    total = torch.zeros(())
    slices, key = grid.slices(), fingerprint(labelled.volume)
    for shares in answers(model, slices, range(len(slices)), key=key, sampling=sampling):
        total = total + shares
        labels.append(shares.max(dim=1).indices.to(torch.uint8).numpy())
        spent = time.monotonic() - began
        if len(labels) >= passes or (seconds is not None and spent >= seconds):
            break
    mean = total / len(labels)  # (S, L + 1, H, W)
    label = mean.argmax(dim=1).to(torch.uint8).numpy()

    # Organ by organ.
    of_each = np.array([_dice(one, truth, organs) for one in labels])  # (M, L)
    volumes = np.array([_sizes(one, organs) for one in labels])  # (M, L)
    low, high = np.quantile(volumes, [(1.0 - COVERAGE) / 2.0, (1.0 + COVERAGE) / 2.0], axis=0)  # (L,) each
    true_sizes = _sizes(truth, organs)  # (L,)
    present = np.where(true_sizes > 0, 1.0, np.nan)  # (L,)

    # Voxel by voxel.
    reliability = Reliability((1.0,))
    reliability.add(mean, torch.from_numpy(truth.copy()))
    return CaseSpread(
        case=labelled.scan.name,
        passes=len(labels),
        seconds=time.monotonic() - began,
        single=of_each.mean(axis=0),
        mean=_dice(label, truth, organs),
        best=of_each.max(axis=0),
        deviation=present * volumes.std(axis=0) / np.maximum(volumes.mean(axis=0), 1.0),
        inside=present * ((low <= true_sizes) & (true_sizes <= high)),
        voxel_auroc=disagreement_auroc(labels, label, truth),
        calibration_error=float(reliability.expected_error()[0]),
    )


def answers(
    model: Model, slices: NDArray[np.float32], indices: Sequence[int], *, key: str, sampling: Sampling
) -> Iterator[Tensor]:
    """A model's shares (n, L + 1, H, W) of n slices of a scan (S, H, W), again and again."""
    method, sampling_steps, *_ = _sampler(model, sampling)
    seed = sampling.seed
    offsets = neighbour_offsets(model.pipeline.neighbours, model.pipeline.neighbour_pairs)
    case, last = int(key[:16], 16), len(slices) - 1
    for number in range(MOST_PASSES):
        shares = []
        for first in range(0, len(indices), BATCH):
            chunk = np.array(indices[first : first + BATCH])
            images = torch.from_numpy(slices[np.clip(chunk[:, None] + np.array(offsets), 0, last)])  # (B, C, H, W)
            keys = [NoiseKey(seed, case, int(index), number) for index in chunk]
            drawn = None
            if sampling_steps is None and number:  # the first time as it is
                drawn = draw(TURNED, [(seed, number, case % 2**31, int(index)) for index in chunk])
                images = _moved(images, drawn)
            with sampling.autocast(model.pipeline.device.type):
                logits = method.segment(images, keys)
            logits = logits.float() if drawn is None else _turned_back(logits.float(), drawn)
            shares.append(logits.softmax(dim=1))  # (B, L + 1, H, W)
        yield torch.cat(shares)


def _moved(images: Tensor, drawn: Drawn) -> Tensor:
    no_mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.uint8)
    return apply(drawn, images, no_mask, images.shape[-1])[0]


def _turned_back(logits: Tensor, drawn: Drawn) -> Tensor:
    """Logits (B, L + 1, H, W) of moved images, where the images were; beyond what was seen the background."""
    whole = torch.cat([drawn.affine, torch.tensor([[[0.0, 0.0, 1.0]]]).expand(len(logits), 1, 3)], dim=1)  # (B, 3, 3)
    grid = F.affine_grid(torch.linalg.inv(whole)[:, :2], list(logits.shape), align_corners=False)
    seen = F.grid_sample(logits, grid, padding_mode="border", align_corners=False)
    outside = F.grid_sample(torch.ones_like(logits[:, :1]), grid, align_corners=False) < 0.5  # (B, 1, H, W)
    background = torch.full((logits.shape[1],), -10.0)
    background[0] = 10.0
    return torch.where(outside, background.view(1, -1, 1, 1), seen)


def disagreement_auroc(
    labels: Sequence[NDArray[np.uint8]], label: NDArray[np.uint8], truth: NDArray[np.uint8]
) -> float:
    """See `CaseSpread.voxel_auroc`; NaN where no voxel, or every voxel, is wrong."""
    differing, any_organ = np.zeros(label.shape, np.int32), truth > 0
    for one in labels:
        differing += one != label
        any_organ |= one > 0
    wrong, differing = (label != truth)[any_organ], differing[any_organ]
    of_wrong = np.bincount(differing[wrong], minlength=len(labels) + 1)
    of_right = np.bincount(differing[~wrong], minlength=len(labels) + 1)
    if not of_wrong.sum() or not of_right.sum():
        return float("nan")
    below = np.cumsum(of_right) - of_right
    return float((of_wrong * (below + 0.5 * of_right)).sum() / (of_wrong.sum() * of_right.sum()))


def _sizes(mask: NDArray[np.uint8], organs: int) -> NDArray[np.float64]:
    return np.bincount(mask.ravel(), minlength=organs + 1)[1:].astype(np.float64)


def _dice(mask: NDArray[np.uint8], truth: NDArray[np.uint8], organs: int) -> NDArray[np.float64]:
    """(L,) Dice of each organ; NaN where the truth has it not."""
    size, overlap = _sizes(truth, organs), _sizes(np.where(mask == truth, mask, 0), organs)
    return np.where(size > 0, 2.0 * overlap / np.maximum(_sizes(mask, organs) + size, 1.0), np.nan)


def spread_lines(found: Sequence[ModelSpread]) -> list[str]:
    """The table in Markdown, with 95 % intervals over patients."""
    head = ["model", "steps", "answers", "s / case", "Dice of one", "of the mean", "of the best", "voxel AUROC"]
    head += ["organ correlation", "calibration error", f"volumes inside {COVERAGE:.0%}", "volume deviation"]
    weights = draw_patients(len(found[0].cases), seed=0)
    rows = []
    for model in found:
        cases = model.cases

        def over_cases(name: str, cases: tuple[CaseSpread, ...] = cases) -> str:
            values = np.array([np.atleast_1d(getattr(case, name)) for case in cases])  # (cases, L) or (cases, 1)
            by_case = row_means(values)[:, None]  # (cases, 1)
            return _estimate(estimate(float(np.nanmean(by_case)), column_means(weights, by_case).ravel()))

        row = [model.name, "-" if model.steps is None else str(model.steps)]
        row += [f"{np.mean([case.passes for case in cases]):.0f}", f"{np.mean([case.seconds for case in cases]):.0f}"]
        row += [over_cases(name) for name in ("single", "mean", "best", "voxel_auroc")]
        row.append(cell(_organ_correlation(cases), ".2f"))
        row += [over_cases(name) for name in ("calibration_error", "inside", "deviation")]
        rows.append(row)
    return table(head, rows)


def _organ_correlation(cases: Sequence[CaseSpread]) -> float:
    """Spearman's correlation of an organ's deviation over the answers with the error of their mean, 1 - Dice."""
    deviation = np.concatenate([case.deviation for case in cases])
    error = 1.0 - np.concatenate([case.mean for case in cases])
    known = np.isfinite(deviation) & np.isfinite(error)
    return float(spearmanr(deviation[known], error[known]).statistic)


def _estimate(found: Estimate) -> str:
    return f"{cell(found.mean, '.3f')} [{cell(found.low, '.3f')}, {cell(found.high, '.3f')}]"


def spread_document(found: Sequence[ModelSpread]) -> list[Any]:
    """Everything as plain JSON types."""
    return [plain({**vars(model), "cases": [_figures(case) for case in model.cases]}) for model in found]


def _figures(case: CaseSpread) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(case).items()}
