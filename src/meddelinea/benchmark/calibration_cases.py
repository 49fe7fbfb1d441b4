"""The benchmark of a calibration: fitted by the models of a cross-validation, measured with another on other cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from meddelinea.benchmark.accuracy import RESULT, bench_cases, refuse_leak
from meddelinea.benchmark.bench_file import BenchFile, folder_name
from meddelinea.benchmark.calibration_fit import (
    BAD_DICE,
    CAUGHT,
    COVERAGES,
    LEVEL,
    UNCALIBRATED,
    Figures,
    StatedOrgan,
    figures,
    fit,
    gather_rows,
)
from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.benchmark.markdown import table
from meddelinea.benchmark.reliability import BINS, SURELY_BACKGROUND, gather_reliability
from meddelinea.data.case import Case
from meddelinea.data.store import read_manifest
from meddelinea.errors import UsageError
from meddelinea.evaluation.summary import plain
from meddelinea.json_files import read_json
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.model import CALIBRATION_FILE, Model, load_model, model_folder


@dataclass(frozen=True)
class Side:
    """Cases under one calibration: the error of the stated probabilities, figures, and what they are of."""

    expected_error: float
    figures: Figures
    rows: tuple[StatedOrgan, ...]


@dataclass(frozen=True)
class CalibrationBench:
    """A calibration, and how it does without and with it: where fitted here, on those cases, and on the test's."""

    calibration: Calibration
    model: str
    fitted: tuple[Side, Side] | None
    tested: tuple[Side, Side]


def measure_calibration(
    bench: BenchFile, folds: Path | None, method: str, model: str, progress: ShowProgress = unwatched
) -> CalibrationBench:
    """Fit a calibration on the cases that each fold's model was tested on, and measure it on the test cases.

    Parameters
    ----------
    folds
        What `measure_accuracy` made with folds, or on test cases other than the benchmark's; all of the method must be
        done. None: nothing is fitted, and the model's own calibration is measured.
    method
        One of the benchmark.
    model
        The model that is to be calibrated: a name or a folder, trained by the same method.

    Raises
    ------
    UsageError
        If a fold is not done or was tested on the benchmark's test cases, there are none of these, or a calibration of
        the model's own is wanted and there is none.
    LeakFoundError
        If a model was trained on cases that it would be tested on.
    """
    cases = bench_cases(bench)
    organs = read_manifest(bench.store).organs
    if not bench.test:
        raise UsageError("no test case to measure the calibration on; name some in the benchmark's test")
    held_out = () if folds is None else _folds(folds, method, cases, bench.test)
    chosen = tuple(cases[name] for name in bench.test)
    for folder, tested in (*held_out, (model_folder(model), chosen)):
        refuse_leak(folder, tested, bench.store)
    shipped = [(load_model(model), chosen)]
    if folds is None:
        own = shipped[0][0].files.calibration
        if own is None:
            raise UsageError(f"{model}: no {CALIBRATION_FILE} in its folder; fit one on folds", parameter="folds")
        calibration, fitted = own, None
    else:
        calibration, fitted = _fit([(load_model(folder), tested) for folder, tested in held_out], bench, progress)
    before, after = gather_reliability(shipped, organs, (1.0, calibration.temperature), progress).expected_error()
    tested = (
        _side(before, _uncalibrated(shipped, organs, progress)),
        _side(after, gather_rows(shipped, organs, calibration, progress)),
    )
    return CalibrationBench(calibration, model, fitted, tested)


def _fit(
    models: list[tuple[Model, tuple[Case, ...]]], bench: BenchFile, progress: ShowProgress
) -> tuple[Calibration, tuple[Side, Side]]:
    """A calibration fitted on masks of cases that the models had not seen, and what these are without and with it."""
    organs = read_manifest(bench.store).organs
    reliability = gather_reliability(models, organs, progress=progress)
    count = sum(len(tested) for _, tested in models)
    fitted_on = f"{count} cases of {bench.format}, each segmented by a model that had not seen it"
    calibration, after = fit(reliability, partial(gather_rows, models, organs, progress=progress), fitted_on)
    before = _uncalibrated(models, organs, progress)
    errors = dict(zip(reliability.temperatures, reliability.expected_error(), strict=True))
    return calibration, (_side(errors[1.0], before), _side(errors[calibration.temperature], after))


