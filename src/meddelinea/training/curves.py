"""Learning curves from the logs of training runs: the paper's Figures 1 (loss) and 5 (validation Dice)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from meddelinea.errors import InputRefusedError
from meddelinea.files import whole
from meddelinea.training.metrics_log import MetricsLog, Row

#: What a line of the log holds beside losses and Dice.
NOT_LOSSES = ("step", "seconds", "cpu_seconds", "learning_rate", "gradient_norm")
#: Share of a run's steps that the smooth line averages over.
WINDOW_SHARE = 0.05


def smoothed(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean of each value and its neighbours: `window` of them inside, as many on both sides as there are at the ends.

    A straight line stays what it is, up to its ends.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(np.minimum(places, places[::-1]), window // 2)
    mean: NDArray[np.float64] = (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
    return mean


def points(log: Sequence[Row], key: str, by: str = "step") -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the rows that hold a finite `key` say of `by`, and of `key`."""
    found = np.array([(row[by], row[key]) for row in log if by in row and np.isfinite(row.get(key, np.nan))])
    places, values = found.reshape(-1, 2).T
    return places, values


def learning_curves(runs: Sequence[Path]) -> Figure:
    """Loss and validation Dice against optimiser steps, of the output folders of training runs.

    Of one run, the total loss and each of its parts, and the mean Dice beside that of the paper's organs; of several,
    the total loss and the mean Dice of each. Each step's loss is drawn faintly, its moving average on top.

    Raises
    ------
    InputRefusedError
        If one of them holds no log.
    """
    logs = {name: MetricsLog(run).read() for name, run in zip(_names(runs), runs, strict=True)}
    for run, log in zip(runs, logs.values(), strict=True):
        if not log:
            raise InputRefusedError(f"{run}: no step yet; draw its curves once it has trained a little")
    figure = Figure(figsize=(12, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    loss, dice = figure.subplots(1, 2, sharex=True)
    if len(logs) == 1:
        ((name, log),) = logs.items()
        figure.suptitle(name)
        keys = dict.fromkeys(key for row in log for key in row)
        for key in sorted(keys, key=lambda key: key != "total"):  # the total first, in the first colour
            if key not in NOT_LOSSES and not key.startswith("dice"):
                _draw_loss(loss, log, key, key)
        _draw_dice(dice, log, "dice", "all organs")
        _draw_dice(dice, log, "dice_paper", "the paper's organs")
    else:
        for name, log in logs.items():
            _draw_loss(loss, log, "total", name)
            _draw_dice(dice, log, "dice", name)
    for axes, title in ((loss, "loss"), (dice, "validation Dice")):
        _finish(axes, title)
    if loss.lines and loss.dataLim.y1 > 10.0 * loss.dataLim.minposy:  # parts, or phases, of unlike size
        loss.set_yscale("log")
        loss.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        loss.yaxis.set_minor_formatter(NullFormatter())
    elif loss.lines:
        loss.set_ylim(bottom=0)
    dice.set_ylim(0, 1)
    return figure


def write_curves(runs: Sequence[Path], path: Path) -> None:
    """Draw `learning_curves` into a PNG, which appears complete or not at all."""
    figure = learning_curves(runs)
    with whole(path) as part:
        figure.savefig(part, format="png")


def _names(runs: Sequence[Path]) -> list[str]:
    """What the runs are called: their folders' names, or as much of their paths as tells them apart."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise InputRefusedError(f"{', '.join(map(str, runs))}: one run is named twice; expected each once")


def _draw_loss(axes: Axes, log: list[Row], key: str, label: str) -> None:
    steps, values = points(log, key)
    if not (values > 0).any():  # a run that only measured a model, or a loss that is switched off
        return
    (raw,) = axes.plot(steps, values, alpha=0.25, linewidth=0.8)
    window = max(1, round(WINDOW_SHARE * len(values)))
    axes.plot(steps, smoothed(values, window), color=raw.get_color(), linewidth=1.6, label=label)


def _draw_dice(axes: Axes, log: list[Row], key: str, label: str) -> None:
    steps, values = points(log, key)
    if len(steps):
        axes.plot(steps, values, marker="o", markersize=4, label=label, clip_on=False)


def _finish(axes: Axes, title: str) -> None:
    """Axes with a name, whole steps and a faint grid; a note in place of a legend where nothing was measured."""
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="0.5")
