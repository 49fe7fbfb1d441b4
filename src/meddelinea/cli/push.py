"""`meddelinea push`: a model's folder -> a repository on the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from meddelinea.cli.progress import silence_hub, status
from meddelinea.errors import UsageError


def push(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder of a trained or adapted model.")],
    repository: Annotated[
        str, Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub, made if there is none.")
    ],
    private: Annotated[bool, Option("--private", help="Make a private repository, which only you can read.")] = False,
) -> None:
    """Upload a model to the Hugging Face hub.

    Others can then use it as --model OWNER/NAME. Its weights, its JSON files and its README.md are uploaded. Read them
    first: training_cases.json names the scans that it was trained on, and run.json contains paths of this computer.
    """
    from meddelinea.segmentation.hub import HubModel

    target = HubModel.parse(repository)
    if target is None or target.revision is not None:
        raise UsageError(f"{repository!r} is not a repository; expected owner/name", parameter="repository")
    with status("checking the model"):
        from meddelinea.segmentation.model import load_model

        files = load_model(model, "cpu").files
    silence_hub()
    with status("uploading"):
        made = target.upload(files.folder, private=private)
    print(f"{made}: use it as --model {target}")
    print(f"licence: {files.licence or 'not stated; a line `license: ...` at the head of README.md states it'}")
