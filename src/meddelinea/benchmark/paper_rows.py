"""The rows of the paper's tables: their columns, and what a trial comes to in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from meddelinea.benchmark.accuracy import Accuracy, Trial
from meddelinea.benchmark.accuracy_table import accuracy_rows
from meddelinea.benchmark.paper_run import TestCase
from meddelinea.benchmark.speed import Speed
from meddelinea.evaluation.summary import summarise
from meddelinea.labels import PAPER_ORGANS

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


def row_cells(trial: Trial, known: Mapping[str, TestCase], seed: int, columns: tuple[Column, ...] = SCORES) -> Cells:
    """The cells of a trial for some columns, its test cases being known."""
    if columns is ORGANS:
        return dice_by_organ(trial)
    return scores(trial, {name: case.patient for name, case in known.items()}, seed)


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


def costs(speed: Speed) -> Cells:
    """Parameters in millions, and seconds."""
    return {
        "parameters": speed.parameters / 1e6,
        "trained": None if speed.trained is None else speed.trained / 1e6,
        "steps": speed.steps,
        "seconds": speed.image_seconds,
        "batch_seconds": speed.batch_seconds,
        "volume_seconds": speed.volume_seconds,
    }


def ranked(section: Section) -> Section:
    """The section with the place of each measured row by its Dice."""
    known = [dice for row in section.rows if not row.paper and (dice := row.cells.get("dice")) is not None]
    best = sorted((dice for dice in known if not math.isnan(dice)), reverse=True)

    def placed(row: Row) -> Row:
        dice = row.cells.get("dice")
        return replace(row, cells={"rank": best.index(dice) + 1, **row.cells}) if dice in best else row

    return replace(section, rows=tuple(placed(row) for row in section.rows))
