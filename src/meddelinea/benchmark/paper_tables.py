"""The paper's tables, of what a benchmark has measured: what each shows, and what it lacks.

Dice in per cent as in the paper, distances in millimetres. A cell is None where nothing was measured, and NaN where
what was measured has no value, as the mean of distances that are all infinite. The paper's own figures are rows of
their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from meddelinea.benchmark.accuracy import Accuracy, Trial
from meddelinea.benchmark.accuracy_table import accuracy_rows
from meddelinea.benchmark.bench_file import folder_name
from meddelinea.benchmark.paper_file import Kind, PaperBench
from meddelinea.benchmark.paper_run import Measured, Place, TestCase, default_of, places_of
from meddelinea.benchmark.published import Published, published
from meddelinea.benchmark.speed import Speeds
from meddelinea.data.mixing import mixing_warnings
from meddelinea.evaluation.summary import summarise
from meddelinea.labels import PAPER_ORGANS
from meddelinea.scan import Modality

Cells = Mapping[str, float | None]


@dataclass(frozen=True)
class Column:
    """A column: its key in JSON and CSV, its heading, and the decimals of its values."""

    key: str
    heading: str
    digits: int


SCORES = (
    Column("rank", "#", 0),
    Column("dice", "mDSC %", 2),
    Column("low", "from", 1),
    Column("high", "to", 1),
    Column("hd95", "mHD95 mm", 2),
    Column("hd95_pooled", "pooled mm", 2),
    Column("assd", "mASSD mm", 2),
    Column("infinite", "infinite", 0),
    Column("cases", "cases", 0),
)
ORGANS = tuple(Column(organ, organ, 2) for organ in PAPER_ORGANS)
COSTS = (
    Column("parameters", "parameters M", 2),
    Column("trained", "trained M", 2),
    Column("steps", "steps", 0),
    Column("seconds", "s / image", 4),
    Column("batch_seconds", "of 16", 4),
    Column("volume_seconds", "s / volume", 2),
)


@dataclass(frozen=True)
class Row:
    """A method, or a setting of Table 5; `paper` marks the paper's own figures."""

    name: str
    cells: Cells
    paper: bool = False


@dataclass(frozen=True)
class Section:
    """Rows that are compared with each other."""

    title: str
    rows: tuple[Row, ...]


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
        sections=tuple(_beside(number, sections) if beside_paper else (_ranked(section) for section, _ in sections)),
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


def scores(trial: Trial, patients: Mapping[str, str], seed: int) -> Cells:
    """Means over the paper's organs of those that are labelled, and how many distances they leave out.

    Parameters
    ----------
    patients
        Whom a case shows: the interval of the mean Dice is over them, drawn by the seed.
    """
    summary = summarise(trial.report)
    means = summary.mean_over_paper_organs
    cases = [case.case for case in trial.report.cases]
    accuracy = Accuracy(
        organs=tuple(organ.organ for organ in summary.organs),
        patients={case: patients.get(case, case) for case in cases},
        parts=(),
        cpu_minutes=None,
        seed=seed,
        trials=(trial,),
    )
    (row,) = accuracy_rows(accuracy)
    return {
        "dice": 100.0 * means.dice,
        "low": 100.0 * row.paper_organs.dice.low,
        "high": 100.0 * row.paper_organs.dice.high,
        "hd95": means.hd95_mm,
        "hd95_pooled": means.hd95_pooled_mm,
        "assd": means.assd_mm,
        "infinite": means.infinite_distances,
        "cases": summary.cases_measured,
    }


def dice_by_organ(trial: Trial) -> Cells:
    """Dice of each of the paper's organs that is labelled in any case."""
    organs = summarise(trial.report).organs
    return {organ.organ: 100.0 * organ.dice for organ in organs if organ.organ in PAPER_ORGANS}


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
        rows.append(Row(name, {} if trial is None else _cells(trial, known, bench.seed, columns)))

    def published_as(part: Published) -> bool:
        return (part.kind, part.dataset, part.share, part.modality) == (
            *(setting.kind, setting.dataset, setting.share),
            modality,
        )

    words = title if modality is None else f"{modality}: {title}"
    return Section(words, tuple(rows)), published_as


def _cells(trial: Trial, known: Mapping[str, TestCase], seed: int, columns: tuple[Column, ...] = SCORES) -> Cells:
    if columns is ORGANS:
        return dice_by_organ(trial)
    return scores(trial, {name: case.patient for name, case in known.items()}, seed)


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
            rows.append(Row(name, {} if trial is None else _cells(trial, known, bench.seed)))
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
            cells = {
                "parameters": speed.parameters / 1e6,
                "trained": None if speed.trained is None else speed.trained / 1e6,
                "steps": speed.steps,
                "seconds": speed.image_seconds,
                "batch_seconds": speed.batch_seconds,
                "volume_seconds": speed.volume_seconds,
            }
        rows.append(Row(name, cells))
    return [(Section("inference", tuple(rows)), lambda part: True)]


def _beside(number: int, sections: list[_Made]) -> Iterator[Section]:
    """The sections with the paper's figures under the measured ones, and those of the paper that have no other."""
    left = list(published(number))
    for section, published_as in sections:
        section = _ranked(section)
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


def _ranked(section: Section) -> Section:
    """The section with the place of each measured row by its Dice."""
    known = [dice for row in section.rows if not row.paper and (dice := row.cells.get("dice")) is not None]
    best = sorted((dice for dice in known if not math.isnan(dice)), reverse=True)

    def ranked(row: Row) -> Row:
        dice = row.cells.get("dice")
        return replace(row, cells={"rank": best.index(dice) + 1, **row.cells}) if dice in best else row

    return replace(section, rows=tuple(ranked(row) for row in section.rows))


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
