"""What comes of a plan: the model's folder, with what was measured, its calibration, its card and its worst cases."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from meddelinea.benchmark.accuracy import Accuracy, Part, bench_cases, measure_accuracy
from meddelinea.benchmark.accuracy_table import MethodRow, accuracy_document, accuracy_rows
from meddelinea.benchmark.bench_file import folder_name, read_bench_file
from meddelinea.benchmark.bootstrap import Estimate
from meddelinea.benchmark.calibration_fit import fit, gather_rows
from meddelinea.benchmark.figure_cases import FigureCase
from meddelinea.benchmark.figures.page import write_figure
from meddelinea.benchmark.figures.panels import panels_figure
from meddelinea.benchmark.held_out import ShowProgress
from meddelinea.benchmark.markdown import table
from meddelinea.benchmark.reliability import gather_reliability
from meddelinea.data.case import Case, read_case
from meddelinea.evaluation.metrics import NSD_TOLERANCE_MM
from meddelinea.evaluation.summary import plain
from meddelinea.files import whole_folder, write_json, write_text
from meddelinea.fitting.plan_folder import BENCH, PlanFile
from meddelinea.fitting.trainings import model_of_all
from meddelinea.io.volumes import read_volume
from meddelinea.labels import organ_ids
from meddelinea.segmentation.calibration import Calibration
from meddelinea.segmentation.model import CALIBRATION_FILE, Model, load_model
from meddelinea.volume import Volume

#: In the folder of a model.
FILE = "fit.json"
#: Held-out cases that a calibration is fitted on at most, over all folds.
CALIBRATION_CASES = 60
#: Cases that are drawn, those with the lowest mean Dice.
WORST = 5

CARD = """---
license: other
---

# {name}

Segments {organs} in {modality}. Trained by `meddelinea fit` on {count} scans of `{source}`, {start}. The licence of the
scans binds this model too. **Research software, not a medical device.**

{accuracy}

What was decided and why is in `plan/README.md`, all figures are in `fit.json`, and the scans that it was trained on are
known by their fingerprints in `training_cases.json` (`meddelinea leak-check`).
"""
MEASURED = """## Accuracy

Cross-validation in {folds} folds by patient: each of {cases} cases was segmented by a model that had not seen it. The
model in this folder was trained on all of them, for as long. Brackets hold 95 % intervals over patients.

{rows}

{failures}The cases with the lowest Dice: {worst}, drawn in `worst/`.
"""
UNMEASURED = "It was tested on nothing: there is one patient."


@dataclass(frozen=True)
class Fitted:
    """What came of a plan."""

    model: Path
    row: MethodRow | None  # cross-validated; None where there was nothing to test on
    failures: Mapping[str, str]  # test cases that could not be measured, with the reason
    lines: tuple[str, ...]  # the table, in Markdown


@dataclass(frozen=True)
class _Folds:
    """The cross-validation, all of it done."""

    runs: Path  # folder of the parts
    start: str
    accuracy: Accuracy
    cases: Mapping[str, Case]

    def folder(self, part: Part) -> Path:
        """Where a part's runs and masks are."""
        return self.runs / part.name / folder_name(self.start)

    @property
    def failures(self) -> dict[str, str]:
        """Test cases that could not be measured, with the reason."""
        reports = [trial.report for trial in self.accuracy.trials]
        return {failure.case: failure.reason for report in reports for failure in report.failures}

    @property
    def dice(self) -> dict[str, float]:
        """Mean of each case over the organs that it or its mask has, the lowest first."""
        found = {}
        for case in (case for trial in self.accuracy.trials for case in trial.report.cases):
            values = [score.dice for score in case.scores if not np.isnan(score.dice)]
            if values:
                found[case.case] = float(np.mean(values))
        return dict(sorted(found.items(), key=lambda item: (item[1], item[0])))


