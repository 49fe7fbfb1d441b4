"""The models that jobs may choose: the server's own, and those that learnt from corrected scans."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from meddelinea.errors import WeightsMissingError
from meddelinea.segmentation.model import ModelFiles, read_model_files

#: How the folder of a model is called that has learnt.
_LEARNT = re.compile(r"adapted-([0-9]{1,6})")


class Models:
    """The models of a server, by name. A request's name is looked up and never part of a path.

    Parameters
    ----------
    folder
        Where models are kept that have learnt.
    own
        Name or folder of the server's own model, see `model_folder`.

    Raises
    ------
    WeightsMissingError
        If there is no such model.
    """

    def __init__(self, folder: Path, own: str) -> None:
        self.folder = folder
        self.own = read_model_files(own)
        self._source = self.own.name if self.own.on_hub else own
        self._read: dict[str, ModelFiles] = {}

    def names(self) -> list[str]:
        """All names: the server's own first, then the others in the order in which they learnt."""
        return [self.own.name, *(name for _, name in sorted(learnt_models(self.folder)) if name != self.own.name)]

    def find(self, name: str = "") -> ModelFiles:
        """What a model's files say; of the server's own for an empty name.

        Raises
        ------
        WeightsMissingError
            If there is no model of this name, or none any more.
        """
        if name in ("", self.own.name):
            return self.own
        if name not in self.names():
            raise WeightsMissingError(f"no such model; this server has {', '.join(self.names())}")
        if name not in self._read:
            self._read[name] = read_model_files(self.folder / name)
        return self._read[name]

    def source(self, name: str = "") -> str:
        """What a worker loads a model by."""
        found = self.find(name)
        return self._source if found is self.own else str(found.folder)

    def remove(self, name: str) -> None:
        """Delete a model that has learnt.

        Raises
        ------
        WeightsMissingError
            If there is none of this name.
        """
        folder = self.find(name).folder
        if folder.parent != self.folder:
            raise WeightsMissingError("the server's own model is not deleted")
        self._read.pop(name, None)
        shutil.rmtree(folder)


def learnt_models(folder: Path) -> list[tuple[int, str]]:
    """Number and name of each model that has learnt."""
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return [(int(found[1]), name) for name in names if (found := _LEARNT.fullmatch(name))]
