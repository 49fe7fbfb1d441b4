"""`meddelinea check`: may this scan be segmented?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from meddelinea.errors import InputRefusedError


def check(
    source: Annotated[Path, typer.Argument(metavar="IN", help="NIfTI or NRRD file, DICOM folder or zip.")],
    model: Annotated[str, typer.Option(help="small, or a checkpoint folder: what should segment it?")] = "small",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether a scan may be segmented, and why not: exit code 0 or 3."""
    from meddelinea.inference.model import read_model_files
    from meddelinea.inference.quality import Finding, check_volume
    from meddelinea.io import read_volume

    modalities = read_model_files(model).modalities
    document: dict[str, Any] = {"input": str(source)}
    try:
        volume = read_volume(source)
    except InputRefusedError as error:
        if not as_json:
            raise
        findings = [Finding("unreadable", "refuse", str(error))]
    else:
        findings = check_volume(volume, modalities)
        document |= {
            "shape": list(volume.array.shape),
            "spacing_mm": [round(mm, 4) for mm in volume.spacing_mm],
            "orientation": volume.orientation,
            "modality": volume.modality,
        }
    accepted = all(finding.level != "refuse" for finding in findings)
    if as_json:
        document |= {"accepted": accepted, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        shape, spacing = document["shape"], document["spacing_mm"]
        print(f"{source}: {' x '.join(map(str, shape))} voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm")
        for finding in findings:
            if finding.level == "warn":
                print(f"warning: {finding.message}")
        refusals = [finding.message for finding in findings if finding.level == "refuse"]
        if refusals:
            raise InputRefusedError(f"{source}: {'; '.join(refusals)}")
        print("may be segmented")
    if not accepted:
        raise typer.Exit(InputRefusedError.exit_code)