def write_outcome(
    plan: PlanFile, work: Path, output: Path, *, start: str, trial: Mapping[str, float], progress: ShowProgress
) -> Fitted:
    """Measure, calibrate and describe the model of finished trainings, and write its folder.

    Parameters
    ----------
    work
        Folder of the plan and the trainings.
    output
        The new folder.
    start, trial
        Where the trainings started from, and what the trial said of that.
    progress
        Called with what is done, how much of it, and how much there is.
    """
    bench = read_bench_file(work / "plan" / BENCH)
    cases, folds, calibration = bench_cases(bench), None, None
    if plan.folds > 1:
        only = bench.model_copy(update={"methods": {start: bench.methods[start]}})
        folds = _Folds(work / "runs", start, measure_accuracy(only, work / "runs", plan.folds, (start,)), cases)
        calibration = _calibrated(folds, progress)
    row = None if folds is None else accuracy_rows(folds.accuracy)[0]
    lines = () if row is None else _lines(row)
    worst = () if folds is None else tuple(folds.dice)[:WORST]

    with whole_folder(output) as folder:
        shutil.copytree(model_of_all(work, bench, start), folder, dirs_exist_ok=True)
        shutil.copytree(work / "plan", folder / "plan")
        if folds is not None and calibration is not None:
            write_json(calibration.to_json(), folder / CALIBRATION_FILE)
            for place, name in enumerate(worst, start=1):
                progress("drawing the worst cases", place, len(worst))
                _draw(folds, name, folder / "worst" / name)
        accuracy = UNMEASURED
        if row is not None and folds is not None:
            failed = f"{len(folds.failures)} cases could not be measured. " if folds.failures else ""
            accuracy = MEASURED.format(
                folds=plan.folds, cases=row.cases, rows="\n".join(lines), failures=failed, worst=", ".join(worst)
            )
        card = CARD.format(
            name=output.name,
            organs=", ".join(plan.organs),
            modality=" and ".join(sorted({case.modality for case in cases.values()})),
            count=len(cases),
            source=plan.source.name,
            start="from scratch" if start == "scratch" else "from a trained model (`plan/plan.json`)",
            accuracy=accuracy,
        )
        write_text(card, folder / "README.md")
        document = {
            "start": start,
            "trial": dict(trial),
            "left_out": plan.left_out,
            "worst": list(worst),
            "accuracy": None if folds is None or row is None else accuracy_document(folds.accuracy, (row,)),
        }
        write_json(plain(document), folder / FILE)
    return Fitted(output, row, {} if folds is None else folds.failures, lines)


def _calibrated(folds: _Folds, progress: ShowProgress) -> Calibration:
    """Fitted on cases of each fold by the model that had not seen them."""
    organs, most = folds.accuracy.organs, max(1, CALIBRATION_CASES // len(folds.accuracy.parts))
    models: list[tuple[Model, tuple[Case, ...]]] = []
    for part in folds.accuracy.parts:
        model = sorted(folds.folder(part).glob("*/pipeline"))[-1]
        tested = part.test[:: -(-len(part.test) // most)]
        models.append((load_model(model), tuple(folds.cases[name] for name in tested)))
    count = sum(len(tested) for _, tested in models)
    fitted_on = f"{count} cases, each segmented by a model of the cross-validation that had not seen it"
    reliability = gather_reliability(models, organs, progress=progress)
    return fit(reliability, partial(gather_rows, models, organs, progress=progress), fitted_on)[0]


def _draw(folds: _Folds, name: str, stem: Path) -> None:
    """A case's slice beside its mask and its labels."""
    organs = folds.accuracy.organs
    part = next(part for part in folds.accuracy.parts if name in part.test)
    labelled, ids = read_case(folds.cases[name], organs), read_volume(folds.folder(part) / "masks" / f"{name}.nii.gz")
    mask = Volume(ids.array.astype(np.uint8), labelled.mask.affine)  # the models' ids are those of the organs
    drawn = FigureCase(f"Dice {folds.dice[name]:.2f}", labelled, {"model": mask})
    write_figure(panels_figure([drawn.panel(None, None)], organ_ids(organs)), stem, ("png",))


def _lines(row: MethodRow) -> tuple[str, ...]:
    """Dice, HD95, NSD and how often it was missed or invented, by organ."""

    def cell(value: Estimate, digits: int) -> str:
        return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"

    groups = {**row.organs, **({"mean": row.all_organs} if len(row.organs) > 1 else {})}
    cells = (
        [name, cell(of.dice, 3), cell(of.hd95_mm, 1), cell(of.nsd, 3), str(of.infinite_distances)]
        for name, of in groups.items()
    )
    return tuple(table(["organ", "Dice", "HD95 mm", f"NSD {NSD_TOLERANCE_MM:g} mm", "in one mask only"], cells))
