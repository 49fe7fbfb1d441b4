"""Whether the shares that a model gives are probabilities: how often the likeliest label is right."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.data.case import Case, read_case
from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.preprocess import mask_to_model_grid, to_model_grid
from meddelinea.segmentation.model import Model
from meddelinea.segmentation.predict import sample_shares
from meddelinea.segmentation.sampling import Sampling

#: Temperatures that are tried.
TEMPERATURES = tuple(float(t) for t in np.round(np.geomspace(0.5, 4.0, 25), 3))
#: Bins of confidence, of equal width, for the expected calibration error.
BINS = 20
#: Voxels that are surely background by this share are left out of that error: most of a scan, and all right.
SURELY_BACKGROUND = 0.99


class Reliability:
    """How often the likeliest label is right, by the probability that it was given, by temperature."""

    def __init__(self, temperatures: tuple[float, ...]) -> None:
        self.temperatures = temperatures
        self._counts = np.zeros((len(temperatures), BINS))
        self._right = np.zeros((len(temperatures), BINS))
        self._stated = np.zeros((len(temperatures), BINS))

    def add(self, shares: Tensor, truth: Tensor) -> None:
        """Take in shares (B, L + 1, rows, columns) and true labels (B, rows, columns)."""
        shares, truth = shares.movedim(1, -1).flatten(0, 2), truth.flatten().long()
        asked = shares[:, 0] < SURELY_BACKGROUND
        shares, truth = shares[asked], truth[asked]
        logs = shares.double().clamp(min=1e-12).log()
        for row, temperature in enumerate(self.temperatures):
            stated = (logs / temperature).softmax(dim=1)
            likeliest, label = stated.max(dim=1)
            bins = (likeliest * BINS).long().clamp(max=BINS - 1)
            for sums, values in (
                (self._counts, torch.ones_like(likeliest)),
                (self._right, (label == truth).double()),
                (self._stated, likeliest),
            ):
                sums[row] += torch.bincount(bins, values, BINS).numpy()

    def expected_error(self) -> NDArray[np.float64]:
        """Expected calibration error by temperature, 0 to 1: mean distance of stated probability and truth."""
        gaps = np.abs(self._right - self._stated).sum(axis=1)
        errors: NDArray[np.float64] = gaps / np.maximum(self._counts.sum(axis=1), 1.0)
        return errors


def gather_reliability(
    models: Iterable[tuple[Model, tuple[Case, ...]]],
    organs: tuple[str, ...],
    temperatures: tuple[float, ...] = TEMPERATURES,
    progress: ShowProgress = unwatched,
) -> Reliability:
    """Shares against labels on the models' own grids, each model on its cases; `organs` are the models' own."""
    found = Reliability(temperatures)
    sampling = Sampling()
    for model, cases in models:
        sampler = model.pipeline.sampler()
        for done, case in enumerate(cases):
            progress("shares against labels", done, len(cases))
            read = read_case(case, organs)
            grid = to_model_grid(read.scan, model.files.preprocessing)
            truth = torch.from_numpy(mask_to_model_grid(read.mask, grid).slices().copy())
            key = fingerprint(read.volume)
            for chunk, shares in sample_shares(model, grid, sampler=sampler, sampling=sampling, case=key):
                found.add(shares.cpu(), truth[chunk.start : chunk.stop])
    return found
