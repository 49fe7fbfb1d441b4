"""The page that the paper's figures are drawn on: its width, its type, its colours and its files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import matplotlib
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from meddelinea.errors import UsageError
from meddelinea.files import whole

FileFormat = Literal["png", "svg", "pdf"]
FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
#: Width of the text of a page, and of the smallest type on it, in points.
PAGE_INCHES = 6.75
TYPE_POINTS = 7.0
#: Width of a character at most, on average over a word, as a share of the size of type.
CHARACTER = 0.62
#: Pixels to an inch of what is printed.
PRINT_DPI = 300
#: Colours of Okabe and Ito (2008), told apart with every kind of colour vision; the yellow, faint on paper, left out.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: What tells lines apart once the colours are used up.
STROKES = ("-", "--", ":")


def new_page(height_inches: float, width_inches: float = PAGE_INCHES, gap: float = 0.0) -> Figure:
    """An empty figure; what is drawn on it is laid out so that nothing overlaps, axes `gap` of their width apart."""
    figure = Figure(figsize=(width_inches, height_inches), dpi=PRINT_DPI)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=gap, hspace=0.0)
    FigureCanvasAgg(figure)
    return figure


def type_points(width_inches: float) -> float:
    """Size of type on a figure that may be wider than the page and will be shrunk to it."""
    return TYPE_POINTS * max(1.0, width_inches / PAGE_INCHES)


def heading(title: str, cell_inches: float, points: float) -> tuple[str, float]:
    """A column's title on as many lines as it needs, and the size of type at which its longest word fits."""
    characters = int(72.0 * cell_inches / (CHARACTER * points))
    text = textwrap.fill(title, max(1, characters), break_long_words=False)
    longest = max(map(len, text.splitlines()), default=1)
    return text, min(points, 72.0 * cell_inches / (CHARACTER * longest))


def line_of(place: int) -> tuple[str, str]:
    """Colour and stroke of the line of that place; those of the first 21 differ."""
    return COLOURS[place % len(COLOURS)], STROKES[place // len(COLOURS) % len(STROKES)]


def legend_below(figure: Figure, keys: Sequence[Line2D | Patch], columns: int) -> None:
    """A legend under everything else, of so many columns at most."""
    handles: list[Artist] = list(keys)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(columns, max(1, len(handles))),
        frameon=False,
        fontsize=type_points(figure.get_figwidth()),
        handlelength=1.8,
        columnspacing=1.4,
    )


def require_formats(formats: Sequence[str]) -> None:
    """Refuse a format that is none of `FORMATS`, before any work.

    Raises
    ------
    UsageError
        If one is not, or there is none.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        given = ", ".join(unknown) or "none"
        raise UsageError(f"{given}; expected some of {', '.join(FORMATS)}", parameter="formats")


def write_figure(figure: Figure, stem: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write a figure into a file of each format, each complete or not at all, the same bytes every time."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    undated: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    written = []
    for name in formats:
        path = stem.with_name(f"{stem.name}.{name}")
        with matplotlib.rc_context({"svg.hashsalt": stem.name}), whole(path) as part:
            figure.savefig(part, format=name, dpi=PRINT_DPI, metadata=undated[name])
        written.append(path)
    return written
