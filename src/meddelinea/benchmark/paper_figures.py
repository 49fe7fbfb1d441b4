"""The paper's figures, of what a benchmark's output holds: which results each of them is drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from meddelinea.benchmark.figure_cases import (
    FigureCase,
    figure_cases,
    organ_id,
    organs_of,
    require_slice,
    telling_slice,
)
from meddelinea.benchmark.figures.architecture import architecture_figure, sizes_of
from meddelinea.benchmark.figures.attention import Query, attention_figure, attention_layers, attention_of
from meddelinea.benchmark.figures.curves import Quantity, curves_figure
from meddelinea.benchmark.figures.page import require_formats, write_figure
from meddelinea.benchmark.figures.panels import panels_figure
from meddelinea.benchmark.figures.surfaces import surfaces_figure
from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.benchmark.paper_file import Kind, PaperBench
from meddelinea.benchmark.paper_run import Place, last_run, model_of, places_of, train_and_test
from meddelinea.data.case import LabelledScan
from meddelinea.data.fingerprint import fingerprint
from meddelinea.data.preprocess import mask_to_model_grid, neighbour_offsets, to_model_grid
from meddelinea.diffusion.noise import NoiseKey
from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.labels import BTCV, organ_ids
from meddelinea.scan import Modality
from meddelinea.segmentation.model import Model, load_model
from meddelinea.training.metrics_log import MetricsLog, Row

#: Figure -> the kinds of settings whose results it shows, and the modality of its cases where it has one only.
FIGURES: Mapping[int, tuple[tuple[Kind, ...], Modality | None]] = {
    1: (("pretrained",), None),
    2: ((), None),
    3: (("fine-tuned", "zero-shot"), "CT"),
    4: (("fine-tuned", "zero-shot"), "MR"),
    5: (("pretrained",), None),
    6: (("pretrained",), None),
    7: (("pretrained", "fine-tuned"), None),
    8: (("pretrained", "fine-tuned"), None),
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What can be chosen of a figure; each figure takes what concerns it."""

    case: str | None = None  # the first test cases of each setting where None
    slice: int | None = None  # axial, from the feet at 0; one that shows the organs well where None
    point: tuple[int, int] | None = None  # column and row of the model's slice; the organ's innermost where None
    organ: str | None = None  # all where None; for attention the one with most pixels in the slice
    block: int = 0  # of the transformers, from 1; the last where 0
    errors: bool = False  # of bodies, in place of their organs
    preset: str = "paper"  # whose architecture is drawn
    formats: tuple[str, ...] = ("png", "svg")


@dataclass(frozen=True)
class Drawn:
    """The files of a figure, and what is missing from it, a line each."""

    files: tuple[Path, ...]
    missing: tuple[str, ...]


def make_figure(
    bench: PaperBench,
    output: Path,
    number: int,
    choice: Choice,
    *,
    train: bool = True,
    methods: tuple[str, ...] | None = None,
    progress: ShowProgress = unwatched,
) -> Drawn:
    """Draw a figure, 1 to 8, into `output`, whose layout `paper_file` describes.

    Parameters
    ----------
    train
        Whether what is missing is trained and tested first; else it stays missing.
    methods
        Those that are trained, tested and drawn; all where None.

    Raises
    ------
    InputRefusedError
        If there is nothing to draw, or no case, slice, organ or point as chosen.
    UsageError
        As `train_and_test`, and if a format or the preset is unknown.
    """
    require_formats(choice.formats)
    places = [place for place in places_of(bench, FIGURES[number][0]) if methods is None or place[1] in methods]
    reasons = train_and_test(bench, output, places, progress) if train else {}
    missing = [f"{title}, {name}: {reason}" for (title, name), reason in reasons.items()]
    if number == 2:
        figure = architecture_figure(sizes_of(choice.preset, len(BTCV)))
    elif number in (1, 5):
        figure = _curves(bench, output, places, "total" if number == 1 else "dice", missing)
    else:
        cases = _cases(bench, output, number, places, choice, missing, progress)
        if number == 7:
            figure = _attention(bench, output, places, cases, choice, missing)
        else:
            figure = _masks(number, [case for case in cases if case.masks], choice, missing)
    files = write_figure(figure, output / "figures" / f"figure-{number}", choice.formats)
    return Drawn(tuple(files), tuple(dict.fromkeys(missing)))


