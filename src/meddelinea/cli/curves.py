"""`meddelinea curves`: logs of training runs -> a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meddelinea.cli.progress import status
from meddelinea.files import ensure_writable


def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_FOLDER...", help="Output folders of training runs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture: .png.")],
) -> None:
    """Draw loss and validation Dice against steps: one run with its losses' parts, or several beside each other."""
    ensure_writable(output, (".png",))
    with status("drawing"):
        from meddelinea.training.curves import write_curves

        write_curves(runs, output)
    print(f"written: {output}")
