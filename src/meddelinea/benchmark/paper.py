"""The paper's tables by one command: what they need is trained, tested and timed, and they are written."""

from __future__ import annotations

from pathlib import Path

from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.benchmark.paper_file import PaperBench
from meddelinea.benchmark.paper_run import (
    Place,
    default_of,
    model_of,
    open_setting,
    read_measured,
    train_and_test,
    trial_of,
)
from meddelinea.benchmark.paper_tables import Table, make_table, places_in
from meddelinea.benchmark.paper_written import write_paper_table
from meddelinea.benchmark.speed import Speeds, measure_speeds, read_speeds, speeds_document
from meddelinea.errors import UsageError
from meddelinea.files import write_json

SPEED = "speed.json"


def make_tables(
    bench: PaperBench,
    output: Path,
    numbers: tuple[int, ...],
    *,
    train: bool = True,
    methods: tuple[str, ...] | None = None,
    beside_paper: bool = False,
    progress: ShowProgress = unwatched,
) -> tuple[tuple[Table, ...], dict[Place, str]]:
    """Make tables and write them into `output`, whose layout `paper_file` describes.

    Parameters
    ----------
    numbers
        Of the tables, 1 to 9.
    train
        Whether what is missing is trained, tested and timed; else it stays missing.
    methods
        Those that are trained and tested; all where None. The tables have all that is there.
    beside_paper
        Whether they have the paper's own figures too.

    Returns
    -------
    The tables; and why what was tried has no result, by setting and method.

    Raises
    ------
    UsageError
        If a method is unknown, a setting's cases cannot be divided so, or `output` holds another benchmark.
    """
    unknown = [name for name in methods or () if name not in bench.methods]
    if unknown:
        raise UsageError(f"no method called {', '.join(unknown)}; expected some of: {', '.join(bench.methods)}")
    reasons: dict[Place, str] = {}
    if train:
        needed = dict.fromkeys(place for number in numbers for place in places_in(number, bench))
        due = [(title, name) for title, name in needed if methods is None or name in methods]
        reasons = train_and_test(bench, output, due, progress)
    measured = read_measured(bench, output, reasons)
    speeds = _speeds(bench, output, progress, anew=train) if 4 in numbers else None
    made = tuple(make_table(number, bench, measured, speeds, beside_paper=beside_paper) for number in numbers)
    for table in made:
        write_paper_table(table, output / "tables")
    return made, reasons


def _speeds(bench: PaperBench, output: Path, progress: ShowProgress, *, anew: bool) -> Speeds | None:
    """The timing of all trained methods; `anew` in one run where it lacks one of them."""
    path = output / SPEED
    speeds = read_speeds(path) if path.is_file() else None
    if not anew:
        return speeds
    models, titles = {}, []
    for name in bench.methods:
        title = default_of(bench, name)
        trial = None if title is None else trial_of(output, title, name)
        if title is not None and trial is not None and trial.parameters is not None:
            models[name] = (model_of(bench, output, title, name), trial.trained_parameters)
            titles.append(title)
    if not models or (speeds is not None and {*speeds.models, *speeds.failed} == models.keys()):
        return speeds
    _, _, tested = open_setting(bench, titles[0], output, progress)
    speeds = measure_speeds(models, tested[0], progress)
    write_json(speeds_document(speeds), path)
    return speeds
