"""`meddelinea demo`: segment a real CT that is a `pip install` away."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from typer import Option

from meddelinea.cli.options import DeviceOption, JsonOption, QuietOption
from meddelinea.cli.outputs import Outputs
from meddelinea.cli.predict import Job, run
from meddelinea.cli.progress import OutputMode
from meddelinea.errors import InputRefusedError, WeightsMissingError


def demo(
    output: Annotated[Path, Option("-o", "--output", metavar="FOLDER", help="Folder for the results.")] = Path(
        "meddelinea_demo"
    ),
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Segment a real CT of the chest and upper abdomen.

    It comes with the package slicerio.
    """
    scan = _demo_scan()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputRefusedError(f"{output}: cannot make this folder ({error.strerror}); choose another") from error
    job = Job(
        source=scan,
        outputs=Outputs(
            mask=output / "mask.nii.gz",
            statistics=output / "statistics.json",
            preview=output / "preview.png",
            report=output / "report.html",
        ),
        device=device,
    )
    run(job, OutputMode.choose(as_json=as_json, progress_json=False, quiet=quiet))


def _demo_scan() -> Path:
    """The CT in the installed package slicerio, found without importing it."""
    spec = find_spec("slicerio")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        scan = Path(folder) / "data" / "CTChest4.nrrd"
        if scan.is_file():
            return scan
    raise WeightsMissingError("the demo's CT comes with the package slicerio: pip install 'meddelinea[demo]'")
