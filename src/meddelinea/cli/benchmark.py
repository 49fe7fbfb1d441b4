"""`meddelinea benchmark`: measurements that compare models, settings and machines."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer import Argument, Option

from meddelinea.cli.learning_rate import learning_rate
from meddelinea.cli.options import JsonOption, ModelOption, OverridesOption, names
from meddelinea.cli.paper import paper
from meddelinea.cli.progress import reporting, silence_diffusers, status
from meddelinea.cli.speed import speed
from meddelinea.cli.table import plain_table
from meddelinea.errors import InputRefusedError, PartialFailureError, UsageError
from meddelinea.files import write_json, write_text

app = typer.Typer(help="Compare models, settings and machines.", rich_markup_mode=None, no_args_is_help=True)
app.command("paper")(paper)
app.command("learning-rate")(learning_rate)
app.command("speed")(speed)

QuietBar = Annotated[bool, Option("--quiet", "-q", help="Hide the progress bar.")]


@app.command("few-shot")
def few_shot(
    source: Annotated[Path, Argument(metavar="SRC", help="Folder of labelled scans.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="New folder for the models and the tables.")],
    layout: Annotated[str, Option("--format", metavar="NAME", help="Layout of SRC, such as chaos-nifti.")],
    model: ModelOption = "small",
    volumes: Annotated[str, Option("--k", metavar="K,K", help="Numbers of labelled volumes.")] = "1,2,4",
    steps: Annotated[int, Option(metavar="N", min=1, help="Maximum number of training steps.")] = 400,
    seed: Annotated[int, Option(metavar="N", min=0, help="Seed of the choice of volumes.")] = 0,
    quiet: QuietBar = False,
) -> None:
    """Test a model before and after adapting it to k volumes.

    The test cases are those of the patients that no k uses, as in Table 3 of the paper.
    """
    try:
        counts = tuple(int(word) for word in names(volumes, "volumes") or ())
    except ValueError as error:
        raise UsageError(f"{volumes}: expected whole numbers, such as 1,2,4", parameter="volumes") from error
    with reporting(hidden=quiet) as report:
        from meddelinea.benchmark.few_shot import few_shot_document, few_shot_lines, few_shot_table
        from meddelinea.training.adapt import AdaptSettings

        settings = AdaptSettings(steps=steps, seed=seed)
        table = few_shot_table(model, layout, source, output, counts, seed, settings, progress=report)
    write_json(few_shot_document(table), output / "few_shot.json")
    print(f"given, in this order: {', '.join(table.given)}")
    print(f"tested on: {', '.join(table.tested)}\n")
    _show(few_shot_lines(table), output / "few_shot.md")
    failures = {failure.case: failure.reason for row in table.rows for failure in row.report.failures}
    _raise_failures(
        [f"{name}: {reason}" for name, reason in failures.items()],
        f"{len(failures)} of {len(table.tested)} test cases could not be measured",
    )


@app.command("robustness")
def robustness(
    source: Annotated[Path, Argument(metavar="SRC", help="Folder of labelled CTs.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="New folder for robustness.md and .json.")],
    layout: Annotated[str, Option("--format", metavar="NAME", help="Layout of SRC, such as btcv.")],
    cases: Annotated[str | None, Option(metavar="NAME,NAME", help="Test these cases only.")] = None,
    model: ModelOption = "small",
    quiet: QuietBar = False,
) -> None:
    """Test a model on labelled CTs that are perturbed.

    Each perturbation is one that real scans have; the CTs are tested unchanged as well.
    """
    if output.exists():
        raise UsageError(f"{output}: exists already; choose another folder, or remove it")
    with reporting(hidden=quiet) as report:
        from meddelinea.benchmark.robustness import robustness_document, robustness_lines, robustness_table

        table = robustness_table(model, layout, source, names(cases, "cases"), progress=report)
    output.mkdir(parents=True)
    write_json(robustness_document(table), output / "robustness.json")
    print(f"tested on: {', '.join(table.tested)}")
    if table.seen:
        print(f"in training or validation of {table.model}, by their names: {', '.join(table.seen)}")
    print()
    _show(robustness_lines(table), output / "robustness.md")
    failures = Counter((failed.case, failed.reason) for report in table.rows.values() for failed in report.failures)
    _raise_failures(
        [f"{name}, {count} of {len(table.rows)} rows: {reason}" for (name, reason), count in failures.items()],
        f"{len({name for name, _ in failures})} of {len(table.tested)} cases could not be measured in every row",
    )


@app.command("accuracy")
def accuracy(
    bench_file: Annotated[Path, Argument(metavar="BENCH.yaml", help="Data, processor time and methods.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="Folder for runs and tables; kept if it exists.")],
    folds: Annotated[int | None, Option(metavar="N", min=2, help="Cross-validate in N folds.")] = None,
    fold: Annotated[int | None, Option(metavar="N", min=1, help="Train and test this fold only.")] = None,
    test: Annotated[bool, Option("--test", help="Train on all training cases, and test on the others.")] = False,
    methods: Annotated[str | None, Option(metavar="NAME,NAME", help="Train and test these only.")] = None,
    cpu_minutes: Annotated[float | None, Option(metavar="X", min=0.01, help="Replace the file's time.")] = None,
    patients: Annotated[int | None, Option(metavar="N", min=1, help="Train on so many patients only.")] = None,
    quiet: QuietBar = False,
) -> None:
    """Train methods for the same processor time, and test them.

    The tables have Dice and HD95 with intervals over patients. Finished parts are kept, so the command can be stopped
    and repeated. The tables cover all that is finished, also by other processes with the same OUTPUT and other
    --methods or another --fold.
    """
    if (folds is None) == (not test):
        raise UsageError("expected either --folds N, to choose methods by, or --test")
    with reporting(hidden=quiet) as report:
        from meddelinea.benchmark.accuracy import measure_accuracy
        from meddelinea.benchmark.accuracy_table import accuracy_document, accuracy_lines, accuracy_rows
        from meddelinea.benchmark.bench_file import read_bench_file

        bench = read_bench_file(bench_file)
        if cpu_minutes is not None:
            bench = bench.model_copy(update={"cpu_minutes": cpu_minutes})
        measured = measure_accuracy(bench, output, folds, names(methods, "methods"), fold, report, patients)
    rows = accuracy_rows(measured)
    write_json(accuracy_document(measured, rows), output / "accuracy.json")
    _show(accuracy_lines(measured, rows), output / "accuracy.md")
    failed = [
        f"{trial.part}, {trial.method}, {failure.case}: {failure.reason}"
        for trial in measured.trials
        for failure in trial.report.failures
    ]
    _raise_failures(failed, f"{len(failed)} tests of cases failed; the means leave them out")


@app.command("prior")
def prior(
    runs: Annotated[list[Path], Argument(metavar="RUN...", help="Folders of runs of the stage `base`.")],
    output: Annotated[Path, Option("--output", "-o", metavar="FOLDER", help="Folder for the tables and the picture.")],
    cases: Annotated[str, Option(metavar="NAME,NAME", help="Cases of the store that no run was trained on.")],
    samples: Annotated[int, Option(metavar="N", min=8, help="Masks that each base draws.")] = 256,
    steps: Annotated[int, Option(metavar="N", min=1, max=1000, help="Sampling steps.")] = 20,
    seed: Annotated[int, Option(metavar="N", min=0, help="Seed of the noise.")] = 0,
    quiet: QuietBar = False,
) -> None:
    """Measure what bases know of masks before they see images.

    The table has the loss on masks that were held out, and how many of the masks that each draws could be of a body.
    """
    with reporting(hidden=quiet) as report:
        from meddelinea.benchmark.prior import measure_prior, prior_document, prior_lines, prior_picture

        tested = names(cases, "cases") or ()
        found = measure_prior(runs, tested, samples=samples, steps=steps, seed=seed, progress=report)
    output.mkdir(parents=True, exist_ok=True)
    write_json(prior_document(found), output / "prior.json")
    prior_picture(found, output / "prior.png")
    _show(prior_lines(found), output / "prior.md")


@app.command("spread")
def spread(
    models: Annotated[list[str], Argument(metavar="MODEL...", help="Models; the first is one that samples.")],
    source: Annotated[Path, Option("--source", metavar="SRC", help="Folder of labelled scans.")],
    layout: Annotated[str, Option("--format", metavar="NAME", help="Layout of SRC, such as btcv.")],
    cases: Annotated[str, Option(metavar="NAME,NAME", help="Test these cases.")],
    output: Annotated[Path, Option("--output", "-o", metavar="FOLDER", help="Folder for the tables and the picture.")],
    samples: Annotated[int, Option(metavar="M", min=2, max=128, help="Answers of a model that samples.")] = 16,
    steps: Annotated[int | None, Option(metavar="N", min=1, max=1000, help="Sampling steps.")] = None,
    scheduler: Annotated[str | None, Option(metavar="NAME", help="Scheduler of models that sample.")] = None,
    seed: Annotated[int, Option(metavar="N", min=0, help="Seed of the noise.")] = 0,
    quiet: QuietBar = False,
) -> None:
    """Measure what many answers for one scan are worth.

    A model that samples answers from other noise each time. One that does not is given test-time augmentation for as
    long as the first model takes. The picture shows answers for one slice of the case that the answers differ most in,
    at 1, 4 and 20 steps.
    """
    with reporting(hidden=quiet) as report:
        from meddelinea.benchmark.spread import measure_spread, spread_document, spread_lines
        from meddelinea.benchmark.spread_picture import ask, draw_picture
        from meddelinea.segmentation.sampling import Sampling

        asked = names(cases, "cases") or ()
        sampling = Sampling(steps=steps, scheduler=scheduler, samples=samples, seed=seed)
        found = measure_spread(models, layout, source, asked, sampling, report)
        picture = ask(models, layout, source, found, sampling)
    output.mkdir(parents=True, exist_ok=True)
    draw_picture(picture, output / "spread.png")
    write_json({"models": spread_document(found)}, output / "spread.json")
    _show(spread_lines(found), output / "spread.md")


@app.command("calibration")
def calibration(
    bench_file: Annotated[Path, Argument(metavar="BENCH.yaml", help="The file of benchmark accuracy.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="Folder for calibration.json and the tables.")],
    folds: Annotated[
        Path | None, Option("--fit-on", metavar="FOLDER", help="Fit on this output of accuracy with --folds.")
    ] = None,
    method: Annotated[str, Option(metavar="NAME", help="Method whose models are used.")] = "MedDelinea",
    model: ModelOption = "small",
    quiet: QuietBar = False,
) -> None:
    """Fit the calibration of a model, and measure it.

    It is fitted on cases that were held out of training and measured on the test cases. The calibration.json that is
    written belongs in the model's folder. Without --fit-on, the one there is measured.
    """
    with reporting(hidden=quiet) as report:
        from meddelinea.benchmark.bench_file import read_bench_file
        from meddelinea.benchmark.calibration_cases import calibration_document, calibration_lines, measure_calibration
        from meddelinea.segmentation.model import CALIBRATION_FILE

        measured = measure_calibration(read_bench_file(bench_file), folds, method, model, report)
    output.mkdir(parents=True, exist_ok=True)
    if measured.fitted:
        write_json(measured.calibration.to_json(), output / CALIBRATION_FILE)
    write_json(calibration_document(measured), output / "figures.json")
    _show(calibration_lines(measured), output / "calibration.md")


@app.command("store")
def store(
    root: Annotated[Path, Argument(metavar="STORE", help="Slice store, from `meddelinea prepare`.")],
    workers: Annotated[int, Option(metavar="N", min=0, help="Reading processes; 0 reads in this one.")] = 2,
    slices: Annotated[int, Option(metavar="N", min=1, help="Number of slices to read.")] = 4000,
    cold: Annotated[bool, Option("--cold", help="Drop the store from the page cache first (Linux).")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how fast a slice store is read.

    Slices are read in random order, alone and with their two neighbours.
    """
    with status("reading", hidden=as_json):
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
    cache = "cold cache" if cold else "page cache as found"
    for name, rate in rates.items():
        print(
            f"{name}: {rate.per_second:.0f} per second, {workers} workers, {cache}; "
            f"{rate.processor_ms:.2f} ms of processor time per slice"
        )


