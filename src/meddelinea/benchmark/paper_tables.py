"""The paper's tables, of what a benchmark has measured: what each shows, and what it lacks.

Dice in per cent as in the paper, distances in millimetres. A cell is None where nothing was measured, and NaN where
what was measured has no value, as the mean of distances that are all infinite. The paper's own figures are rows of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from meddelinea.benchmark.bench_file import folder_name
from meddelinea.benchmark.paper_file import Kind, PaperBench
from meddelinea.benchmark.paper_rows import COSTS, ORGANS, SCORES, Cells, Column, Row, Section, costs, ranked, row_cells
from meddelinea.benchmark.paper_run import Measured, Place, default_of, places_of
from meddelinea.benchmark.published import Published, published
from meddelinea.benchmark.speed import Speeds
from meddelinea.data.mixing import mixing_warnings
from meddelinea.scan import Modality


@dataclass(frozen=True, kw_only=True)
class Table:
    """One of the paper's tables."""

    number: int
    title: str
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]  # how to read it
    missing: tuple[str, ...]  # what is not in it, and why
    failed: tuple[str, ...]  # cases that could not be tested, and why


class _Kind(NamedTuple):
    """What a table is of."""

    title: str
    kinds: tuple[Kind, ...]
    columns: tuple[Column, ...]


TABLES: Mapping[int, _Kind] = {
    1: _Kind("Segmentation on the pre-training collection", ("pretrained",), SCORES),
    2: _Kind("Fine-tuned, and zero-shot", ("fine-tuned", "zero-shot"), SCORES),
    3: _Kind("Few-shot", ("few-shot",), SCORES),
    4: _Kind("Parameters and inference time", ("pretrained",), COSTS),
    5: _Kind("Ablations", ("ablation",), SCORES),
    6: _Kind("Dice by organ, fine-tuned", ("fine-tuned",), ORGANS),
    7: _Kind("Dice by organ, zero-shot", ("zero-shot",), ORGANS),
    8: _Kind("MRI beside CT, zero-shot", ("zero-shot",), SCORES),
    9: _Kind("Dice by organ on the pre-training collection", ("pretrained",), ORGANS),
}


def places_in(number: int, bench: PaperBench) -> tuple[Place, ...]:
    """What a table needs to be trained and tested."""
    places = places_of(bench, TABLES[number].kinds)
    defaults = [(title, name) for _, name in places if (title := default_of(bench, name)) is not None]
    return (*dict.fromkeys(defaults), *places) if number == 5 else places


def make_table(
    number: int, bench: PaperBench, measured: Measured, speeds: Speeds | None, *, beside_paper: bool
) -> Table:
    """One of the tables 1 to 9.

    Parameters
    ----------
    speeds
        For Table 4; None where they were not measured.
    beside_paper
        Whether the paper's figures follow the measured ones of the same method, dataset and setting, and stand in
        sections of their own where nothing like it was measured.
    """
    about, places = TABLES[number], places_in(number, bench)
    if number == 4:
        sections = _by_cost(speeds, tuple(dict.fromkeys(name for _, name in places)))
    elif number == 5:
        sections = _by_ablation(bench, measured, places)
    elif number == 8:
        sections = _by_modality(bench, measured)
    else:
        titles = dict.fromkeys(title for title, _ in places)
        sections = [_section(bench, measured, title, columns=about.columns) for title in titles]
    trials = [(place, measured.trials[place]) for place in places if place in measured.trials]
    lacking = [] if places else [f"no {' or '.join(about.kinds)} setting in the file"]
    untimed = {} if number != 4 or speeds is None else dict(speeds.failed)
    if number == 4:
        timed = () if speeds is None else speeds.models
        untimed |= {name: "not timed" for (_, name), _ in trials if name not in (*timed, *untimed)}
    return Table(
        number=number,
        title=about.title,
        columns=about.columns,
        sections=tuple(_beside(number, sections) if beside_paper else (ranked(section) for section, _ in sections)),
        notes=(*_notes(number, speeds, beside_paper=beside_paper), *_shared_scans(bench, places)),
        missing=(
            *lacking,
            *(f"{', '.join(place)}: {measured.missing[place]}" for place in places if place in measured.missing),
            *(f"{name}: {reason}" for name, reason in untimed.items()),
        ),
        failed=tuple(
            f"{', '.join(place)}, {failure.case}: {failure.reason}"
            for place, trial in trials
            for failure in trial.report.failures
        ),
    )


#: A section of measured rows, and what of the paper it corresponds to.
_Made = tuple[Section, Callable[[Published], bool]]


