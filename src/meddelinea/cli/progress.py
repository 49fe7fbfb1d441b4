"""One look for all that is long: a bar for people, lines of JSON for programs."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from meddelinea.errors import UsageError


class Look(Enum):
    """What a command prints on stdout: a text for people, one JSON object, one a line as it goes on, or nothing."""

    text = auto()
    object = auto()
    events = auto()
    nothing = auto()

    @classmethod
    def choose(cls, *, as_json: bool, progress_json: bool, quiet: bool) -> Look:
        """From the options `--json`, `--progress-json` and `--quiet`.

        Raises
        ------
        UsageError
            If both forms of JSON are asked for.
        """
        if as_json and progress_json:
            raise UsageError("--json prints one object and --progress-json many; choose one")
        if as_json or progress_json:
            return cls.object if as_json else cls.events
        return cls.nothing if quiet else cls.text


def progress_bar(hidden: bool = False) -> Progress:
    """A bar with time spent and time left on stderr, absent where `hidden` or where nobody watches."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
    )


def print_event(event: Mapping[str, Any], screen: TextIO | None = None) -> None:
    """Print one JSON object on a line of its own, at once, on `screen` or stdout; may be called from any thread."""
    with _PRINTING:
        print(json.dumps(event, ensure_ascii=False), file=screen, flush=True)


_PRINTING = threading.Lock()


def silence_diffusers() -> None:
    """Switch off the bars that diffusers draws on stderr while it loads, even where nobody watches."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
