"""What a base has learnt of masks: its loss on held-out ones, and whether those that it draws are plausible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.benchmark.markdown import cell, table
from meddelinea.data.store import SliceStore
from meddelinea.diffusion.losses import Objective, timesteps
from meddelinea.diffusion.noise import Noise, NoiseKey
from meddelinea.diffusion.sampling import make_scheduler, sample
from meddelinea.errors import UsageError
from meddelinea.evaluation.summary import plain
from meddelinea.files import whole
from meddelinea.labels import colour_of
from meddelinea.models.codec import FACTOR, paint, palette_logits
from meddelinea.models.presets import load_dit
from meddelinea.training.config import RunConfig
from meddelinea.training.metrics_log import MetricsLog
from meddelinea.training.run_file import load_config
from meddelinea.training.stages import BaseStage

#: Pairs of organs whose first lies further to the patient's left, wherever a slice shows both.
LEFT_OF = (
    ("spleen", "liver"),
    ("left kidney", "liver"),
    ("left kidney", "right kidney"),
    ("spleen", "right kidney"),
    ("stomach", "liver"),
    ("stomach", "gallbladder"),
    ("aorta", "inferior vena cava"),
    ("left adrenal gland", "right adrenal gland"),
)
#: Share of an organ's pixels in a slice that its largest piece has, for the organ to count as one piece.
ONE_PIECE = 0.9
#: Slices that the network sees at once.
BATCH = 32
#: Noises and timesteps drawn for each mask whose loss is measured, stratified over the timesteps.
DRAWS = 4


@dataclass(frozen=True)
class Plausibility:
    """Shares of slices, 0 to 1, and the organs that a slice has on average."""

    one_piece: float  # each organ in one piece
    sides: float  # the organs of every pair of `LEFT_OF` on their sides
    both: float
    organs: float


@dataclass(frozen=True)
class PriorRow:
    """A base, and what it has learnt."""

    name: str
    steps: int  # optimiser steps of its training
    loss: float  # mean squared error of what it predicts, on masks of the cases
    drawn: Plausibility
    masks: NDArray[np.uint8]  # (n, H, W), those that it drew


@dataclass(frozen=True)
class PriorTable:
    """The rows, the cases behind the losses, and how plausible those cases' own masks are."""

    cases: tuple[str, ...]
    organs: tuple[str, ...]
    sampling_steps: int
    real: Plausibility
    rows: tuple[PriorRow, ...]


def measure_prior(
    runs: Sequence[Path],
    cases: tuple[str, ...],
    *,
    samples: int,
    steps: int,
    seed: int = 0,
    progress: ShowProgress = unwatched,
) -> PriorTable:
    """Measure finished runs of the stage `base`.

    Parameters
    ----------
    runs
        Their output folders.
    cases
        Cases of their store that none of them was trained on.
    samples, steps
        Masks that each draws, and its sampling steps.

    Raises
    ------
    UsageError
        If a run is none of a base, was trained on one of the cases, or has another store than the first.
    InputRefusedError
        If a store does not hold the cases.
    WeightsMissingError
        If a run has not ended.
    """
    configs = [load_config(folder / "run.json") for folder in runs]
    for folder, config in zip(runs, configs, strict=True):
        seen = sorted(set(cases) & set(config.data.train))
        if config.stage != "base":
            raise UsageError(f"{folder}: a run of the stage '{config.stage}'; expected one of 'base'")
        if seen:
            raise UsageError(f"{folder}: was trained on {', '.join(seen)}; expected cases that it has not seen")
        if config.data.store != configs[0].data.store:
            raise UsageError(f"{folder}: its store is {config.data.store}; expected {configs[0].data.store}")
    store = SliceStore(configs[0].data.store, cases)
    organs = store.manifest.organs
    masks = np.stack([store.mask(*store.place(number)) for number in range(len(store))])
    masks = masks[masks.any(axis=(1, 2))]  # (n, H, W)
    rows = []
    for done, (folder, config) in enumerate(zip(runs, configs, strict=True)):
        progress(f"base {folder.name}", done, len(runs))
        stage = _trained(folder, config, organs)
        drawn = draw_masks(stage, samples, masks.shape[1], steps=steps, seed=seed)
        taken, loss = int(MetricsLog(folder).read()[-1]["step"]), held_out_loss(stage, masks, seed)
        rows.append(PriorRow(folder.name, taken, loss, plausibility(drawn, organs), drawn))
    return PriorTable(cases, organs, steps, plausibility(masks, organs), tuple(rows))


def _trained(folder: Path, config: RunConfig, organs: tuple[str, ...]) -> BaseStage:
    stage = BaseStage(config, organs)
    stage.dit = load_dit(folder / "dit")
    return stage.eval()


