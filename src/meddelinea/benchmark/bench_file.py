"""BENCH.yaml: the data, the processor time and the methods of an accuracy benchmark, checked before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from meddelinea.diffusion.sampling import SchedulerName
from meddelinea.diffusion.schedule import TIMESTEPS
from meddelinea.errors import InputRefusedError, UsageError, first_fault, reason_of
from meddelinea.training.config import Minutes, Seed, Strict


class TrainedModel(Strict):
    """A model that is tested as it is: a shipped one's name or a folder, and what its training took, where known."""

    model: str
    cpu_hours: Annotated[float, Field(ge=0.0, le=1e6)] | None = None
    #: How its masks are sampled: steps and scheduler, its own where absent, and masks drawn of each slice and averaged.
    steps: Annotated[int, Field(ge=1, le=TIMESTEPS)] | None = None
    samples: Annotated[int, Field(ge=1, le=1024)] = 1
    scheduler: SchedulerName | None = None
    #: Of a method that takes boxes, `truth`: boxes around the true organs, what it reaches at best and nobody else can.
    boxes: Literal["truth"] | None = None


class GivenMasks(Strict):
    """Masks that another program made, see `given_masks`; which cases it was trained on is not checked."""

    masks: Path  # folder with CASE.nii.gz of each test case
    cpu_hours: Annotated[float, Field(ge=0.0, le=1e6)] | None = None


Stages = Annotated[tuple[Path, ...], Field(min_length=1)]
Contestant = Annotated[
    Stages | TrainedModel | GivenMasks,
    BeforeValidator(lambda value: {"model": value} if isinstance(value, str) else value),
]


class BenchFile(Strict):
    """An accuracy benchmark."""

    #: The dataset that is tested on, at full resolution.
    format: str
    source: Path
    store: Path  # slice store of its training cases, from `meddelinea prepare`
    #: Names of cases; no patient may be in both.
    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()  # measured during the last stage as its run file says, and not chosen by
    test: tuple[str, ...] = ()
    #: Processor time that each method is trained for, all of its stages together; what the run files say where None.
    cpu_minutes: Minutes | None
    #: The same by the clock, in its place.
    minutes: Minutes | None = None
    seed: Seed = 0  # of the trainings and of the bootstrap
    #: By name: the run files of its stages in their order, beside this file; or a model that is trained already,
    #: `FOLDER` or `{model: FOLDER, cpu_hours: 2.5}`; or masks of another program, `{masks: FOLDER}`. The others are
    #: compared with the first.
    methods: Annotated[dict[str, Contestant], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> BenchFile:
        if self.minutes is not None and self.cpu_minutes is not None:
            raise ValueError("minutes and cpu_minutes: a training ends by one clock; leave one of them null")
        names = (*self.train, *self.validation, *self.test)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"cases {', '.join(twice)} are named twice")
        for name, method in self.methods.items():
            if isinstance(method, TrainedModel) and method.boxes == "truth" and "truth" not in name.lower():
                raise ValueError(
                    f"{name}: boxes from the truth are no fair contest; say so in its name: {name} (truth)"
                )
        folders = [folder_name(method) for method in self.methods]
        if len(set(folders)) != len(folders) or "" in folders:
            raise ValueError(f"methods {', '.join(self.methods)}: their names do not differ enough to name folders")
        return self


def folder_name(method: str) -> str:
    """A method's name as a folder's: small letters, digits and hyphens."""
    return "-".join("".join(c if c.isalnum() else " " for c in method.lower()).split())


def read_bench_file(path: Path) -> BenchFile:
    """Read and check a benchmark; its run files are relative to it, all other paths to the working folder.

    Raises
    ------
    InputRefusedError
        If the file cannot be read.
    UsageError
        If a key is unknown or missing, or a value is invalid.
    """
    bench = read_checked(path, BenchFile)
    return bench.model_copy(update={"methods": {name: beside(path, method) for name, method in bench.methods.items()}})


def beside(path: Path, method: Contestant) -> Contestant:
    """A method of a benchmark's file with its run files where they are: relative to that file."""
    return tuple(path.parent / run for run in method) if isinstance(method, tuple) else method


File = TypeVar("File", bound=Strict)


def read_checked(path: Path, kind: type[File]) -> File:
    """A YAML file as an object of that kind; refused as `read_bench_file` says."""
    try:
        return kind.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        raise UsageError(f"{path}: {first_fault(error)}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputRefusedError(f"{path}: not a readable YAML file ({reason_of(error)})") from error
