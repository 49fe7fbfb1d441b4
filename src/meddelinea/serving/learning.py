"""From corrected scans to a model that may be better, in a worker's process: `adapt` with its guard."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.serving.job import JobOutcome, ResultFile, Trouble
from meddelinea.serving.models import learnt_models
from meddelinea.serving.reading import answer_to

if TYPE_CHECKING:
    from meddelinea.serving.tasks import Progress

#: Layout of the corrected scans.
LAYOUT = "nnunet"


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What came of learning.

    Parameters
    ----------
    model
        Name of the new model; None where the one before is kept, because it is not worse on patients that the new one
        has not seen.
    before
        Name of the model that learnt.
    check
        What the two were compared on.
    train, held_out
        Cases of the training and of the comparison.
    steps
        Training steps of the new model.
    dice_before, dice
        Dice of each organ and their mean, `mean`, on the held-out cases; empty where there were none.
    """

    model: str | None
    before: str
    check: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    steps: int
    dice_before: dict[str, float]
    dice: dict[str, float]


def learn(
    folder: Path, model: str, dataset: Path, *, steps: int, models: Path, progress: Progress
) -> JobOutcome | Trouble:
    """Adapt a model to corrected scans, and offer the new one beside it if it is better, or if nothing can be compared.

    Parameters
    ----------
    folder
        The job's folder.
    model
        What the model is loaded by.
    dataset
        The corrected scans.
    steps
        Maximum number of training steps.
    models
        Folder of the models that have learnt; the new one is added to them.
    progress
        Called with the steps of a part, how many it has, and what it is.

    Returns
    -------
    JobOutcome or Trouble
        `done` whether or not there is a new model, `refused` with the reason why nothing can be learnt, or what the
        server lacks.
    """
    # In the job's folder, whose files do not outlive a server that is killed.
    with tempfile.TemporaryDirectory(dir=folder) as work:
        try:
            return _learn(folder, Path(work), model, dataset, steps=steps, models=models, progress=progress)
        except (MedDelineaError, OSError) as error:
            answer = answer_to(error, Path(work) / "model")
    if isinstance(answer, Trouble):
        return answer
    places = "|".join(re.escape(f"{place.parent}{os.sep}") for place in (dataset, Path(model)))
    return replace(answer, message=re.sub(places, "", answer.message))  # the server's own paths


def _learn(
    folder: Path, work: Path, model: str, dataset: Path, *, steps: int, models: Path, progress: Progress
) -> JobOutcome:
    from meddelinea.data.datasets import find_cases, organs_of
    from meddelinea.data.prepare import prepare_store
    from meddelinea.segmentation.model import read_model_files
    from meddelinea.training.adapt import FILE, Adaptation, AdaptSettings, adapt

    # The scans as slices, on the model's grid.
    base = read_model_files(model)
    progress(0, 0, "reading")
    found = find_cases(LAYOUT, dataset).cases
    names = tuple(case.name for case in found)
    prepared = prepare_store(
        LAYOUT, dataset, work / "store", only=names, organs=organs_of(found), preprocessing=base.preprocessing
    )
    if prepared.failed:
        name, reason = next(iter(prepared.failed.items()))
        raise InputRefusedError(f"the corrected scan {name} cannot be read: {reason}")

    # Training, which stops where it no longer serves the patients that are held out.
    settings = AdaptSettings(steps=steps)
    for part, so_far in adapt(base.folder, work / "store", cases=names, output=work / "model", settings=settings):
        dice = f", Dice {so_far.figures['dice']:.3f}" if "dice" in so_far.figures else ""
        progress(so_far.step, so_far.steps, f"{part}{dice}")

    # What came of it: a model of its own, unless the one before is as good.
    result = Adaptation.read(work / "model")
    shutil.copy(work / "model" / FILE, folder / FILE)
    offered: str | None = None
    if result.kept == "adapted":
        models.mkdir(mode=0o700, parents=True, exist_ok=True)
        number = max((number for number, _ in learnt_models(models)), default=0) + 1
        offered = f"adapted-{number}"
        (work / "model").rename(models / offered)
    learnt = Learnt(
        model=offered,
        before=base.name,
        check=result.check,
        train=result.train,
        held_out=result.held_out,
        steps=result.steps,
        dice_before=_by_organ(result.base),
        dice=_by_organ(result.adapted),
    )
    return JobOutcome(
        state="done",
        warnings=tuple(f"{case}: the model refuses to segment it: {why}" for case, why in result.refused.items()),
        files=(ResultFile("adaptation", FILE, "What was learnt (JSON)"),),
        learnt=asdict(learnt),
    )


def _by_organ(figures: Mapping[str, float]) -> dict[str, float]:
    """Dice by organ, and their mean, of the figures of a run."""
    named = {name.removeprefix("dice/"): value for name, value in figures.items() if name.startswith("dice/")}
    return {**named, "mean": figures["dice"]} if "dice" in figures else named
