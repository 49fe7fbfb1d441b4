"""The option `--modality` of commands that read a scan."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from meddelinea.errors import UsageError

if TYPE_CHECKING:
    from meddelinea.volume import Modality

MODALITY_HELP = "CT or MR, where the file does not say it (default: the model's)."


def read_modality(modality: str | None) -> Modality | None:
    """The modality that was typed, None where none was.

    Raises
    ------
    UsageError
        If it is neither CT nor MR.
    """
    if modality not in (None, "CT", "MR"):
        raise UsageError(f"unknown modality {modality!r}; expected CT or MR")
    return cast("Modality | None", modality)
