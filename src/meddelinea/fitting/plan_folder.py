"""A plan on disk: a folder of run files and of a benchmark's file, which can be edited and run again.

plan.json       what no run file says: cases, folds, preprocessing, and the reasons
README.md       the decisions for people, and how to overrule them
data.yaml       store and cases, which all run files extend
codec.yaml, base.yaml, coarse.yaml, fine.yaml, coarse-from-small.yaml
folds.yaml      the cross-validation, as `meddelinea benchmark accuracy` takes it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError

from meddelinea.benchmark.markdown import table
from meddelinea.data.preprocess import Preprocessing
from meddelinea.errors import InputRefusedError, first_fault
from meddelinea.files import whole_folder, write_json, write_text
from meddelinea.fitting.plan import Means, Plan
from meddelinea.fitting.survey import Survey
from meddelinea.json_files import read_json
from meddelinea.training.config import Strict

FILE = "plan.json"
BENCH = "folds.yaml"

README = """# Plan for {source}

Made by `meddelinea fit` from the scans of this folder; the same scans and time give the same plan.

{decisions}

To overrule a decision, edit its file and run the same `meddelinea fit` again: it takes the plan as it stands.

| to change | edit |
| --- | --- |
| pixels, slice thickness, window, what is in the middle | `preprocessing` in `plan.json`, and remove `../store` |
| cases, folds, trainings side by side | `plan.json`, and the same cases in `folds.yaml` |
| neighbours, sampling, augmentation, sizes, learning rate | the run files, as of `meddelinea train` |
| time of a training | `minutes` or `cpu_minutes` in `folds.yaml`; its stages share it as their `cpu_minutes` stand |
| where to start from | `starts` in `plan.json`: leave one |

Remove this folder to have another plan made. A stage by itself: `meddelinea train {folder}/codec.yaml`, once
`meddelinea fit` has made the store.
"""


class PlanFile(Strict):
    """What `plan.json` says."""

    layout: str
    source: Path
    organs: tuple[str, ...]
    cases: Annotated[tuple[str, ...], Field(min_length=1)]  # in the order that folds are taken of
    left_out: dict[str, str]  # faulty cases, with their fault
    folds: Annotated[int, Field(ge=0, le=1000)]  # 0 for no cross-validation
    trainings: Annotated[int, Field(ge=1, le=10_000)]  # side by side
    trial_minutes: Annotated[float, Field(ge=0.0)]  # 0 for no trial
    preprocessing: dict[str, Any]
    #: Run files of the stages in their order, by where they start from. Where there are several, a trial decides.
    starts: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    asked: dict[str, Any]  # what the plan was made for
    decisions: list[dict[str, str]]

    @classmethod
    def read(cls, folder: Path) -> PlanFile:
        """What a plan's folder says.

        Raises
        ------
        InputRefusedError
            If the file cannot be read, or has a setting that is unknown or out of range.
        """
        path = folder / FILE
        try:
            found = cls.model_validate(read_json(path))
            found.grid  # noqa: B018 (refused now, where it is out of range)
        except ValidationError as error:
            raise InputRefusedError(f"{path}: {first_fault(error)}; correct it, or remove the plan") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputRefusedError(f"{path}: not readable ({error}); remove the plan's folder") from error
        return found

    @property
    def grid(self) -> Preprocessing:
        """How scans become slices."""
        return Preprocessing.from_json(self.preprocessing)


def write_plan(
    plan: Plan, survey: Survey, work: Path, *, means: Means, asked: Mapping[str, Any], left_out: Mapping[str, str]
) -> Path:
    """Write a plan's folder, `work/plan`, and return it; its paths are those of `work`."""
    target, work = work / "plan", work.absolute()
    with whole_folder(target) as folder:
        write_json(
            {
                "layout": survey.layout,
                "source": str(survey.source.absolute()),
                "organs": plan.organs,
                "cases": plan.cases,
                "left_out": dict(left_out),
                "folds": plan.folds,
                "trainings": plan.trainings,
                "trial_minutes": plan.trial_minutes,
                "preprocessing": asdict(plan.preprocessing),
                "starts": {start: list(stages) for start, stages in plan.starts.items()},
                "asked": dict(asked),
                "decisions": [asdict(decision) for decision in plan.decisions],
            },
            folder / FILE,
        )
        rows = ([d.what, d.value, d.reason] for d in plan.decisions)
        decisions = "\n".join(table(["what", "plan", "why"], rows))
        text = README.format(source=survey.source.name, decisions=decisions, folder=target)
        write_text(text, folder / "README.md")
        _write_yaml({"data": {"store": str(work / "store"), "train": list(plan.cases)}}, folder / "data.yaml")
        alone = work / "alone"
        for name, content in plan.stages.items():
            _write_yaml(_run_file(name, content, alone, coarse="coarse" in plan.stages), folder / f"{name}.yaml")
        clock = "minutes" if means.clock == "wall" else "cpu_minutes"
        bench = {
            "format": survey.layout,
            "source": str(survey.source.absolute()),
            "store": str(work / "store"),
            "train": list(plan.cases),
            **{"cpu_minutes": None, clock: round(plan.minutes, 4)},
            "methods": {start: [f"{stage}.yaml" for stage in stages] for start, stages in plan.starts.items()},
        }
        _write_yaml(bench, folder / BENCH)
    return target


def _run_file(name: str, content: Mapping[str, Any], alone: Path, *, coarse: bool) -> dict[str, Any]:
    """A stage that can also be run by itself, on the results of those before it."""
    before: dict[str, dict[str, str]] = {
        "base": {"codec": "codec/codec"},
        "coarse": {"codec": "codec/codec", "dit": "base/dit"},
        "fine": {"pipeline": "coarse/pipeline"} if coarse else {"codec": "codec/codec", "dit": "base/dit"},
    }
    parts = {part: str(alone / place) for part, place in before.get(name, {}).items()}
    minutes = {"cpu_minutes": round(content["cpu_minutes"], 4)} if "cpu_minutes" in content else {}
    return {
        "extends": "data.yaml",
        **content,
        **minutes,
        "output": str(alone / name),
        "model": {**content["model"], **parts},
    }


def _write_yaml(content: Mapping[str, Any], path: Path) -> None:
    write_text(yaml.safe_dump(dict(content), sort_keys=False, width=110, default_flow_style=None), path)