def _curves(bench: PaperBench, output: Path, places: Sequence[Place], quantity: Quantity, missing: list[str]) -> Figure:
    """Of each setting and method the run that its model is from."""
    logs: dict[str, Sequence[Row]] = {}
    several = len({title for title, _ in places}) > 1
    for title, name in places:
        try:
            rows = MetricsLog(last_run(bench, output, title, name)).read()
        except InputRefusedError:
            rows = []
        if any(quantity in row for row in rows):
            logs[f"{name}, {title}" if several else name] = rows
        else:
            missing.append(f"{title}, {name}: no run here that measured it")
    if not logs:
        raise _nothing(missing)
    return curves_figure(logs, quantity)


def _cases(
    bench: PaperBench,
    output: Path,
    number: int,
    places: Sequence[Place],
    choice: Choice,
    missing: list[str],
    progress: ShowProgress,
) -> list[FigureCase]:
    """The cases of a figure, each with the masks that there are."""
    titles = list(dict.fromkeys(title for title, _ in places))
    organs = organs_of(bench, titles)
    cases: list[FigureCase] = []
    if choice.organ is not None and organs:
        organ_id(organs, choice.organ)
    for title in titles:
        methods = [name for setting, name in places if setting == title]
        try:
            found = figure_cases(
                bench,
                output,
                title,
                methods,
                organs=organs,
                named=choice.case,
                modality=FIGURES[number][1],
                progress=progress,
            )
            cases += found
        except InputRefusedError as error:  # its dataset is not at hand
            missing.append(f"{title}: {error}")
    for case in cases:
        absent = [name for setting, name in places if setting == case.setting and name not in case.masks]
        missing += [f"{case.setting}, {name}: no mask of {case.labelled.scan.name}" for name in absent]
    return cases


def _masks(number: int, cases: Sequence[FigureCase], choice: Choice, missing: list[str]) -> Figure:
    """Panels, or bodies."""
    if not cases:
        raise _nothing(missing)
    labels = organ_ids(cases[0].labelled.organs)
    if number != 8:
        return panels_figure([case.panel(choice.slice, choice.organ) for case in cases], labels, choice.organ)
    shown = labels if choice.organ is None else {choice.organ: labels[choice.organ]}
    return surfaces_figure([case.surface() for case in cases], shown, errors=choice.errors)


def _attention(
    bench: PaperBench,
    output: Path,
    places: Sequence[Place],
    cases: Sequence[FigureCase],
    choice: Choice,
    missing: list[str],
) -> Figure:
    """Of the first method that has transformers, in its setting's first case."""
    for title, name in places:
        case = next((case for case in cases if case.setting == title), None)
        try:
            model = load_model(model_of(bench, output, title, name), device="cpu")
        except MedDelineaError as error:
            missing.append(f"{title}, {name}: {error}")
            continue
        if case is None or not attention_layers(model.pipeline):
            missing.append(f"{title}, {name}: no {'such case' if case is None else 'diffusion transformer'}")
            continue
        figure = _attention_in(model, case.labelled, choice)
        figure.suptitle(f"{name}, {title}, {case.labelled.scan.name}", fontsize=8)
        return figure
    raise _nothing(missing)


def _attention_in(model: Model, labelled: LabelledScan, choice: Choice) -> Figure:
    """In a slice of a scan on the model's grid."""
    grid = to_model_grid(labelled.scan, model.files.preprocessing)
    slices, truth = grid.slices(), mask_to_model_grid(labelled.mask, grid).slices()  # (S, H, W) each
    if choice.slice is None:
        index = telling_slice(truth.transpose(1, 2, 0), labelled.organs, choice.organ)
    else:
        volume = labelled.volume.reorient("LAS")
        require_slice(choice.slice, volume.shape[2])
        middle = volume.affine @ (volume.shape[0] / 2, volume.shape[1] / 2, choice.slice, 1.0)
        index = int(np.clip(np.rint((np.linalg.inv(grid.affine) @ middle)[2]), 0, len(slices) - 1))
    ids = organ_ids(labelled.organs)
    organ = choice.organ or max(ids, key=lambda name: int((truth[index] == ids[name]).sum()))
    query = Query.of(slices[index], organ, truth[index] == ids[organ], choice.point)

    around = index + np.array(neighbour_offsets(model.pipeline.neighbours, model.pipeline.neighbour_pairs))
    images = torch.from_numpy(slices[np.clip(around, 0, len(slices) - 1)][None])  # (1, slices, H, W)
    key = NoiseKey(0, int(fingerprint(labelled.volume)[:16], 16), index, 0)
    return attention_figure(query, attention_of(model.pipeline, images, key, choice.block - 1))


def _nothing(missing: Sequence[str]) -> InputRefusedError:
    """Of a figure of which nothing is there."""
    reasons = "; ".join(dict.fromkeys(missing)) or "the file has no such setting, or no such case"
    return InputRefusedError(f"nothing to draw: {reasons}")
