"""Learning curves of methods, by step and by hour: the paper's Figures 1 (loss) and 5 (validation Dice)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from meddelinea.benchmark.figures.page import TYPE_POINTS, legend_below, line_of, new_page
from meddelinea.training.curves import WINDOW_SHARE, points, smoothed
from meddelinea.training.metrics_log import Row

Quantity = Literal["total", "dice"]
_NAMES = {"total": "training loss", "dice": "validation Dice"}


def curves_figure(logs: Mapping[str, Sequence[Row]], quantity: Quantity) -> Figure:
    """A line a method, at the left over optimiser steps, at the right over the hours of processor time they took.

    Parameters
    ----------
    logs
        Method -> the rows of its training log.
    quantity
        `total`, the loss, as a moving average over a twentieth of the run; or `dice`, wherever it was validated.
    """
    figure = new_page(2.9, gap=0.05)
    by_step, by_hour = figure.subplots(1, 2, sharey=True)
    keys: list[Line2D] = []
    for place, (method, log) in enumerate(logs.items()):
        colour, stroke = line_of(place)
        if not len(points(log, quantity)[0]):
            continue
        key = Line2D([], [], label=method)
        key.set(color=colour, linestyle=stroke, linewidth=1.2)
        keys.append(key)
        for axes, clock, unit in ((by_step, "step", 1.0), (by_hour, "cpu_seconds", 3600.0)):
            reached, values = points(log, quantity, by=clock)
            if quantity == "total":
                window = max(1, round(WINDOW_SHARE * len(values)))
                whole = slice(window // 2, len(values) - window // 2)  # where the average is over a whole window
                (line,) = axes.plot(reached[whole] / unit, smoothed(values, window)[whole])
            else:
                (line,) = axes.plot(reached / unit, values, marker="o", markersize=2.2)
            line.set(color=colour, linestyle=stroke, linewidth=1.2)
    _finish(by_step, "optimiser steps")
    _finish(by_hour, "hours of processor time")
    by_step.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    by_step.set_ylabel(_NAMES[quantity], fontsize=TYPE_POINTS + 1)
    if quantity == "dice":
        by_step.set_ylim(0.0, 1.0)
    elif by_step.has_data():
        by_step.set_yscale("log")  # losses of unlike methods are of unlike size
        by_step.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        by_step.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        by_step.yaxis.set_minor_formatter(NullFormatter())
    legend_below(figure, keys, columns=5)
    return figure


def _finish(axes: Axes, name: str) -> None:
    axes.set_xlabel(name, fontsize=TYPE_POINTS + 1)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=TYPE_POINTS)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if not axes.has_data():
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="0.4")
