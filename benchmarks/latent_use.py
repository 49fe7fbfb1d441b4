"""What a model takes from its transformer: Dice where slices of a batch exchange latents, or tokens, before decoding.

    python benchmarks/latent_use.py runs/fold/control stores/btcv-2mm --cases img0005,img0009

A model whose Dice does not fall has learned to draw masks from the image alone, and its diffusion is idle.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from meddelinea.data.store import SliceStore
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.models.segmenter import ImageFeatures
from meddelinea.segmentation.model import load_model
from meddelinea.training.run_file import load_config
from meddelinea.training.validation import validation_dice


def keep(values: Tensor) -> Tensor:
    return values


def exchange(values: Tensor) -> Tensor:
    return values.roll(1, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="small, or the folder of a trained model")
    parser.add_argument("store", type=Path)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--stride", type=int, default=6, help="every how many slices")
    parser.add_argument("--steps", type=int, default=1)
    arguments = parser.parse_args()
    model = load_model(arguments.model, "cpu")
    config = load_config(model.files.folder / "run.json", (f"validation.stride={arguments.stride}",))
    store = SliceStore(arguments.store, tuple(arguments.cases.split(",")))
    organs = tuple(model.files.labels)

    def dice(latents: Callable[[Tensor], Tensor], tokens: Callable[[Tensor], Tensor]) -> dict[str, float]:
        method = model.pipeline.sampler(arguments.steps).method
        decode = method.segmenter.decode

        def changed(clean: Tensor, image: ImageFeatures, seen: Tensor) -> Tensor:
            return decode(latents(clean), image, tokens(seen))

        method.segmenter.decode = changed  # type: ignore[method-assign]

        def predict(images: Tensor, masks: Tensor, keys: list[NoiseKey]) -> Tensor:
            return method.segment(images, keys)

        return validation_dice(predict, organs, store, config, torch.device("cpu"))

    print("| exchanged | 8 organs | all |\n| --- | --- | --- |")
    for name, latents, tokens in (
        ("nothing", keep, keep),
        ("latents", exchange, keep),
        ("tokens", keep, exchange),
        ("both", exchange, exchange),
    ):
        figures = dice(latents, tokens)
        print(f"| {name} | {figures['dice_paper']:.3f} | {figures['dice']:.3f} |", flush=True)


if __name__ == "__main__":
    main()
