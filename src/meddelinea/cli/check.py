"""`meddelinea check`: can this scan be segmented?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument

from meddelinea.cli.options import JsonOption, ModalityOption, ModelOption, read_model
from meddelinea.cli.progress import status
from meddelinea.errors import InputRefusedError

if TYPE_CHECKING:
    from meddelinea.findings import Finding
    from meddelinea.scan import Scan


def check(
    source: Annotated[Path, Argument(metavar="IN", help="NIfTI, NRRD or MetaImage file, DICOM folder or zip.")],
    model: ModelOption = "small",
    modality: ModalityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check whether a scan can be segmented, and say why not.

    The exit code is 0 or 3. docs/checks.md explains the reasons.
    """
    with status("starting", hidden=as_json):
        from meddelinea.checks.scan import examine, require_accepted
        from meddelinea.io.volumes import read_scan

        limits = read_model(model, quiet=as_json).limits
    document: dict[str, Any] = {"input": str(source), "accepted": False}
    try:
        scan = examine(read_scan(source), limits, modality)
        document |= _describe(scan)
        if not as_json:
            _print(scan)
        require_accepted(scan)
    except InputRefusedError as error:
        if not as_json:
            raise
        print(json.dumps(document | _listed(error.findings), indent=2, ensure_ascii=False))
        raise typer.Exit(error.exit_code) from error
    if as_json:
        print(json.dumps(document | {"accepted": True} | _listed(scan.findings), indent=2, ensure_ascii=False))
    else:
        print("may be segmented")


def _describe(scan: Scan) -> dict[str, Any]:
    volume = scan.volume
    return {
        "shape": list(volume.array.shape),
        "spacing_mm": [round(mm, 4) for mm in volume.spacing_mm],
        "orientation": volume.orientation,
        "modality": scan.modality,
    }


def _listed(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"findings": [asdict(finding) for finding in findings]}


def _print(scan: Scan) -> None:
    shape, spacing = scan.volume.shape, scan.volume.spacing_mm
    print(f"{scan.place}: {' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm")
    for finding in scan.findings:
        if finding.level == "warn":
            print(f"warning: {finding.message}")