@torch.no_grad()
def held_out_loss(stage: BaseStage, masks: NDArray[np.uint8], seed: int) -> float:
    """L_diff over masks (n, H, W) at uniform timesteps, `DRAWS` of them each: the same noise for every base."""
    generator = torch.Generator().manual_seed(seed)
    side, total = masks.shape[1] // FACTOR, 0.0
    for first in range(0, len(masks), BATCH):
        part = torch.from_numpy(masks[first : first + BATCH])  # (B, H, W)
        noise = torch.randn(DRAWS, len(part), stage.noise_channels, side, side, generator=generator)
        place = torch.rand(DRAWS, len(part), generator=generator)
        clean = stage.codec.to_latent(paint(part, stage.colours))  # (B, C, h, w)
        for draw in range(DRAWS):
            t = timesteps((draw + place[draw]) / DRAWS, len(stage.schedule), Objective())  # (B,), uniform
            noisy = stage.schedule.add_noise(clean, noise[draw], t)  # (B, C, h, w)
            output = stage.dit(noisy, stage.dit.condition(t)).sample  # (B, C, h, w)
            target = stage.prediction.target(clean, noise[draw], t)  # (B, C, h, w)
            total += float(F.mse_loss(output, target)) * len(part) / DRAWS
    return total / len(masks)


@torch.no_grad()
def draw_masks(stage: BaseStage, count: int, side: int, *, steps: int, seed: int) -> NDArray[np.uint8]:
    """`count` masks (count, side, side) from noise alone, by the paper's sampler."""
    shape = (stage.noise_channels, side // FACTOR, side // FACTOR)

    def denoise(noisy: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, None]:
        output = stage.dit(noisy, stage.dit.condition(t)).sample  # (B, C, h, w)
        return stage.prediction.epsilon(output, noisy, t), None

    drawn = []
    for first in range(0, count, BATCH):
        keys = [NoiseKey(seed, 0, number, 0) for number in range(first, min(first + BATCH, count))]
        clean, _ = sample(denoise, Noise.keyed(keys, shape), make_scheduler("euler_ancestral"), steps)
        pixels = stage.codec.to_pixels(stage.codec.to_features(clean))  # (B, 3, H, W)
        drawn.append(palette_logits(pixels, stage.colours).argmax(dim=1).byte().numpy())
    return np.concatenate(drawn)


def plausibility(masks: NDArray[np.uint8], organs: Sequence[str]) -> Plausibility:
    """How many of the slices (n, H, W) could be of a body, their columns running to the patient's left."""
    found = np.array([(_one_piece(mask), _sides(mask, organs)) for mask in masks], dtype=bool)  # (n, 2)
    count = float(np.mean([len(np.unique(mask[mask > 0])) for mask in masks]))
    one_piece, sides = found.mean(axis=0)
    return Plausibility(float(one_piece), float(sides), float(found.all(axis=1).mean()), count)


def _one_piece(mask: NDArray[np.uint8]) -> bool:
    for organ in np.unique(mask[mask > 0]):
        pieces = cc3d.connected_components(mask == organ, connectivity=8)
        sizes = np.bincount(pieces.ravel())[1:]
        if sizes.max() < ONE_PIECE * sizes.sum():
            return False
    return True


def _sides(mask: NDArray[np.uint8], organs: Sequence[str]) -> bool:
    column = {organs[organ - 1]: float(np.nonzero(mask == organ)[1].mean()) for organ in np.unique(mask[mask > 0])}
    pairs = [(left, right) for left, right in LEFT_OF if left in column and right in column]
    return all(column[left] > column[right] for left, right in pairs)


def prior_lines(found: PriorTable) -> list[str]:
    """The table in Markdown."""
    head = ["base", "training steps", "loss, held out", "each organ in one piece", "sides right", "both", "organs"]
    rows = [(row.name, f"{row.steps}", f"{row.loss:.4f}", *_cells(row.drawn)) for row in found.rows]
    return table(head, [*rows, ("real masks", "", "", *_cells(found.real))])


def _cells(shares: Plausibility) -> tuple[str, ...]:
    return (*(cell(share, ".2f") for share in (shares.one_piece, shares.sides, shares.both)), f"{shares.organs:.1f}")


def prior_document(found: PriorTable) -> dict[str, Any]:
    """Everything but the drawn masks as plain JSON types."""
    rows = [{name: value for name, value in vars(row).items() if name != "masks"} for row in found.rows]
    return plain({**vars(found), "rows": rows})


def prior_picture(found: PriorTable, path: Path, columns: int = 8) -> None:
    """Draw the first masks of each base, a row each, in the organs' own colours."""
    colours = np.array([(0, 0, 0), *(colour_of(organ) for organ in found.organs)], dtype=np.uint8)
    figure = Figure(figsize=(1.5 * columns, 1.65 * len(found.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(found.rows), columns, squeeze=False)
    for row, cells in zip(found.rows, axes, strict=True):
        for axis in cells:
            axis.set_axis_off()
        for axis, mask in zip(cells, row.masks, strict=False):
            axis.imshow(colours[mask], interpolation="nearest")
        cells[0].set_title(row.name, loc="left", fontsize=9)
    with whole(path) as part:
        figure.savefig(part, format="png", dpi=150)
