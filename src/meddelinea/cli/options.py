"""Options that several commands share, and how what was typed is read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option

from meddelinea.cli.progress import silence_hub
from meddelinea.errors import InputRefusedError, UsageError

if TYPE_CHECKING:
    from meddelinea.segmentation.model import ModelFiles


EngineName = Literal["local", "ray"]
ModelOption = Annotated[
    str,
    Option("--model", metavar="MODEL", help="Model: small, a model's folder, or owner/name on the Hugging Face hub."),
]
DeviceOption = Annotated[str, Option("--device", metavar="DEVICE", help="Device to run on: auto, cpu or cuda.")]
ModalityOption = Annotated[
    Literal["CT", "MR"] | None, Option("--modality", help="Modality of the scan, for files that do not state it.")
]
EngineOption = Annotated[EngineName, Option("--engine", help="Run on this machine, or on a ray cluster.")]
AddressOption = Annotated[
    str | None, Option("--address", metavar="HOST:PORT", help="Address of the ray cluster's head.")
]
OverridesOption = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change a setting of the run file; may be repeated.")
]
JsonOption = Annotated[bool, Option("--json", help="Print one JSON object instead of text.")]
QuietOption = Annotated[bool, Option("--quiet", "-q", help="Print warnings and errors only.")]


def read_model(name: str, *, quiet: bool = False) -> ModelFiles:
    """Describe the model of that name.

    Where it could also be a repository on the Hugging Face hub, stderr says which of both is used, and its licence.

    Raises
    ------
    WeightsMissingError
        If there is no such model.
    """
    from meddelinea.segmentation.hub import HubModel
    from meddelinea.segmentation.model import read_model_files

    if HubModel.parse(name) is None:
        return read_model_files(name)
    silence_hub()
    files = read_model_files(name)
    if not quiet:
        source = "the Hugging Face hub" if files.on_hub else f"the folder {name}, not the Hugging Face hub"
        print(f"model: {files.name} from {source}; licence: {files.licence or 'not stated'}", file=sys.stderr)
    return files


def names(text: str | None, parameter: str) -> tuple[str, ...] | None:
    """The names in a list with commas, such as `liver, spleen`, without empty entries; None where nothing was typed.

    Raises
    ------
    UsageError
        If no name is in it; the error is about `parameter`.
    """
    if text is None:
        return None
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if not found:
        raise UsageError(f"{text!r} contains no name; expected one or more, separated by commas", parameter=parameter)
    return found


def organ_names(text: str | None) -> tuple[str, ...] | None:
    """The organs in a list with commas under their canonical names; None where the option was left out.

    Raises
    ------
    UsageError
        If the list contains no name.
    """
    typed = names(text, "organs")
    if typed is None:
        return None
    from meddelinea.labels import canonical_name

    return tuple(canonical_name(name) for name in typed)


@contextmanager
def refusal_as_json(source: Path, *, wanted: bool) -> Iterator[None]:
    """Print the reasons for refusing `source` as one JSON object, if `wanted`; the refusal still ends the command."""
    try:
        yield
    except InputRefusedError as error:
        if wanted:
            findings = [asdict(finding) for finding in error.findings]
            document = {"input": str(source), "accepted": False, "findings": findings}
            print(json.dumps(document, indent=2, ensure_ascii=False))
        raise
