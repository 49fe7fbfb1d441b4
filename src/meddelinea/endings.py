"""The names of files: the endings that tell their formats, and what is left without them."""

from __future__ import annotations

from pathlib import Path

from meddelinea.errors import InputRefusedError

#: Endings of the volume files that are written.
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
#: Endings of the volume files that are read; those of a header stand for the voxels beside it too.
READ_SUFFIXES = (*VOLUME_SUFFIXES, ".nhdr", ".mhd", ".hdr")
#: Endings of the files that hold one scan each.
SCAN_SUFFIXES = (*READ_SUFFIXES, ".zip")
#: Endings that a mask may have.
MASK_SUFFIXES = (*VOLUME_SUFFIXES, ".dcm")


def ending(path: Path, suffixes: tuple[str, ...]) -> str | None:
    """The one of `suffixes`, in lower case, that a file's name ends in; None where it has none of them, or no stem."""
    name = path.name.lower()
    return next((suffix for suffix in suffixes if name.endswith(suffix) and len(name) > len(suffix)), None)


def stem(path: Path, suffixes: tuple[str, ...] = SCAN_SUFFIXES) -> str:
    """A file's name without its ending: `scan.nii.gz` -> `scan`; the whole name where it has none of `suffixes`."""
    return path.name[: len(path.name) - len(ending(path, suffixes) or "")]


def visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, but for hidden entries: macOS leaves `._name.nii.gz` beside each file it packs."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files directly in a folder that end in one of `suffixes`, by their stem; none if there is no such folder.

    Raises
    ------
    InputRefusedError
        If two files differ in their ending only.
    """
    found: dict[str, Path] = {}
    for path in visible(folder) if folder.is_dir() else ():
        if ending(path, suffixes) is None:
            continue
        other = found.setdefault(stem(path, suffixes), path)
        if other is not path:
            raise InputRefusedError(f"{path} and {other.name}: two files of one name; keep one of them")
    return found
