"""What is done with a model's shares before the largest is taken, and with small pieces after: Dice of each way.

    python benchmarks/shares.py MODEL ../shared/data/btcv img0009,img0023,img0031

Shares of one sample, averaged over four samples, over neighbouring slices, and over the image shifted by some pixels;
pieces of an organ dropped that are smaller than a share of its largest. At full resolution, means over the cases.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from meddelinea.data.case import read_case
from meddelinea.data.datasets import find_cases
from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.preprocess import neighbour_offsets, to_model_grid, to_source_grid
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.labels import PAPER_ORGANS
from meddelinea.segmentation.model import load_model
from meddelinea.segmentation.postprocess import remove_small_components
from meddelinea.segmentation.predict import FINER, finer_mask

SHIFTS = ((0, 0), (2, 3), (-3, 2), (3, -2))
BATCH = 16


def blurred(shares: Tensor, weight: float) -> Tensor:
    """Averaged with both neighbouring slices, each weighing so much."""
    wider = torch.cat([shares[:1], shares, shares[-1:]])
    return (1.0 - 2.0 * weight) * shares + weight * wider[:-2] + weight * wider[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("source", type=Path)
    parser.add_argument("cases", type=lambda names: names.split(","))
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(given.model, "cpu")
    labels, pipeline = model.files.labels, model.pipeline
    method = pipeline.sampler().method
    offsets = np.array(neighbour_offsets(pipeline.neighbours, pipeline.neighbour_pairs))
    cases = {case.name: case for case in find_cases("btcv", given.source).cases}
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for name in given.cases:
        read = read_case(cases[name], tuple(labels))
        grid = to_model_grid(read.scan, model.files.preprocessing)
        case = int(fingerprint(read.volume)[:16], 16)
        slices = grid.slices()

        def shares(shift: tuple[int, int] = (0, 0), sample: int = 0, slices=slices, case=case) -> Tensor:
            batches = []
            for start in range(0, len(slices), BATCH):
                chunk = np.arange(start, min(start + BATCH, len(slices)))
                wanted = np.clip(chunk[:, None] + offsets, 0, len(slices) - 1)
                images = torch.roll(torch.from_numpy(np.ascontiguousarray(slices[wanted])), shift, (2, 3))
                logits = method.segment(images, [NoiseKey(0, case, int(index), sample) for index in chunk])
                batches.append(torch.roll(logits.softmax(dim=1), (-shift[0], -shift[1]), (2, 3)))
            return torch.cat(batches)

        def mask(shares: Tensor, least_share: float, grid=grid, volume=read.volume) -> NDArray[np.uint8]:
            finer = [F.interpolate(part, scale_factor=FINER, mode="bilinear").argmax(dim=1) for part in shares.split(1)]
            ids = remove_small_components(torch.cat(finer).to(torch.uint8).numpy(), least_share)
            return to_source_grid(finer_mask(ids, grid), volume).array

        def note(way: str, array: NDArray[np.uint8], truth=read.mask.array) -> None:
            scores = {}
            for organ, index in labels.items():
                ours, theirs = array == index, truth == index
                size = ours.sum() + theirs.sum()
                scores[organ] = 2.0 * (ours & theirs).sum() / size if size else np.nan
            found[way].append(scores)

        shifted = [shares(shift) for shift in SHIFTS]
        for least_share in (0.1, 0.0, 0.3, 1.0):
            note(f"one sample, pieces under {least_share:g} dropped", mask(shifted[0], least_share))
        sampled = [shifted[0], *(shares(sample=sample) for sample in (1, 2, 3))]
        note("mean of 4 samples", mask(sum(sampled) / 4, 0.1))
        for weight in (0.15, 0.25):
            note(f"neighbouring slices, weight {weight:g}", mask(blurred(shifted[0], weight), 0.1))
        note("mean of 2 shifts", mask(sum(shifted[:2]) / 2, 0.1))
        note("mean of 4 shifts", mask(sum(shifted) / 4, 0.1))
    for way, rows in found.items():
        means = {organ: float(np.nanmean([row[organ] for row in rows])) for organ in labels}
        paper = np.mean([means[organ] for organ in PAPER_ORGANS])
        print(f"{way:36} 8 organs {paper:.3f}, all {np.mean(list(means.values())):.3f}")


if __name__ == "__main__":
    main()
