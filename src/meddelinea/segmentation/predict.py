"""A volume in, an organ mask on the same grid out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from meddelinea.checks.scan import unknown_modality
from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.preprocess import neighbour_offsets, to_model_grid, to_source_grid
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.confidence import OrganConfidence, Shares
from meddelinea.segmentation.model import Model
from meddelinea.segmentation.postprocess import remove_small_components
from meddelinea.version import __version__
from meddelinea.volume import Modality, Volume

#: How much finer than the model's grid, in the plane, organs are told apart: their shares are interpolated before the
#: largest is taken, which draws boundaries more smoothly than interpolating the organs afterwards.
FINER = 2
#: Memory for the shares of all organs in the slices that are sampled at a time.
SHARES_BYTES = 128 * 1024**2


@dataclass(frozen=True)
class Segmentation:
    """A mask and how it was made.

    Parameters
    ----------
    mask
        uint8 organ ids on the grid of the input.
    labels
        Name -> id of the organs that were asked for, found or not.
    model, version, steps, scheduler, samples, seed
        What repeats it; steps, scheduler and samples are None where the model does not sample, as baselines do not.
    seconds
        Time from volume to mask.
    confidence
        How sure the model is of each of the organs; empty for a mask that no model made.
    uncertainty
        Probability that a voxel's label is wrong, 0 to 1, float32 on the model's own grid, from which
        `uncertainty_percent` brings it to the scan's; None for a mask that no model made.
    calibration
        What made probabilities of the model's shares; None where it was not calibrated.
    """

    mask: Volume
    labels: dict[str, int]
    model: str
    version: str
    steps: int | None
    scheduler: str | None
    samples: int | None
    seed: int
    seconds: float
    confidence: Mapping[str, OrganConfidence] = field(default_factory=dict)
    uncertainty: Volume | None = None
    calibration: Calibration | None = None


def segment(
    model: Model,
    volume: Volume,
    *,
    steps: int | None = None,
    scheduler: str | None = None,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    organs: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Segmentation:
    """Segment the organs of a scan.

    Slices are sampled a batch at a time and only their ids are kept, and the mask is drawn a few slices at a time:
    beside the scan and its mask, memory grows neither with the number of organs nor with that of slices.
    The noise is keyed by the scan's grey values, the seed and the slice: the same scan gives the same mask in any axis
    order, file format or batch size.

    Parameters
    ----------
    model
        From `load_model`.
    volume
        The scan: Hounsfield units for a CT.
    steps, scheduler
        Sampling steps and a name of `SCHEDULERS`; the model's own where None. A model that does not sample has no
        use for them, nor for samples.
    samples
        Masks drawn of each slice, each from noise of its own; the organ with the highest mean probability is taken.
    seed
        Seed of the noise.
    batch_size
        Slices at a time; fewer where the model knows so many organs that their shares would exceed `SHARES_BYTES`.
    organs
        Canonical names to keep; all that the model knows where None.
    progress
        Called with (slices done, slices in all).

    Raises
    ------
    InputRefusedError
        If the model does not know an organ, or the scan's modality is not known (`with_modality`).
    UsageError
        If the scheduler is unknown, or the steps, the samples or the batch size are out of range.
    """
    began = time.monotonic()
    volume = with_modality(volume, model.files.modalities)
    known = model.files.labels
    labels = known if organs is None else {name: known[name] for name in organs if name in known}
    unknown = [name for name in organs or () if name not in known]
    if unknown:
        raise InputRefusedError(
            f"the model knows no {', '.join(unknown)}; expected some of: {', '.join(known)}", "unknown_organ"
        )
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}; expected at least 1 slice at a time")
    if samples < 1:
        raise UsageError(f"samples {samples}; expected at least 1 mask a slice")
    _, used_steps, used_scheduler = model.pipeline.sampler(steps, scheduler)
    calibration = model.files.calibration

    grid = to_model_grid(volume, model.files.preprocessing)
    columns, rows, count = grid.array.shape
    ids = np.zeros((count, FINER * rows, FINER * columns), np.uint8)
    evidence = Shares((count, rows, columns), len(known) + 1)
    sampling = Sampling(steps, scheduler, samples, seed, batch_size)
    for chunk, shares in sample_shares(model, grid, fingerprint(volume), sampling):
        evidence.add(chunk.start, shares, shares if calibration is None else calibration.probabilities(shares))
        ids[chunk.start : chunk.stop] = torch.cat([_largest_share(share[None]) for share in shares]).cpu().numpy()
        if progress is not None:
            progress(chunk.stop, count)
    kept = np.zeros(256, np.uint8)
    kept[list(labels.values())] = list(labels.values())
    cleaned = remove_small_components(kept[ids], model.files.least_component_share)
    to_grid = np.diag([1 / FINER, 1 / FINER, 1.0, 1.0])
    to_grid[:2, 3] = (1 / FINER - 1) / 2  # the first of them stands half of the gained resolution outwards
    mask = to_source_grid(Volume.from_slices(cleaned, grid.affine @ to_grid), volume)
    confidence = evidence.confidence(_kept(cleaned, evidence.label), labels, grid.voxel_ml)
    if calibration is not None:
        confidence = {name: calibration.corrected(organ) for name, organ in confidence.items()}
    uncertainty = Volume.from_slices(evidence.uncertainty(), grid.affine)
    seconds = time.monotonic() - began
    drawn = None if used_scheduler is None else samples
    made = (model.files.name, __version__, used_steps, used_scheduler, drawn, seed)
    return Segmentation(mask, dict(labels), *made, seconds, confidence, uncertainty, calibration)


@dataclass(frozen=True)
class Sampling:
    """How masks are sampled, as `segment` has it."""

    steps: int | None = None
    scheduler: str | None = None
    samples: int = 1
    seed: int = 0
    batch_size: int = 16


def sample_shares(model: Model, grid: Volume, scan: str, sampling: Sampling) -> Iterator[tuple[range, Tensor]]:
    """The shares of all organs in each slice of a scan, a batch of slices after the other.

    Parameters
    ----------
    grid
        The scan on the model's grid, from `to_model_grid`.
    scan
        Its `fingerprint`, which keys the noise.

    Yields
    ------
    The slices' numbers, and their shares (B, L + 1, rows, columns), which sum to 1 in each pixel.
    """
    method, _, used_scheduler = model.pipeline.sampler(sampling.steps, sampling.scheduler)
    drawn = 1 if used_scheduler is None else sampling.samples
    slices, case = grid.slices(), int(scan[:16], 16)  # (S, rows, columns)
    offsets = neighbour_offsets(model.pipeline.neighbours, model.pipeline.neighbour_pairs)
    share_bytes = 4 * (len(model.files.labels) + 1) * slices.shape[1] * slices.shape[2]
    batch_size = max(1, min(sampling.batch_size, SHARES_BYTES // share_bytes))
    for start in range(0, len(slices), batch_size):
        chunk = range(start, min(start + batch_size, len(slices)))
        images = torch.from_numpy(_with_neighbours(slices, chunk, offsets)).to(model.pipeline.device)
        shares = torch.zeros((), device=images.device)
        for sample in range(drawn):
            keys = [NoiseKey(sampling.seed, case, index, sample) for index in chunk]
            shares = shares + method.segment(images, keys).softmax(dim=1) / drawn
        yield chunk, shares


def _largest_share(share: Tensor) -> Tensor:
    """(1, rows, columns) uint8 ids, `FINER` times as fine, of one slice's (1, L + 1, rows, columns) shares."""
    finer = F.interpolate(share, scale_factor=FINER, mode="bilinear", align_corners=False)
    return finer.argmax(dim=1).to(torch.uint8)


def _kept(cleaned: NDArray[np.uint8], label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Voxels of the model's grid whose label is still in the cleaned ids, `FINER` times as fine."""
    slices, rows, columns = label.shape
    squares = cleaned.reshape(slices, rows, FINER, columns, FINER)
    still: NDArray[np.bool_] = (squares == label[:, :, None, :, None]).any(axis=(2, 4))
    return still


def with_modality(volume: Volume, modalities: tuple[Modality, ...]) -> Volume:
    """The scan with its modality; where its file does not say it, the only one that the model was trained on.

    Raises
    ------
    InputRefusedError
        If the file does not say it and the model knows several.
    """
    if volume.modality is not None:
        return volume
    if len(modalities) > 1:
        raise unknown_modality(modalities)
    return replace(volume, modality=modalities[0])


def _with_neighbours(slices: NDArray[np.float32], chunk: range, offsets: list[int]) -> NDArray[np.float32]:
    """(B, channels, rows, columns): each slice among its neighbours; the last one stands in at the ends."""
    wanted = np.clip(np.array(chunk)[:, None] + np.array(offsets), 0, len(slices) - 1)
    return np.ascontiguousarray(slices[wanted])
