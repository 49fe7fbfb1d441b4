"""`training_cases.json` in a model's folder: which scans it was trained on, chosen by and tested on.

Each scan is known by the SHA-256 of its grey values and by a sketch (`data.fingerprint`), so that a leak into a test
set can be found without the training scans.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import dataclasses as checked

from meddelinea.data.store import SliceStore
from meddelinea.errors import WeightsMissingError, reason_of
from meddelinea.files import write_json
from meddelinea.json_files import read_json
from meddelinea.version import __version__

FILE = "training_cases.json"


@checked.dataclass(frozen=True)
class SeenScan:
    """A scan that a model has seen."""

    #: Name of the case, and key of its dataset.
    name: str
    dataset: str
    #: See `data.fingerprint`; models of older versions have no sketch.
    fingerprint: str
    sketch: str | None = None


@dataclass(frozen=True)
class TrainingCases:
    """The scans of a model by what they were used for."""

    train: tuple[SeenScan, ...]  # trained on, by the model itself or by what it was started from
    validation: tuple[SeenScan, ...]  # the model was chosen by its masks of them
    test: tuple[SeenScan, ...] = ()  # only measured on, at the end of the run

    @classmethod
    def of_stores(cls, train: SliceStore, validation: SliceStore, test: SliceStore) -> TrainingCases:
        """The cases of a run's three stores."""
        return cls(*(seen_scans(map(vars, store.cases)) for store in (train, validation, test)))

    @classmethod
    def read(cls, folder: Path) -> TrainingCases:
        """Read the file of a model's folder.

        Raises
        ------
        WeightsMissingError
            If it is missing or has another form.
        """
        path = folder / FILE
        try:
            roles = {"test": [], **read_json(path)}
            return cls(*(seen_scans(roles[role]) for role in ("train", "validation", "test")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsMissingError(
                f"{path}: does not name the training cases ({reason_of(error)}); install or train the model again"
            ) from error

    def after(self, earlier: Iterable[SeenScan]) -> TrainingCases:
        """The same with the scans that the components were trained on which the model was started from."""
        own = {scan.fingerprint for scan in self.train}
        inherited: dict[str, SeenScan] = {}
        for scan in earlier:
            if scan.fingerprint not in own:
                inherited.setdefault(scan.fingerprint, scan)
        return replace(self, train=(*self.train, *inherited.values()))

    def write(self, folder: Path) -> None:
        """Write the file into a model's folder."""
        write_json({"meddelinea": __version__, **asdict(self)}, folder / FILE)


def seen_scans(cases: Iterable[dict[str, Any]]) -> tuple[SeenScan, ...]:
    """The scans of cases as a store or `training_cases.json` describes them."""
    return tuple(SeenScan(case["name"], case["dataset"], case["fingerprint"], case.get("sketch")) for case in cases)
