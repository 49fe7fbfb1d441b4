"""What a method is in a setting: a model to test as it is, or run files with the setting's changes over them."""

from __future__ import annotations

from pathlib import Path

from meddelinea.benchmark.bench_file import Contestant, TrainedModel
from meddelinea.benchmark.paper_file import GivenMasks, Setting
from meddelinea.errors import UsageError
from meddelinea.files import write_json
from meddelinea.training.run_file import load_config


def method_in(setting: Setting, method: Contestant, folder: Path, start: Path | None) -> Contestant:
    """A method as a setting has it.

    Parameters
    ----------
    folder
        For run files with changes.
    start
        The model that it has in the setting before this one; None where there is none.

    Raises
    ------
    UsageError
        If it is to be trained on, and no run file says how.
    """
    if isinstance(method, TrainedModel):
        if setting.trains and start is not None:
            raise UsageError(f"{method.model}: no run file says how it is trained on")
        changes = {} if start is None else {"model": str(start), "scheduler": setting.scheduler or method.scheduler}
        return method.model_copy(update=changes)
    if not setting.trains:
        return TrainedModel(model=str(start), scheduler=setting.scheduler)
    stages = method if start is None else method[-1:]
    return tuple(changed_run_file(path, setting, folder, start) for path in stages)


def absent_run_files(method: Contestant | GivenMasks) -> str | None:
    """What of a method's run files is not there, if anything."""
    paths = [str(path) for path in method if not path.is_file()] if isinstance(method, tuple) else []
    return f"there is no run file {', '.join(paths)}" if paths else None


def changed_run_file(path: Path, setting: Setting, folder: Path, start: Path | None) -> Path:
    """The run file of a stage; of one that trains a whole model, in `folder`, with the setting's changes over it."""
    changes = dict(setting.changes)
    if setting.steps is not None:
        changes |= {"steps": setting.steps, "cpu_minutes": None, "minutes": None}
    run = load_config(path)
    if start is not None:  # it has the parts that the run file names folders of
        parts = {key: None for key, value in run.model if isinstance(value, Path)}
        changes["model"] = {**parts, **changes.get("model", {}), "pipeline": str(start)}
    if not changes or run.stage != "model":
        return path
    folder.mkdir(parents=True, exist_ok=True)
    changed = folder / path.name
    write_json({"extends": str(path.resolve()), **changes}, changed)
    return changed