@app.command("loading")
def loading(
    run_file: Annotated[Path, Argument(metavar="RUN.yaml", help="Run file whose batches are timed.")],
    overrides: OverridesOption = None,
    batches: Annotated[int, Option(metavar="N", min=1, help="Number of batches and steps to time.")] = 20,
) -> None:
    """Measure whether training waits for its data.

    The time to make a batch is compared with the time of a training step.
    """
    with status("measuring"):
        from meddelinea.benchmark.loading import measure_loading
        from meddelinea.training.run_file import load_config

        silence_diffusers()
        measured = measure_loading(load_config(run_file, tuple(overrides or ())), batches)
    table = plain_table("batches", "workers", "slices / s", "s / batch", "batch / step")
    for name, seconds in (("read", measured.read), ("read and augmented", measured.augmented)):
        for workers, each in seconds.items():
            figures = (f"{measured.batch_size / each:.0f}", f"{each:.4f}", f"{each / measured.step:.3f}")
            table.add_row(name, str(workers), *figures)
    Console().print(table)
    print(f"a training step on {measured.batch_size} slices takes {measured.step:.4f} s on {measured.device}")


def _show(lines: Sequence[str], path: Path) -> None:
    """Write a table, and print it."""
    text = "\n".join(lines)
    write_text(text + "\n", path)
    print(text)


def _raise_failures(failures: Sequence[str], message: str) -> None:
    """Name what failed, if anything did, on stderr and end the command."""
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        raise PartialFailureError(message)
