"""`meddelinea adapt`: a model and a few labelled scans -> an adapted model, or the reason to keep the original."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from typer import Argument, Option

from meddelinea.cli.options import ModelOption, QuietOption, names, organ_names, read_model
from meddelinea.cli.progress import progress_bar, silence_diffusers, status
from meddelinea.cli.table import plain_table
from meddelinea.errors import InputRefusedError, UsageError

if TYPE_CHECKING:
    from meddelinea.data.case import FoundCases
    from meddelinea.training.adapt import Adaptation


def adapt(
    source: Annotated[Path, Argument(metavar="SRC", help="Folder of the labelled scans.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="New folder for the adapted model.")],
    layout: Annotated[
        str,
        Option("--format", metavar="NAME", help="Format of SRC: pairs (images/, labels/, labels.json), nnunet, ..."),
    ] = "pairs",
    model: ModelOption = "small",
    cases: Annotated[str | None, Option(metavar="NAME,NAME", help="Use these cases only.")] = None,
    organs: Annotated[
        str | None, Option(metavar="NAME,NAME", show_default="all that are labelled", help="Learn these organs only.")
    ] = None,
    steps: Annotated[int, Option(metavar="N", min=1, help="Maximum number of training steps, of 8 slices each.")] = 400,
    learning_rate: Annotated[float, Option(metavar="X", min=1e-8, help="Learning rate of AdamW.")] = 5e-4,
    decoder: Annotated[bool, Option("--decoder", help="Train the decoder as well.")] = False,
    seed: Annotated[
        int, Option(metavar="N", min=0, help="Seed of the training and of the choice of held-out patients.")
    ] = 0,
    quiet: QuietOption = False,
) -> None:
    """Adapt a model to labelled scans.

    They may show other organs, or come from other scanners or modalities, than those the model was trained on.

    With two patients or more, the adapted model is compared with the original on patients that it was not trained on.
    If it is not better, OUTPUT becomes a copy of the original, and the command says so.
    """
    with status("starting", hidden=quiet):
        from meddelinea.data.datasets import find_cases, organs_of
        from meddelinea.data.prepare import prepare_store
        from meddelinea.training.adapt import Adaptation, AdaptSettings
        from meddelinea.training.adapt import adapt as run_adaptation

    only, wanted = names(cases, "cases"), organ_names(organs)
    if output.exists():
        raise UsageError(f"{output}: exists already; choose another output, or remove it")
    with status("looking for the model", hidden=quiet):
        base = read_model(model, quiet=quiet)
    found = find_cases(layout, source)
    chosen = _chosen(only, found)
    labelled = organs_of(tuple(case for case in found.cases if case.name in chosen))
    silence_diffusers()
    output.parent.mkdir(parents=True, exist_ok=True)
    # Next to the output, because the temporary folder of the system may be small.
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".meddelinea-") as folder, progress_bar(quiet) as bar:
        task = bar.add_task("reading", total=None)

        store = Path(folder) / "store"
        prepared = prepare_store(
            layout, source, store, only=chosen, organs=wanted or labelled, preprocessing=base.preprocessing
        )
        if prepared.failed:
            name, reason = next(iter(prepared.failed.items()))
            raise InputRefusedError(f"{name}: {reason}; repair it, or leave it out", parameter="cases")
        for name, reasons in prepared.refused.items():
            print(f"warning: {name}: a scan to be left out or repaired: {'; '.join(reasons)}", file=sys.stderr)
        settings = AdaptSettings(steps=steps, learning_rate=learning_rate, decoder=decoder, seed=seed)
        for part, progress in run_adaptation(base.folder, store, cases=chosen, output=output, settings=settings):
            figures = progress.figures
            dice = f", Dice {figures['dice']:.3f}" if "dice" in figures else ""
            description = f"{part}, loss {figures['total']:.3f}{dice}"
            bar.update(task, completed=progress.step, total=progress.steps, description=description)
    result = Adaptation.read(output)
    for name, reason in result.refused.items():
        print(f"warning: {name}: the model in {output} refuses to segment it: {reason}", file=sys.stderr)
    if not quiet:
        _print(result, model, output)


def _chosen(cases: tuple[str, ...] | None, found: FoundCases) -> tuple[str, ...]:
    """The requested cases; by default all that are complete, with a line on stderr for each that is not."""
    known = tuple(case.name for case in found.cases)
    if cases is None:
        for name, reason in found.broken.items():
            print(f"left out: {name}: {reason}", file=sys.stderr)
        return known
    for name in cases:
        if name in found.broken:
            raise InputRefusedError(f"{name}: {found.broken[name]}")
    unknown = [name for name in cases if name not in known]
    if unknown:
        raise UsageError(f"unknown cases {', '.join(unknown)}; expected some of {', '.join(known)}", parameter="cases")
    return cases


def _print(result: Adaptation, model: str, output: Path) -> None:
    if not result.adapted:
        print("only one patient: there is nothing to check the adapted model on; label scans of a second patient")
    else:
        table = plain_table("held-out Dice", model, "adapted")
        for figure in result.adapted:
            if figure != "dice_paper":
                name = "mean" if figure == "dice" else figure.removeprefix("dice/")
                table.add_row(name, f"{result.base.get(figure, 0.0):.3f}", f"{result.adapted[figure]:.3f}")
        Console().print(table)
        print(f"compared on: {result.check} ({', '.join(result.held_out)})")
    if result.kept == "base":
        print(f"the adapted model is not better than {model}, so {output} is a copy of {model}")
    else:
        print(f"adapted with {len(result.train)} volumes in {result.steps} steps: {output}")
