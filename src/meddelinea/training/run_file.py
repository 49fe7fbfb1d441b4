"""Run files: YAML with the settings of a training run, over those of another file and under those of the caller."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from meddelinea.errors import InputRefusedError, UsageError, reason_of
from meddelinea.training.config import RunConfig, check, laid_over


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a run file and apply `key=value` overrides; dots reach into sections, values are YAML.

    A file may name another in `extends`, relative to itself: its own settings are laid over that one's.

    Raises
    ------
    InputRefusedError
        If the file cannot be read.
    UsageError
        If a key is unknown, a value out of range, or settings contradict each other.
    """
    content = _read(path, ())
    for override in overrides:
        _override(content, override)
    return check(content, str(path))


class _Loader(yaml.SafeLoader):
    """Takes `1e-3` for a number as YAML 1.2 does; YAML 1.1 takes it for a text."""


_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _read(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """A run file's settings over those of the file that it extends."""
    if path.resolve() in extended_by:
        raise InputRefusedError(f"{path}: extends itself; name another file in 'extends'")
    try:
        content: Any = yaml.load(path.read_text(), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputRefusedError(f"{path}: not a readable YAML file ({reason_of(error)})") from error
    if not isinstance(content, dict):
        raise InputRefusedError(f"{path}: expected a mapping of settings, got {type(content).__name__}")
    if "extends" not in content:
        return content
    ground = _read(path.parent / str(content.pop("extends")), (*extended_by, path.resolve()))
    return laid_over(ground, content)


def _override(content: dict[str, Any], override: str) -> None:
    """Apply one `key=value`; sections that the file leaves out or empty are made."""
    key, equals, value = override.partition("=")
    if not key or not equals:
        raise UsageError(f"{override}: expected key=value", parameter="overrides")
    *outer, last = key.split(".")
    section = content
    for name in outer:
        if section.get(name) is None:
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise UsageError(
                f"{override}: {name} is a single value ({section!r}), not a section", parameter="overrides"
            )
    try:
        section[last] = yaml.load(value, _Loader)
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{override}: the value is not YAML", parameter="overrides") from error
