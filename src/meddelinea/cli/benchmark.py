"""`meddelinea benchmark`: figures to compare models, settings and machines by."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from meddelinea.cli.progress import progress_bar, silence_diffusers
from meddelinea.errors import InputRefusedError, PartialFailureError, UsageError

app = typer.Typer(
    help="Figures to compare models, settings and machines by.", rich_markup_mode=None, no_args_is_help=True
)


@app.command("few-shot")
def few_shot(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the labelled scans.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for models and few_shot.json; must be new.")],
    layout: Annotated[str, typer.Option("--format", help="How SRC is laid out, such as chaos-nifti.")],
    model: Annotated[str, typer.Option(help="The model to adapt: small, or a checkpoint folder.")] = "small",
    volumes: Annotated[str, typer.Option("--k", help="Numbers of labelled volumes, such as 1,2,4.")] = "1,2,4",
    steps: Annotated[int, typer.Option(min=1, help="Most training steps, as of adapt.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Draws which volumes are given; the others are the test.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the table and errors.")] = False,
) -> None:
    """Test a model as it is and adapted with k volumes, on the patients that no k was given (Table 3)."""
    from meddelinea.benchmark.few_shot import few_shot_table, table_document, table_lines
    from meddelinea.files import write_json
    from meddelinea.training.adapt import AdaptSettings

    try:
        counts = tuple(int(word) for word in volumes.split(","))
    except ValueError as error:
        raise UsageError(f"--k {volumes}: expected whole numbers with commas, such as 1,2,4") from error
    silence_diffusers()
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task("reading", total=None)
        table = few_shot_table(
            model,
            layout,
            source,
            output,
            counts,
            seed,
            AdaptSettings(steps=steps, seed=seed),
            progress=lambda part, done, total: bar.update(task, completed=done, total=total, description=part),
        )
    write_json(json.loads(json.dumps(table_document(table))), output / "few_shot.json")
    print(f"given, in this order: {', '.join(table.given)}")
    print(f"tested on: {', '.join(table.tested)}\n")
    print("\n".join(table_lines(table)))
    failures = {failure.case: failure.reason for row in table.rows for failure in row.report.failures}
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if failures:
        raise PartialFailureError(f"{len(failures)} of {len(table.tested)} test cases could not be measured")


@app.command("robustness")
def robustness(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of the labelled CTs.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for robustness.md and .json; must be new.")],
    layout: Annotated[str, typer.Option("--format", help="How SRC is laid out, such as btcv.")],
    cases: Annotated[str | None, typer.Option(help="Only these, such as img0002,img0022 (default: all).")] = None,
    model: Annotated[str, typer.Option(help="The model to test: small, or a checkpoint folder.")] = "small",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the table and errors.")] = False,
) -> None:
    """Test a model on labelled CTs under each of a list of perturbations that real scans have."""
    from meddelinea.benchmark.robustness import robustness_table, table_document, table_lines
    from meddelinea.files import write_json, write_text

    if output.exists():
        raise UsageError(f"{output}: exists already; choose another folder, or remove it")
    only = None if cases is None else tuple(name.strip() for name in cases.split(",") if name.strip())
    silence_diffusers()
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task("reading", total=None)
        table = robustness_table(
            model,
            layout,
            source,
            only,
            progress=lambda part, done, total: bar.update(task, completed=done, total=total, description=part),
        )
    output.mkdir(parents=True)
    write_json(table_document(table), output / "robustness.json")
    lines = "\n".join(table_lines(table))
    write_text(lines + "\n", output / "robustness.md")
    print(f"tested on: {', '.join(table.tested)}")
    if table.seen:
        print(f"in training or validation of {table.model}, by their names: {', '.join(table.seen)}")
    print(f"\n{lines}")
    failures = Counter((failure.case, failure.reason) for row in table.rows for failure in row.report.failures)
    for (name, reason), count in failures.items():
        print(f"failed: {name}, {count} of {len(table.rows)} rows: {reason}", file=sys.stderr)
    if failures:
        failed = {name for name, _ in failures}
        raise PartialFailureError(f"{len(failed)} of {len(table.tested)} cases could not be measured in every row")


@app.command("accuracy")
def accuracy(
    bench_file: Annotated[Path, typer.Argument(metavar="BENCH.yaml", help="Data, processor time and methods.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Folder for runs and tables; gone on with if there.")
    ],
    folds: Annotated[int | None, typer.Option(min=2, help="Cross-validate on the file's training cases.")] = None,
    fold: Annotated[int | None, typer.Option(min=1, help="Train and test this fold only (default: all).")] = None,
    test: Annotated[bool, typer.Option("--test", help="Train on them all, test on the file's test cases.")] = False,
    methods: Annotated[str | None, typer.Option(help="Train and test only these, such as a,b (default: all).")] = None,
    cpu_minutes: Annotated[float | None, typer.Option(min=0.01, help="In place of the file's.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the tables and errors.")] = False,
) -> None:
    """Train methods for the same processor time and test them alike: Dice and HD95 with intervals over patients.

    What is done is kept, so the command may be stopped and repeated. The tables are over all that is done, also by
    other processes with the same OUTPUT and other --methods or another --fold.
    """
    from meddelinea.benchmark.accuracy import measure_accuracy
    from meddelinea.benchmark.accuracy_table import accuracy_document, accuracy_lines, accuracy_rows
    from meddelinea.benchmark.bench_file import read_bench_file
    from meddelinea.files import write_json, write_text

    if (folds is None) == (not test):
        raise UsageError("expected either --folds N, to choose methods by, or --test")
    bench = read_bench_file(bench_file)
    if cpu_minutes is not None:
        bench = bench.model_copy(update={"cpu_minutes": cpu_minutes})
    chosen = None if methods is None else tuple(name.strip() for name in methods.split(",") if name.strip())
    silence_diffusers()
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task("reading", total=None)
        measured = measure_accuracy(
            bench,
            output,
            folds,
            chosen,
            fold,
            lambda part, done, total: bar.update(task, completed=done, total=total, description=part),
        )
    rows = accuracy_rows(measured)
    write_json(accuracy_document(measured, rows), output / "accuracy.json")
    lines = accuracy_lines(measured, rows)
    write_text("\n".join(lines) + "\n", output / "accuracy.md")
    print("\n".join(lines))
    failed = [(trial, failure) for trial in measured.trials for failure in trial.report.failures]
    for trial, failure in failed:
        print(f"failed: {trial.part}, {trial.method}, {failure.case}: {failure.reason}", file=sys.stderr)
    if failed:
        raise PartialFailureError(f"{len(failed)} tests of cases failed; the means are without them")


@app.command("calibration")
def calibration(
    bench_file: Annotated[Path, typer.Argument(metavar="BENCH.yaml", help="As of benchmark accuracy.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder for calibration.json and the tables.")],
    fit_on: Annotated[
        Path | None, typer.Option(help="Output of benchmark accuracy, best with --folds (default: nothing is fitted).")
    ] = None,
    method: Annotated[str, typer.Option(help="Whose models of the folds are used.")] = "MedDelinea",
    model: Annotated[str, typer.Option(help="The model to calibrate: small, or a checkpoint folder.")] = "small",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the tables and errors.")] = False,
) -> None:
    """Fit probabilities, intervals and reviews on the folds' held-out cases; measure them on the test cases.

    The calibration.json that it writes belongs into the folder of the model. Without --fit-on, how well the one there
    holds.
    """
    from meddelinea.benchmark.bench_file import read_bench_file
    from meddelinea.benchmark.calibration_cases import calibration_document, calibration_lines, measure_calibration
    from meddelinea.files import write_json, write_text
    from meddelinea.segmentation.model import CALIBRATION_FILE

    silence_diffusers()
    with progress_bar(hidden=quiet) as bar:
        task = bar.add_task("reading", total=None)
        measured = measure_calibration(
            read_bench_file(bench_file),
            fit_on,
            method,
            model,
            lambda part, done, total: bar.update(task, completed=done, total=total, description=part),
        )
    lines = calibration_lines(measured)
    output.mkdir(parents=True, exist_ok=True)
    if measured.fitted:
        write_json(measured.calibration.to_json(), output / CALIBRATION_FILE)
    write_json(calibration_document(measured), output / "figures.json")
    write_text("\n".join(lines) + "\n", output / "calibration.md")
    print("\n".join(lines))


@app.command("store")
def store(
    root: Annotated[Path, typer.Argument(metavar="STORE", help="Slice store, from `meddelinea prepare`.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0: this one.")] = 2,
    slices: Annotated[int, typer.Option(min=1, help="Slices that are read.")] = 4000,
    cold: Annotated[bool, typer.Option("--cold", help="Drop the store from the page cache first (Linux).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Random slices per second that a store gives, alone and with the two neighbours that training reads."""
    from meddelinea.benchmark.throughput import forget, measure
    from meddelinea.data.store import SliceStore

    source = SliceStore(root)
    if not len(source):
        raise InputRefusedError(f"{root}: holds no case; prepare one first")
    rates = {}
    for name, reach in (("single slices", 0), ("with two neighbours", 1)):
        if cold:
            forget(root)
        rates[name] = measure(source, workers=workers, slices=slices, reach=reach)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    if as_json:
        figures = {name: asdict(rate) for name, rate in rates.items()}
        described = {"workers": workers, "slices": slices, "cold": cold, "bytes": size, "rates": figures}
        print(json.dumps(described, indent=2))
        return
    print(f"{root}: {len(source.cases)} cases, {len(source)} slices, {size / 1e6:.1f} MB")
    found = "cold" if cold else "page cache as found"
    for name, rate in rates.items():
        print(
            f"{name}: {rate.per_second:.0f} a second, {workers} workers, {found}; "
            f"{rate.processor_ms:.2f} ms of processor a slice"
        )


@app.command("loading")
def loading(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run whose batches are timed.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeat for more.")
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches, and training steps, that are timed.")] = 20,
) -> None:
    """Whether training waits for its data: time to make a run's batches, beside that of its training steps."""
    from meddelinea.benchmark.loading import measure_loading
    from meddelinea.training.config import load_config

    silence_diffusers()
    measured = measure_loading(load_config(run_file, tuple(overrides or ())), batches)
    table = Table("batches", "workers", "slices / s", "s / batch", "batch / step")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, seconds in (("read", measured.read), ("read and augmented", measured.augmented)):
        for workers, each in seconds.items():
            figures = (f"{measured.batch_size / each:.0f}", f"{each:.4f}", f"{each / measured.step:.3f}")
            table.add_row(name, str(workers), *figures)
    Console().print(table)
    print(f"a training step on {measured.batch_size} slices takes {measured.step:.4f} s on {measured.device}")
