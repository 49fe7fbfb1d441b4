"""`meddelinea benchmark learning-rate`: the same few learning rates tried for all methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from meddelinea.cli.options import names
from meddelinea.cli.progress import reporting
from meddelinea.errors import UsageError
from meddelinea.files import write_json, write_text


def learning_rate(
    bench_file: Annotated[Path, Argument(metavar="BENCH.yaml", help="The file of benchmark accuracy.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="Folder for runs and the table; kept if it exists.")],
    rates: Annotated[str, Option(metavar="X,X", help="Learning rates.")] = "5e-4,1e-3,2e-3,4e-3",
    methods: Annotated[str | None, Option(metavar="NAME,NAME", help="Try these only.")] = None,
    cpu_minutes: Annotated[float | None, Option(metavar="X", min=0.01, help="Replace the file's time.")] = None,
    quiet: Annotated[bool, Option("--quiet", "-q", help="Hide the progress bar.")] = False,
) -> None:
    """Find each method's learning rate on a fold.

    Each method is trained with each rate for the same processor time on two thirds of the training patients, and tested
    on the others; the test cases are not touched. Finished trainings are kept, so the command can be stopped and
    repeated.
    """
    try:
        wanted = tuple(float(word) for word in names(rates, "rates") or ())
    except ValueError as error:
        raise UsageError(f"{rates}: expected numbers, such as 5e-4,1e-3", parameter="rates") from error
    with reporting(hidden=quiet) as report:
        from meddelinea.benchmark.bench_file import read_bench_file
        from meddelinea.benchmark.learning_rate import search_lines, search_rates
        from meddelinea.evaluation.summary import plain

        bench = read_bench_file(bench_file)
        if cpu_minutes is not None:
            bench = bench.model_copy(update={"cpu_minutes": cpu_minutes})
        found = search_rates(bench, output, wanted, names(methods, "methods"), report)
    chosen = {method: found.best(method) for method in found.dice}
    write_json(plain({"mean_dice": found.dice, "chosen": chosen}), output / "learning_rate.json")
    text = "\n".join(search_lines(found))
    write_text(text + "\n", output / "learning_rate.md")
    print(text)
