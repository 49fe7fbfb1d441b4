"""A refusal as one JSON object, for programs that read stdout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from meddelinea.errors import InputRefusedError


@contextmanager
def refusal_as_json(source: Path, *, wanted: bool) -> Iterator[None]:
    """Print what a refusal of `source` was raised for, if `wanted`, and let it end the command as ever."""
    try:
        yield
    except InputRefusedError as error:
        if wanted:
            findings = [asdict(finding) for finding in error.findings]
            document = {"input": str(source), "accepted": False, "findings": findings}
            print(json.dumps(document, indent=2, ensure_ascii=False))
        raise
