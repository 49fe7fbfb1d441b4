"""`meddelinea curves`: logs of training runs -> a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def curves(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_FOLDER...", help="Output folders of training runs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The picture: .png.")],
) -> None:
    """Draw loss and validation Dice against steps: one run with its losses' parts, or several beside each other."""
    from meddelinea.files import ensure_writable
    from meddelinea.training.curves import write_curves

    ensure_writable(output, (".png",))
    write_curves(runs, output)
    print(f"written: {output}")
