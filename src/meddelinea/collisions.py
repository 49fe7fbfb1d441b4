"""Which paths are one file: no output may take the place of a file that is needed, or of another output."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from meddelinea.errors import OutputClashError

#: What two paths share if they are one file, see `identities`.
Identity = tuple[int | str, ...]


def identities(path: Path) -> set[Identity]:
    """What a path shares with every other that is the same file, or may be.

    It is the file that stands there, whatever links lead to it, and the name in its folder, where letters' case and the
    way accents are composed do not count: on some file systems they do not.
    """
    found: set[Identity] = set()
    with suppress(OSError):
        there = path.stat()
        found.add((there.st_dev, there.st_ino))
    place = Path(os.path.realpath(path.parent)) / path.name  # of loops of links, too
    for folder in place.parents:
        with suppress(OSError):
            there = folder.stat()
            name = unicodedata.normalize("NFC", place.relative_to(folder).as_posix()).casefold()
            found.add((there.st_dev, there.st_ino, name))
            break
    return found


def require_apart(outputs: Iterable[Path], needed: Mapping[str, Iterable[Path]], model: Path | None = None) -> None:
    """Refuse outputs that share a file with each other, or with what the work needs.

    Parameters
    ----------
    outputs
        Each file to be written, once.
    needed
        What files are, such as `"the scan"` -> those files.
    model
        The model's folder, which nothing may be written into: its files say what it is. None where there is none.

    Raises
    ------
    OutputClashError
        With the first such output.
    """
    taken = {
        identity: (what, path) for what, paths in needed.items() for path in paths for identity in identities(path)
    }
    written: dict[Identity, Path] = {}
    folder = None if model is None else Path(os.path.realpath(model))
    for path in outputs:
        if folder is not None and Path(os.path.realpath(path.parent)).is_relative_to(folder):
            raise OutputClashError(
                f"{path}: lies in the model's folder {model}, whose files say what the model is; choose another folder",
                "output_clash",
            )
        for identity in identities(path):
            if identity in taken:
                what, other = taken[identity]
                raise OutputClashError(
                    f"{path}: would overwrite {what}: it is the file {other}; choose another folder or another name",
                    "output_clash",
                )
            other = written.setdefault(identity, path)
            if other is not path:
                raise OutputClashError(
                    f"two outputs share a file: {other} and {path}; choose another folder or another name for one",
                    "output_clash",
                )
