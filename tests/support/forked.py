"""Processes that share one interpreter's imports: each is forked from it in milliseconds, where torch takes seconds."""

import multiprocessing
from collections.abc import Callable
from typing import Any

from support.waiting import PATIENCE

#: What the interpreter imports before it is forked from.
IMPORTS = ["meddelinea.cli.train", "meddelinea.training.engine", "meddelinea.training.curves"]


def run_together(target: Callable[..., None], *arguments: tuple[Any, ...]) -> list[int | None]:
    """Call `target` once in a process of its own for each of `arguments`, all at once; returns their exit codes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    processes = [context.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # one that hangs
        process.join()
    return codes
