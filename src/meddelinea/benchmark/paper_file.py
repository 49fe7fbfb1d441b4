"""PAPER.yaml: the datasets, methods and settings behind the paper's tables and figures, checked before any work.

A setting is one way to come to models and to test them, such as fine-tuning on BTCV; its `kind` says to which tables it
belongs. What `benchmark.paper_run` makes of the file lies in the output folder OUT, whose folders are named after
settings and methods as `bench_file.folder_name` does (`BTCV, 10 %` -> `btcv-10`):

    OUT/SETTING/setting.json               the setting as the file has it, and its cases: patient, modality and role
    OUT/SETTING/METHOD/1-STAGE/ ...        the run of each stage: `run.json`, `metrics.jsonl`, and what it trained, of
                                           the last one `pipeline/`; absent where a setting tests earlier models
    OUT/SETTING/METHOD/masks/CASE.nii.gz   predicted mask of each test case on the scan's grid, ids in `labels.json`
    OUT/SETTING/METHOD/result.json         an `accuracy.Trial`: scores, seconds, parameters and cost; written last
    OUT/speed.json                         parameters and seconds of all methods, from one run (Table 4)
    OUT/tables/table-N.md, .csv, .json     the tables
    OUT/figures/figure-N.png, .svg         the figures

`paper_run.model_of` is the folder of a method's model in a setting, `last_run` the run that it is from, `trial_folder`
that of masks and result, `trial_of` the result, and `open_setting` has its test cases.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from meddelinea.benchmark.bench_file import Contestant, beside, folder_name, read_checked
from meddelinea.diffusion.sampling import SchedulerName
from meddelinea.scan import Modality
from meddelinea.training.config import Minutes, Seed, SplitConfig, Steps, Strict

#: A setting for `curves` is trained for figures alone.
Kind = Literal["pretrained", "fine-tuned", "zero-shot", "few-shot", "ablation", "curves"]
Cases = tuple[str, ...]


class GivenMasks(Strict):
    """A method of another program, by its masks: `FOLDER/SETTING/CASE.nii.gz`, see `given_masks`."""

    masks: Path


class Dataset(Strict):
    """A dataset as it was published, and its slice store."""

    format: str
    source: Path
    store: Path  # made with this size and spacing where it is absent
    size: Annotated[int, Field(ge=64, le=4096, multiple_of=64)] = 256
    spacing_mm: Annotated[float, Field(ge=0.1, le=100.0)] = 1.5


class Setting(Strict):
    """How models are trained and what they are tested on; the key of the setting is its title in the tables."""

    kind: Kind
    dataset: str
    #: An earlier setting whose models this one starts from. Without training cases of its own, and where it is
    #: zero-shot or names a scheduler, they are tested as they are.
    after: str | None = None
    #: Names of cases, or shares of the patients to draw them by; every patient is in one of the three.
    train: Cases = ()
    validation: Cases = ()
    test: Cases = ()
    split: SplitConfig | None = None
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the training volumes, at least one (Table 3)
    modality: Modality | None = None  # the cases of this modality alone
    #: Processor time of all stages together, or optimiser steps of the last one; what the run files say where neither.
    cpu_minutes: Minutes | None = None
    steps: Steps | None = None
    #: Settings of a run file that are laid over those of each method, of its stages that train a whole model.
    changes: dict[str, Any] = Field(default_factory=dict)
    scheduler: SchedulerName | None = None  # by which the masks are sampled; the models' own where None
    methods: tuple[str, ...] | None = None  # all where None

    @property
    def trains(self) -> bool:
        """Whether models are trained in it, and not earlier ones tested."""
        return self.kind != "zero-shot" and self.scheduler is None and bool(self.train or self.split)

    @model_validator(mode="after")
    def _consistent(self) -> Setting:
        names = (*self.train, *self.validation, *self.test)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"cases {', '.join(twice)} are named twice")
        if bool(names) == (self.split is not None):
            raise ValueError("expected either names of cases or a split")
        if not self.test and self.split is None:
            raise ValueError("no test case; name some in test")
        if self.kind in ("fine-tuned", "zero-shot", "few-shot") and self.after is None:
            raise ValueError(f"a {self.kind} setting starts from another; name it in after")
        if not self.trains and self.after is None:
            raise ValueError("nothing is trained, and no setting named whose models are tested; set train or after")
        if self.cpu_minutes is not None and self.steps is not None:
            raise ValueError("cpu_minutes and steps are two budgets; set one of them")
        return self


class PaperBench(Strict):
    """The paper's comparisons on the data that are at hand."""

    seed: Seed = 0  # of the trainings
    datasets: Annotated[dict[str, Dataset], Field(min_length=1)]
    #: By name, that of the paper where it has the method: the run files of its stages in their order, beside this file,
    #: or a model that is trained already, or masks. A run file that is absent is reported as such.
    methods: Annotated[dict[str, Contestant | GivenMasks], Field(min_length=1)]
    settings: Annotated[dict[str, Setting], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> PaperBench:
        for kind, names in (("methods", self.methods), ("settings", self.settings)):
            folders = [folder_name(name) for name in names]
            if len(set(folders)) != len(folders) or {"", "tables", "figures"} & set(folders):
                raise ValueError(f"{kind} {', '.join(names)}: not names that differ enough to name folders")
        earlier: list[str] = []
        for title, setting in self.settings.items():
            unknown = [name for name in setting.methods or () if name not in self.methods]
            if setting.dataset not in self.datasets or unknown:
                raise ValueError(f"{title}: not described: {', '.join(unknown) or setting.dataset}")
            if setting.after is not None and setting.after not in earlier:
                raise ValueError(f"{title}: after '{setting.after}'; expected a setting above it")
            earlier.append(title)
        return self

    def methods_of(self, title: str) -> tuple[str, ...]:
        """The methods of a setting, in the order of the file."""
        chosen = self.settings[title].methods
        return tuple(name for name in self.methods if chosen is None or name in chosen)


def read_paper_bench(path: Path) -> PaperBench:
    """Read and check a file; its run files are relative to it, all other paths to the working folder.

    Raises
    ------
    InputRefusedError
        If the file cannot be read.
    UsageError
        If a key is unknown or missing, or a value is invalid.
    """
    bench = read_checked(path, PaperBench)
    methods = {
        name: method if isinstance(method, GivenMasks) else beside(path, method)
        for name, method in bench.methods.items()
    }
    return bench.model_copy(update={"methods": methods})
