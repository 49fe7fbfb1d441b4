"""A scan in, an organ mask on the same grid out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from meddelinea.checks.limits import OrganSizes
from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.preprocess import neighbour_offsets, to_model_grid, to_source_grid
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import InputRefusedError, WeightsMissingError
from meddelinea.methods.protocol import Sampler
from meddelinea.methods.windows import blended_slabs
from meddelinea.scan import Scan
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.confidence import OrganConfidence, Shares
from meddelinea.segmentation.model import Model
from meddelinea.segmentation.postprocess import remove_small_components
from meddelinea.segmentation.sampling import Computed, Sampling
from meddelinea.version import __version__
from meddelinea.volume import Volume

#: How much finer than the model's grid, in the plane, organs are told apart: their shares are interpolated before the
#: largest is taken, which draws boundaries more smoothly than interpolating the organs afterwards.
FINER = 2
#: Memory for the shares of all organs in the slices that are sampled at a time.
SHARES_BYTES = 128 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """A mask and how it was made.

    Parameters
    ----------
    mask
        uint8 organ ids on the grid of the input.
    labels
        Name -> id of the organs that were asked for, found or not.
    model, version
        Name of the model, and version of this package.
    steps, scheduler, samples
        How the model sampled; None where it does not sample, as baselines do not.
    seed
        Seed of the noise.
    seconds
        Time from volume to mask.
    precision
        What the networks computed in; None for a mask that no model made.
    confidence
        How sure the model is of each of the organs; empty for a mask that no model made.
    uncertainty
        Probability that a voxel's label is wrong, 0 to 1, float32 on the model's own grid, from which
        `uncertainty_percent` brings it to the scan's; None for a mask that no model made.
    calibration
        What made probabilities of the model's shares; None where it was not calibrated.
    sizes
        What the model's training scans say of the sizes of organs.
    corrected
        Whether a person has changed the mask.
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
    precision: Computed | None = None
    confidence: Mapping[str, OrganConfidence] = field(default_factory=dict)
    uncertainty: Volume | None = None
    calibration: Calibration | None = None
    sizes: OrganSizes = field(default_factory=OrganSizes)
    corrected: bool = False


def segment(
    model: Model, scan: Scan, sampling: Sampling | None = None, progress: Callable[[int, int], None] | None = None
) -> Segmentation:
    """Segment the organs of a scan.

    Slices are sampled a batch at a time and only their ids are kept, and the mask is drawn a few slices at a time:
    beside the scan and its mask, memory grows neither with the number of organs nor with that of slices. A method that
    segments `depth` slices together needs up to eight times the shares of so many, 4 (L + 1) bytes for each pixel.
    The noise is keyed by the scan's grey values, the seed and the slice: the same scan gives the same mask in any axis
    order and file format, and in float32 to the last bit with any batch size and number of threads.

    Parameters
    ----------
    model
        From `load_model`.
    scan
        The scan, its modality known: `checks.scan.examine` decides that and says whether the mask can be right.
    sampling
        How masks are sampled; the model's own way where None.
    progress
        Called with (slices done, slices in all).

    Raises
    ------
    InputRefusedError
        If the model does not know an organ, or the scan's modality is not known.
    UsageError
        If the model's scheduler cannot take so many steps.
    WeightsMissingError
        If the network answers with NaN or infinity.
    """
    began = time.monotonic()
    if scan.modality is None:
        raise InputRefusedError(
            f"{scan.place}: its modality is not known; expected CT or MR; state it",
            "modality_unknown",
            parameter="modality",
        )
    sampling, files = sampling or Sampling(), model.files
    labels = sampling.labels(files.labels)
    sampler = model.pipeline.sampler(sampling.steps, sampling.scheduler)

    # Slice by slice, the shares of all organs: kept of them are each pixel's organ and the evidence for it.
    grid = to_model_grid(scan, files.preprocessing)
    columns, rows, slices = grid.shape
    ids = np.zeros((slices, FINER * rows, FINER * columns), np.uint8)
    evidence = Shares((slices, rows, columns), len(files.labels) + 1)
    case = fingerprint(scan.volume)
    for chunk, shares in sample_shares(model, grid, sampler=sampler, sampling=sampling, case=case):  # (B, L + 1, ...)
        probabilities = shares if files.calibration is None else files.calibration.probabilities(shares)
        evidence.add(chunk.start, shares, probabilities)
        ids[chunk.start : chunk.stop] = torch.cat([_largest_share(share[None]) for share in shares]).cpu().numpy()
        if progress is not None:
            progress(chunk.stop, slices)

    # The mask: the organs that were asked for, without small pieces, on the grid of the scan.
    wanted = np.zeros(256, np.uint8)
    wanted[list(labels.values())] = list(labels.values())
    ids = remove_small_components(wanted[ids], files.least_component_share)
    mask = to_source_grid(finer_mask(ids, grid), scan.volume)

    # How sure the model is of it.
    confidence = evidence.confidence(_kept(ids, evidence.label), labels, grid.voxel_ml)
    if files.calibration is not None:
        confidence = {name: files.calibration.corrected(organ) for name, organ in confidence.items()}
    uncertainty = Volume.from_slices(evidence.uncertainty(), grid.affine)

    return Segmentation(
        mask=mask,
        labels=labels,
        model=files.name,
        version=__version__,
        steps=sampler.steps,
        scheduler=sampler.scheduler,
        samples=None if sampler.scheduler is None else sampling.samples,
        seed=sampling.seed,
        seconds=time.monotonic() - began,
        precision=sampling.computed_in(model.pipeline.device.type),
        confidence=confidence,
        uncertainty=uncertainty,
        calibration=files.calibration,
        sizes=files.limits.sizes,
    )


