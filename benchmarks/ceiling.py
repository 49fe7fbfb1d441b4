"""What a grid, and a codec's latents on it, can hold of the organs: Dice of labels brought there and back.

    python benchmarks/ceiling.py ../shared/data/btcv img0009,img0023,img0031 --grid 128,3 --grid 256,1.5
    python benchmarks/ceiling.py ../shared/data/btcv img0009,img0023,img0031 --grid 256,1.5 --codec CODEC

Nothing that predicts on a grid alone, or reads masks from a codec's latents alone, can pass it. At full resolution, by
the way of `predict`: shares on the grid, told apart twice as fine, mapped to the scan. A codec's shares are those of
the palette's nearest colour to the decoded pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from meddelinea.data.case import read_case
from meddelinea.data.datasets import find_cases
from meddelinea.data.preprocess import Preprocessing, mask_to_model_grid, to_model_grid, to_source_grid
from meddelinea.evaluation.metrics import dice
from meddelinea.labels import PAPER_ORGANS
from meddelinea.models.codec import SpaceToDepthCodec, paint, palette, palette_logits
from meddelinea.segmentation.predict import FINER, finer_mask


def grid_of(text: str) -> Preprocessing:
    size, spacing_mm = text.split(",")
    return Preprocessing(size=int(size), spacing_mm=float(spacing_mm))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("cases", type=lambda names: names.split(","))
    parser.add_argument("--grid", type=grid_of, action="append", required=True, metavar="PIXELS,MM")
    parser.add_argument("--codec", type=Path)
    given = parser.parse_args()
    cases = {case.name: case for case in find_cases("btcv", given.source).cases}
    organs = next(iter(cases.values())).labels.organs
    colours = palette(len(organs) + 1)
    codec = None if given.codec is None else SpaceToDepthCodec.from_pretrained(given.codec).eval()

    @torch.no_grad()
    def shares(mask: Tensor) -> Tensor:
        if codec is None:
            return F.one_hot(mask.long(), len(organs) + 1).permute(0, 3, 1, 2).float()
        pixels = codec.to_pixels(codec.to_features(codec.to_latent(paint(mask, colours))))
        return (4.0 * palette_logits(pixels, colours)).softmax(dim=1)

    for grid in given.grid:
        rows = []
        for name in given.cases:
            read = read_case(cases[name], organs)
            there = to_model_grid(read.scan, grid)
            masks = torch.from_numpy(mask_to_model_grid(read.mask, there).slices().copy())
            finer = [F.interpolate(shares(mask), scale_factor=FINER, mode="bilinear") for mask in masks.split(1)]
            ids = torch.cat([part.argmax(dim=1) for part in finer]).to(torch.uint8).numpy()
            back = to_source_grid(finer_mask(ids, there), read.volume).array
            rows.append([dice(back == i, read.mask.array == i) for i in range(1, len(organs) + 1)])
        means = dict(zip(organs, np.nanmean(rows, axis=0), strict=True))
        paper = np.mean([means[organ] for organ in PAPER_ORGANS])
        everything = np.mean(list(means.values()))
        print(f"{grid.size} pixels of {grid.spacing_mm:g} mm: 8 organs {paper:.3f}, all {everything:.3f}")
        print("   " + ", ".join(f"{organ} {value:.3f}" for organ, value in means.items()))


if __name__ == "__main__":
    main()
