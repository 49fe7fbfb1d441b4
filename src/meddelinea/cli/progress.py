"""How a command shows that it is working: a status line or a bar for people, lines of JSON for programs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from enum import Enum, auto
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.status import Status
from rich.text import Text

from meddelinea.errors import UsageError

#: Takes what is being done, how much of it is done, and how much there is.
Report = Callable[[str, int, int], None]


class OutputMode(Enum):
    """What a command prints on stdout: text for people, one JSON object, one object per event, or nothing."""

    text = auto()
    object = auto()
    events = auto()
    nothing = auto()

    @classmethod
    def choose(cls, *, as_json: bool, progress_json: bool, quiet: bool) -> OutputMode:
        """The mode that the options `--json`, `--progress-json` and `--quiet` ask for.

        Raises
        ------
        UsageError
            If both forms of JSON are asked for.
        """
        if as_json and progress_json:
            raise UsageError("--json prints one object and --progress-json many; choose one of them")
        if as_json or progress_json:
            return cls.object if as_json else cls.events
        return cls.nothing if quiet else cls.text


def status(text: str, hidden: bool = False) -> Status:
    """A line on stderr that says what a command is busy with; absent where `hidden` or where nobody watches.

    Put it around the imports of a command: torch and its like take seconds, and a blank screen looks like a hang.
    """
    return _screen(hidden).status(text)


def progress_bar(hidden: bool = False) -> Progress:
    """A bar with counts, time spent and time left on stderr; absent where `hidden` or where nobody watches."""
    console = _screen(hidden)
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), _Counts(), console=console, disable=console.quiet
    )


def _screen(hidden: bool) -> Console:
    """Stderr where somebody watches. Else nothing at all: rich of old ends a bar that is off with a line break."""
    console = Console(stderr=True)
    console.quiet = hidden or not console.is_terminal
    return console


class _Counts(ProgressColumn):
    """`12/78  0:00:07, 0:00:39 left`; before the total is known, the time spent alone."""

    def render(self, task: Task) -> Text:
        spent = str(timedelta(seconds=int(task.elapsed or 0)))
        if task.total is None:
            return Text(spent)
        known = task.time_remaining is not None and not task.finished
        left = f", {timedelta(seconds=int(task.time_remaining or 0))} left" if known else ""
        return Text(f"{task.completed:.0f}/{task.total:.0f}  {spent}{left}")


@contextmanager
def reporting(hidden: bool = False) -> Iterator[Report]:
    """A bar for the imports of a long piece of work, the loading of its models, and the work, which reports to it."""
    with progress_bar(hidden) as bar:
        task = bar.add_task("starting", total=None)
        silence_diffusers()
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def print_event(event: Mapping[str, Any], screen: TextIO | None = None) -> None:
    """Print one JSON object on a line of its own, at once, on `screen` or stdout; may be called from any thread."""
    with _PRINTING:
        print(json.dumps(event, ensure_ascii=False), file=screen, flush=True)


_PRINTING = threading.Lock()


def silence_diffusers() -> None:
    """Switch off the bars that diffusers draws on stderr while it loads a model, even where nobody watches."""
    from diffusers.utils import logging

    logging.disable_progress_bar()


def silence_hub() -> None:
    """Switch off the bars that the Hugging Face hub's client draws on stderr, even where nobody watches."""
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
