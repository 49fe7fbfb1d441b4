"""The learning rate of each method: the same few tried for all, on a fold of the training cases."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meddelinea.benchmark.accuracy import measure_accuracy
from meddelinea.benchmark.accuracy_table import accuracy_rows
from meddelinea.benchmark.bench_file import BenchFile, Contestant, folder_name
from meddelinea.benchmark.held_out import ShowProgress, unwatched
from meddelinea.benchmark.markdown import cell, table
from meddelinea.errors import UsageError
from meddelinea.files import write_json
from meddelinea.training.run_file import load_config

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
#: The first of so many folds is tested; the test cases of a benchmark have no part in it.
FOLDS = 3


@dataclass(frozen=True)
class Search:
    """Mean Dice over all organs of the fold's cases, by method and learning rate."""

    dice: Mapping[str, Mapping[float, float]]

    def best(self, method: str) -> float:
        """The rate with the highest Dice, of equal ones the lowest; one without a mean of cases comes last."""
        found = self.dice[method]
        return max(sorted(found), key=lambda rate: -1.0 if math.isnan(found[rate]) else found[rate])


def search_rates(
    bench: BenchFile,
    output: Path,
    rates: tuple[float, ...] = RATES,
    methods: tuple[str, ...] | None = None,
    progress: ShowProgress = unwatched,
) -> Search:
    """Train each method at each rate and test it, what is in `output` already excepted.

    The rate is that of all stages that train a whole model; those before them are trained once.

    Parameters
    ----------
    output
        Folder of run files, and of what `measure_accuracy` leaves.
    rates
        Learning rates, each once.
    methods
        Those that are tried; all that have run files where None.

    Raises
    ------
    UsageError
        If a method has no run files, a rate is out of range, or as of `measure_accuracy`.
    InputRefusedError
        As of `measure_accuracy`.
    """
    trained = {name: method for name, method in bench.methods.items() if isinstance(method, tuple)}
    unknown = [name for name in methods or () if name not in trained]
    if unknown or not trained or not rates or len(set(rates)) != len(rates):
        raise UsageError(
            f"methods {', '.join(unknown) or 'none'}, rates {', '.join(f'{rate:g}' for rate in rates)}; expected some "
            f"of: {', '.join(trained) or 'methods with run files'}, and rates, each once"
        )
    dice: dict[str, dict[float, float]] = {}
    for name, stages in trained.items():
        if methods is not None and name not in methods:
            continue
        kinds = [load_config(path).stage for path in stages]
        early, folders = kinds.index("model") if "model" in kinds else len(kinds), []
        for rate in rates:
            title = f"{name} at {rate:g}"
            folders.append(output / f"fold-1-of-{FOLDS}" / folder_name(title))
            for number, path in enumerate(stages[:early], start=1):
                stage = f"{number}-{path.stem}"
                if (folders[0] / stage).is_dir() and not (folders[-1] / stage).exists():
                    shutil.copytree(folders[0] / stage, folders[-1] / stage)
            later = (_at(path, rate, output / folder_name(title)) for path in stages[early:])
            changed: Contestant = (*stages[:early], *later)
            one = bench.model_copy(update={"methods": {title: changed}})
            measured = measure_accuracy(one, output, FOLDS, fold=1, progress=progress)
            (row,) = accuracy_rows(measured)
            dice.setdefault(name, {})[rate] = row.all_organs.dice.mean
    return Search(dice)


def _at(path: Path, rate: float, folder: Path) -> Path:
    """The run file with another learning rate, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = folder / path.name
    write_json({"extends": str(path.resolve()), "optimiser": {"learning_rate": rate}}, changed)
    load_config(changed)  # refused before hours of training
    return changed


def search_lines(found: Search) -> list[str]:
    """The table in Markdown: mean Dice at each rate, and the one to choose; whether a rate beyond might be better."""
    rates = sorted({rate for by_rate in found.dice.values() for rate in by_rate})
    rows = []
    for method, by_rate in found.dice.items():
        best = found.best(method)
        edge = " (at the edge)" if len(rates) > 1 and best in (rates[0], rates[-1]) else ""
        rows.append([method, *(cell(by_rate.get(rate, float("nan")), ".3f") for rate in rates), f"{best:g}{edge}"])
    return table(["mean Dice at", *(f"{rate:g}" for rate in rates), "chosen"], rows)
