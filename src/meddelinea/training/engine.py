"""The training loop, for every stage and on any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from meddelinea.errors import UsageError
from meddelinea.training.config import RunConfig
from meddelinea.training.metrics_log import MetricsLog
from meddelinea.training.run import Run


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is after a step."""

    #: Optimiser steps done, and in all.
    step: int
    steps: int
    share: float  # share of the run that is done, 0 to 1; a run that a clock ends reaches 1 before its last step
    seconds: float  # time that it has taken, over all sittings
    #: Losses and their `total`, `gradient_norm`, `learning_rate`; after a validation also `dice` and what
    #: `validation_dice` has beside it.
    figures: dict[str, float]


def train(config: RunConfig, *, resume: bool = False) -> Iterator[Progress]:
    """Run a training stage to its end, a step each time that the next progress is asked for.

    ::

        for progress in train(config):
            print(progress.step, progress.figures["total"])

    What it leaves in `config.output` is the trained component (`codec`, `dit` or `pipeline`), beside the figures of
    each step in `metrics.jsonl`. Under `accelerate launch` each process takes its share of every batch; alone it takes
    all. Whoever stops asking stops the run, which can be resumed.

    Parameters
    ----------
    config
        The run.
    resume
        Continue from the last checkpoint in `config.output`, or from the start where the run was stopped before its
        first; the result equals that of an uninterrupted run.

    Raises
    ------
    UsageError
        If the output folder holds a run and `resume` is off.
    MedDelineaError
        If the loss stops being finite; the last checkpoint remains.
    """
    if not resume and MetricsLog(config.output).path.exists():
        raise UsageError(
            f"{config.output}: holds a run already; resume it, or choose another output", parameter="resume"
        )

    # The run, new or as it was left.
    run = Run(config)
    if resume:
        run.resume()
    run.open()

    # Where there is nothing to train, only measure.
    if run.share >= 1.0 and run.done == 0 and run.cases.validation.cases:
        run.record(run.measure(run.cases.validation))

    while run.share < 1.0:
        # One optimiser step, and now and then the Dice of the averaged weights on the validation cases.
        figures = run.step()
        if run.validates():
            figures |= run.validate()

        # What came of it, in the logs and for the caller.
        run.record(figures)
        yield Progress(step=run.done, steps=config.steps, share=run.share, seconds=run.clock.seconds, figures=figures)

        # A checkpoint every few minutes, and at the end.
        if run.due or run.share >= 1.0:
            run.save()

    # The averaged weights, and what they reach on the test cases.
    run.finish()
