"""`meddelinea curves`: logs of training runs -> a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from meddelinea.cli.progress import status
from meddelinea.files import ensure_writable


def curves(
    runs: Annotated[list[Path], Argument(metavar="RUN_FOLDER", help="Folders of training runs.")],
    output: Annotated[Path, Option("-o", "--output", metavar="FILE", help="The figure, a PNG file.")],
) -> None:
    """Plot loss and validation Dice of training runs.

    The figure of a single run shows the terms of its loss too.
    """
    ensure_writable(output, (".png",))
    with status("drawing"):
        from meddelinea.training.curves import write_curves

        write_curves(runs, output)
    print(f"written: {output}")