def sample_shares(
    model: Model, grid: Volume, *, sampler: Sampler, sampling: Sampling, case: str
) -> Iterator[tuple[range, Tensor]]:
    """The shares of all organs in each slice of a scan, a batch of slices after the other.

    Parameters
    ----------
    model
        From `load_model`.
    grid
        The scan on the model's grid, from `to_model_grid`.
    sampler
        The model's, as `sampling` asks for it.
    sampling
        How many samples are drawn with which seed, and how many slices are taken at a time: fewer where the model knows
        so many organs that their shares would exceed `SHARES_BYTES`, and as many as the sampler's `depth` where that is
        above 1.
    case
        The scan's `fingerprint`, which keys the noise.

    Yields
    ------
    The slices' numbers, and their shares (B, L + 1, rows, columns), which sum to 1 in each pixel.
    """
    samples = 1 if sampler.scheduler is None else sampling.samples
    key = int(case[:16], 16)
    slices = grid.slices()  # (S, rows, columns)
    offsets = neighbour_offsets(model.pipeline.neighbours, model.pipeline.neighbour_pairs)

    def shares_of(chunk: range) -> Tensor:
        images = torch.from_numpy(_with_neighbours(slices, chunk, offsets)).to(model.pipeline.device)
        shares = torch.zeros((), device=images.device)
        for sample in range(samples):
            keys = [NoiseKey(sampling.seed, key, index, sample) for index in chunk]
            with sampling.autocast(images.device.type):
                logits = sampler.method.segment(images, keys).float()  # (B, L + 1, rows, columns)
            if not torch.isfinite(logits).all():  # which would become an empty mask, and the scan be blamed
                raise WeightsMissingError(
                    f"{model.files.folder}: its masks are NaN or infinite at slice {chunk.start}; expected numbers; "
                    "take other settings, or install or train the model again"
                )
            shares = shares + logits.softmax(dim=1) / samples  # (B, L + 1, rows, columns)
        return shares

    if sampler.depth > 1:
        yield from blended_slabs(shares_of, len(slices), sampler.depth)
        return
    share_bytes = 4 * (len(model.files.labels) + 1) * slices.shape[1] * slices.shape[2]
    batch_size = max(1, min(sampling.batch_size, SHARES_BYTES // share_bytes))
    for start in range(0, len(slices), batch_size):
        chunk = range(start, min(start + batch_size, len(slices)))
        yield chunk, shares_of(chunk)


def finer_mask(ids: NDArray[np.uint8], grid: Volume) -> Volume:
    """Label ids (S, FINER * rows, FINER * columns), `FINER` times as fine in plane as the grid, where they lie."""
    to_grid = np.diag([1 / FINER, 1 / FINER, 1.0, 1.0])
    to_grid[:2, 3] = (1 / FINER - 1) / 2  # the first of them stands half of the gained resolution outwards
    return Volume.from_slices(ids, grid.affine @ to_grid)


def _largest_share(share: Tensor) -> Tensor:
    """(1, rows, columns) uint8 ids, `FINER` times as fine, of one slice's (1, L + 1, rows, columns) shares."""
    finer = F.interpolate(share, scale_factor=FINER, mode="bilinear", align_corners=False)
    return finer.max(dim=1).indices.to(torch.uint8)  # a sixth of the time that `argmax` takes on a CPU


def _kept(cleaned: NDArray[np.uint8], label: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Voxels of the model's grid whose label is still in the cleaned ids, `FINER` times as fine."""
    slices, rows, columns = label.shape
    squares = cleaned.reshape(slices, rows, FINER, columns, FINER)
    still: NDArray[np.bool_] = (squares == label[:, :, None, :, None]).any(axis=(2, 4))
    return still


def _with_neighbours(slices: NDArray[np.float32], chunk: range, offsets: list[int]) -> NDArray[np.float32]:
    """(B, channels, rows, columns): each slice among its neighbours; the last one stands in at the ends."""
    wanted = np.clip(np.array(chunk)[:, None] + np.array(offsets), 0, len(slices) - 1)
    return np.ascontiguousarray(slices[wanted])