def _folds(
    folds: Path, method: str, cases: dict[str, Case], kept: tuple[str, ...]
) -> list[tuple[Path, tuple[Case, ...]]]:
    """The model of each fold and the cases that it had not seen; none of them may be `kept` for the measurement."""
    parts = read_json(folds / "bench.json")["parts"] if (folds / "bench.json").is_file() else []
    found = []
    for part in parts:
        trial = folds / part["name"] / folder_name(method)
        models = sorted(trial.glob("*/pipeline"))
        if not (trial / RESULT).is_file() or not models:
            raise UsageError(f"{trial}: not done; measure the accuracy in folds first", parameter="folds")
        if both := sorted(set(part["test"]) & set(kept)):
            raise UsageError(
                f"{trial}: tested on {', '.join(both)}, which the benchmark keeps to measure the calibration on; "
                "measure the accuracy in folds first",
                parameter="folds",
            )
        found.append((models[-1], tuple(cases[name] for name in part["test"])))
    if not found:
        raise UsageError(f"{folds}: no benchmark; measure the accuracy in folds first", parameter="folds")
    return found


def _uncalibrated(
    models: list[tuple[Model, tuple[Case, ...]]], organs: tuple[str, ...], progress: ShowProgress
) -> tuple[StatedOrgan, ...]:
    """What the models say of each organ without a calibration: its volume lies between the sure and the possible."""
    return tuple(
        replace(row, interval_ml=(row.confidence.surely_ml, row.confidence.possibly_ml) if row.volume_ml > 0 else None)
        for row in gather_rows(models, organs, UNCALIBRATED, progress)
    )


def _side(expected_error: float, rows: tuple[StatedOrgan, ...]) -> Side:
    return Side(float(expected_error), figures(rows), rows)


def calibration_lines(bench: CalibrationBench) -> list[str]:
    """The tables in Markdown."""
    c = bench.calibration
    named = {"fitted on": bench.fitted, "test": bench.tested}
    sides = {
        f"{name}, {when}": side
        for name, pair in named.items()
        for when, side in zip(("before", "after"), pair or (), strict=False)
    }

    def share(part: int, whole: int) -> str:
        return f"{part} of {whole}" + (f" ({part / whole:.2f})" if whole else "")

    each = [side.figures for side in sides.values()]
    reviewed = each[1::2]  # before there is nothing to judge masks by

    def judged(counts: list[str]) -> list[str]:
        return [cell for count in counts for cell in ("", count)]

    measured = {
        "organs in mask or labels": [str(f.organs) for f in each],
        "expected calibration error": [f"{side.expected_error:.4f}" for side in sides.values()],
        "mean distance of expected and true Dice": [f"{f.dice_error:.3f}" for f in each],
        f"intervals that hold the true volume (meant: {c.level:.0%})": [share(f.covered, f.intervals) for f in each],
        "median upper end over the mask's volume": [f"+{f.half_width:.0%}" for f in each],
        f"Dice below {BAD_DICE}: said to need a review": judged([share(f.caught, f.bad) for f in reviewed]),
        "other organs: said to need one": judged([share(f.false_alarms, f.good) for f in reviewed]),
        "in neither: said to need one": judged([share(f.absent_flagged, f.absent) for f in reviewed]),
    }
    risks = {name: [f"{side.figures.risk[kept]:.3f}" for kept in COVERAGES] for name, side in sides.items()}
    surest = ["mean of 1 - Dice over the surest", *(f"{kept:.0%}" for kept in COVERAGES)]
    return [
        f"Fitted on {c.fitted_on}; tested: {bench.model}. Temperature {c.temperature:g}; intervals of spread "
        f"{c.spread:.2f} and floor {c.floor:g}; a review below an expected Dice of {c.review_below:.3f}.",
        "",
        *table(["", *sides], ([name, *cells] for name, cells in measured.items())),
        "",
        *table(surest, ([name, *cells] for name, cells in risks.items())),
    ]


def calibration_document(bench: CalibrationBench) -> dict[str, Any]:
    """Everything as plain JSON types; what has no value is null."""
    settings = {
        "bins": BINS,
        "surely_background": SURELY_BACKGROUND,
        "level": LEVEL,
        "bad_dice": BAD_DICE,
        "caught": CAUGHT,
    }
    return plain({"settings": settings, **vars(bench)})
