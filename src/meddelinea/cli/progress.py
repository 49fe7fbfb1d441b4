"""One look for all that is long."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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


def silence_diffusers() -> None:
    """Switch off the bars that diffusers draws on stderr while it loads, even where nobody watches."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
