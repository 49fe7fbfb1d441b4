"""JSON as text, and from files that users give."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meddelinea.errors import InputRefusedError

#: A JSON file that is larger is not read: the training cases of ten thousand scans take this much.
MAX_JSON_BYTES = 64 << 20


def json_text(document: Mapping[str, Any]) -> str:
    """`document` as the JSON that `write_json` writes."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path, most_bytes: int = MAX_JSON_BYTES) -> Any:
    """The content of a UTF-8 JSON file, with one value for each key.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, is larger than `most_bytes`, or is not JSON: the caller knows what the file is for and
        says what to do.
    """
    if path.exists() and not path.is_file():  # a pipe may never end
        raise ValueError("not a file")
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"larger than {most_bytes >> 20} MiB")
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_once_each)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_object(path: Path, expected: str) -> dict[str, Any]:
    """The content of a JSON file that a user gives, which holds an object.

    Parameters
    ----------
    expected
        What it should hold, for the message.

    Raises
    ------
    InputRefusedError
        If it cannot be read, or holds something else.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise InputRefusedError(f"{path}: not readable as JSON ({error}); expected {expected}") from error
    if not isinstance(content, dict):
        raise InputRefusedError(f"{path}: a JSON {type(content).__name__}; expected {expected}")
    return content


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: of two values for one, readers would take this one or that."""
    content = dict(pairs)
    if len(content) != len(pairs):
        most, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{most[:60]!r} occurs twice")
    return content
