"""`meddelinea serve`: the viewer and the protocol of MONAI Label, on a port of this computer."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from meddelinea.cli.options import DeviceOption, ModelOption, read_model
from meddelinea.cli.progress import status
from meddelinea.errors import UsageError

#: Minimum length of a token: nothing slows down somebody who guesses it.
TOKEN_CHARACTERS = 16


def serve(
    host: Annotated[
        str, Option(metavar="ADDRESS", help="Address to listen on. Any other than this computer's needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    token: Annotated[
        str | None,
        Option(
            metavar="TOKEN",
            envvar="MEDDELINEA_TOKEN",
            show_default="a new one, printed once",
            help="Token that requests must carry.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None, Option(metavar="NAME", help="Name by which browsers may reach the server; may be repeated.")
    ] = None,
    dicomweb: Annotated[
        str | None, Option(metavar="URL", help="DICOMweb service from which OHIF's plugin may request series.")
    ] = None,
    model: ModelOption = "small",
    device: DeviceOption = "auto",
    folder: Annotated[
        Path | None,
        Option(metavar="FOLDER", show_default="in this user's application data", help="Folder of the jobs."),
    ] = None,
    upload_mib: Annotated[int, Option(metavar="N", min=1, help="Maximum size of an upload in MiB.")] = 1024,
    unpacked_mib: Annotated[int, Option(metavar="N", min=1, help="Maximum size of an unpacked upload in MiB.")] = 2048,
    queue_length: Annotated[int, Option(metavar="N", min=1, help="Maximum number of waiting scans.")] = 32,
    job_minutes: Annotated[float, Option(metavar="X", min=0.01, help="Maximum time for one scan.")] = 30.0,
    learn_minutes: Annotated[
        float, Option(metavar="X", min=0.01, help="Maximum time for learning from corrected scans.")
    ] = 240.0,
    keep_hours: Annotated[float, Option(metavar="X", min=0.01, help="Time for which finished jobs are kept.")] = 24.0,
) -> None:
    """Serve a web page that segments the scans dropped on it.

    Ctrl-C stops the server. Waiting jobs continue when it is started again.
    """
    if dicomweb is not None and not dicomweb.startswith(("http://", "https://")):
        raise UsageError(f"{dicomweb}: not an address; expected http://... or https://...")
    if any(find_spec(package) is None for package in ("fastapi", "uvicorn", "python_multipart", "dicomweb_client")):
        raise UsageError("the server needs more packages: pip install 'meddelinea[serve]'")
    with status("starting"):
        import uvicorn

        from meddelinea.serving.app import create_app
        from meddelinea.serving.connections import server_config
        from meddelinea.serving.guard import LOOPBACK_NAMES, Access, is_loopback
        from meddelinea.serving.limits import Limits

    made = False
    if token is not None and len(token) < TOKEN_CHARACTERS:
        raise UsageError(f"the token has {len(token)} characters; expected at least {TOKEN_CHARACTERS}")
    if token is None and (
        allow_host or not is_loopback(host)
    ):  # a host name means that others reach it through a proxy
        token, made = secrets.token_urlsafe(32), True
    access = Access(
        (*LOOPBACK_NAMES, host.lower(), *map(str.lower, allow_host or ())), host in ("0.0.0.0", "::"), token
    )
    limits = Limits(
        upload_bytes=upload_mib << 20,
        unpacked_bytes=unpacked_mib << 20,
        queue_length=queue_length,
        job_seconds=60.0 * job_minutes,
        learn_seconds=60.0 * learn_minutes,
        keep_hours=keep_hours,
    )
    with status("looking for the model"):
        read_model(model)
    place = _home() if folder is None else folder
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"cannot listen on {host} port {port} ({error.strerror}); choose another") from error
    with listening:
        app = create_app(place, model, device, access, limits, dicomweb)
        _log_to_stderr()
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{listening.getsockname()[1]}/"
        print(f"MedDelinea with model {model}: {address}{f'#token={token}' if made else ''}", flush=True)
        print(f"jobs are kept in {place} for {keep_hours:g} hours; Ctrl-C stops", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # this is how to stop the server
            uvicorn.Server(server_config(app)).run(sockets=[listening])


def _home() -> Path:
    """Where the jobs of this user are kept.

    Raises
    ------
    UsageError
        If the user has no home: a relative path would keep patients' scans wherever the server was started.
    """
    place = Path(typer.get_app_dir("meddelinea")) / "serve"
    if not place.is_absolute() or not os.environ.get("HOME", "unset"):
        raise UsageError(
            f"{place}: this user has no home folder to keep jobs in; expected one, or a folder; choose one",
            parameter="folder",
        )
    return place


def _log_to_stderr() -> None:
    """Log what the server reports about its jobs, by their ids, and nothing of libraries, which may quote scans."""
    logging.disable(logging.NOTSET)
    logging.getLogger().addHandler(logging.NullHandler())  # otherwise records without a handler go to stderr
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("meddelinea.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(level)