def _section(
    bench: PaperBench,
    measured: Measured,
    title: str,
    modality: Modality | None = None,
    *,
    columns: tuple[Column, ...] = SCORES,
) -> _Made:
    """A setting, a row a method; of the cases of one modality where it is given."""
    setting, known = bench.settings[title], measured.cases.get(title, {})
    rows = []
    for name in bench.methods_of(title):
        trial = measured.trials.get((title, name))
        if trial is not None and modality is not None:
            cases = tuple(case for case in trial.report.cases if known[case.case].modality == modality)
            trial = replace(trial, report=replace(trial.report, cases=cases))
        rows.append(Row(name, {} if trial is None else row_cells(trial, known, bench.seed, columns)))

    def published_as(part: Published) -> bool:
        return (part.kind, part.dataset, part.share, part.modality) == (
            *(setting.kind, setting.dataset, setting.share),
            modality,
        )

    words = title if modality is None else f"{modality}: {title}"
    return Section(words, tuple(rows)), published_as


def _by_modality(bench: PaperBench, measured: Measured) -> list[_Made]:
    """Zero-shot settings by modality; of a modality that they lack, the own test of the pre-trained models."""
    made: list[_Made] = []
    for modality in ("MR", "CT"):
        tested = {
            kind: [
                title
                for title, setting in bench.settings.items()
                if setting.kind == kind and modality in _modalities(measured, title)
            ]
            for kind in ("zero-shot", "pretrained")
        }
        for title in tested["zero-shot"] or tested["pretrained"]:
            made.append(_section(bench, measured, title, modality))
    return made


def _modalities(measured: Measured, title: str) -> set[Modality]:
    """Of the test cases of a setting, as far as it was begun."""
    return {case.modality for case in measured.cases.get(title, {}).values()}


def _by_ablation(bench: PaperBench, measured: Measured, places: tuple[Place, ...]) -> list[_Made]:
    """A method after the other: its default, and what became of it where something was changed."""
    made: list[_Made] = []
    for method in dict.fromkeys(name for _, name in places):
        titles = [title for title, name in places if name == method]
        datasets = {bench.settings[title].dataset for title in titles}
        rows = []
        for title in titles:
            trial = measured.trials.get((title, method))
            name = title if bench.settings[title].kind == "ablation" else "default"
            known = measured.cases.get(title, {})
            rows.append(Row(name, {} if trial is None else row_cells(trial, known, bench.seed)))
        of = datasets if folder_name(method) == "meddelinea" else set()
        made.append((Section(method, tuple(rows)), partial(_is_of, of)))
    return made


def _is_of(datasets: set[str], part: Published) -> bool:
    return datasets == {part.dataset}


def _by_cost(speeds: Speeds | None, methods: tuple[str, ...]) -> list[_Made]:
    rows = []
    for name in methods:
        speed = None if speeds is None else speeds.models.get(name)
        cells: Cells = {}
        if speed is not None:
            cells = costs(speed)
        rows.append(Row(name, cells))
    return [(Section("inference", tuple(rows)), lambda part: True)]


def _beside(number: int, sections: list[_Made]) -> Iterator[Section]:
    """The sections with the paper's figures under the measured ones, and those of the paper that have no other."""
    left = list(published(number))
    for section, published_as in sections:
        section = ranked(section)
        part = next((part for part in left if published_as(part)), None)
        if part is None:
            yield section
            continue
        left.remove(part)
        theirs = {folder_name(name): Row(name, part.cells(name), paper=True) for name in part.rows}
        rows: list[Row] = []
        for row in section.rows:
            rows += [row, *([theirs.pop(key)] if (key := folder_name(row.name)) in theirs else [])]
        yield replace(section, rows=(*rows, *theirs.values()))
    for part in left:
        yield Section(part.title, tuple(Row(name, part.cells(name), paper=True) for name in part.rows))


def _notes(number: int, speeds: Speeds | None, *, beside_paper: bool) -> tuple[str, ...]:
    notes = []
    if TABLES[number].columns is SCORES:
        notes = [
            "Means over those of the paper's eight organs that a dataset labels. mHD95: the larger of both directions' "
            "95th percentiles; pooled: that of both directions' distances together. An organ that was missed or "
            "invented has Dice 0 and infinite distances, which are counted and left out of the means.",
            "#: place by mDSC among the measured rows. from, to: its 95 % interval by the bootstrap over patients, too "
            "narrow where these are few.",
        ]
    if number == 4:
        timed = "not timed yet" if speeds is None else f"timed on {speeds.machine}; volume: {speeds.volume}"
        notes = [
            f"{timed}. Wall seconds after a warm-up, each method by its own steps; of 16: for each image of a batch. "
            "Parameters without autoencoders.",
        ]
    if beside_paper:
        notes.append("Rows of the paper are its own figures, on its own data and machine, and in no mean or rank.")
    return tuple(notes)


def _shared_scans(bench: PaperBench, places: tuple[Place, ...]) -> list[str]:
    """Warnings where models are tested on a dataset that shares scans with one that they were trained on."""
    warnings: list[str] = []
    for title in dict.fromkeys(title for title, _ in places):
        trained: set[str] = set()
        earlier: str | None = title
        while earlier is not None:
            setting = bench.settings[earlier]
            trained |= {bench.datasets[setting.dataset].format} if setting.trains else set()
            earlier = setting.after
        warnings += mixing_warnings(trained, {bench.datasets[bench.settings[title].dataset].format})
    return list(dict.fromkeys(warnings))
