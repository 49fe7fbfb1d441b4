"""Test cases of a paper's benchmark with the masks that its methods have of them, for figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meddelinea.benchmark.figures.panels import PanelRow
from meddelinea.benchmark.figures.surfaces import SurfaceRow
from meddelinea.benchmark.held_out import ShowProgress
from meddelinea.benchmark.paper_file import PaperBench
from meddelinea.benchmark.paper_run import open_setting, trial_folder
from meddelinea.data.case import LabelledScan, read_case
from meddelinea.data.store import read_manifest
from meddelinea.errors import InputRefusedError
from meddelinea.io.volumes import read_volume
from meddelinea.labels import LabelIds, organ_ids, renumber
from meddelinea.results.figures import grey_window, section, telling_slices
from meddelinea.scan import Modality
from meddelinea.volume import Volume

#: Cases of a setting that are drawn where none is named.
CASES = 2


@dataclass(frozen=True)
class FigureCase:
    """A test case of a setting, and what methods made of it: ids 1..L of `labelled.organs` in all masks."""

    setting: str
    labelled: LabelledScan
    masks: Mapping[str, Volume]

    @property
    def name(self) -> str:
        return f"{self.labelled.scan.name}\n{self.setting}"

    def panel(self, index: int | None, organ: str | None) -> PanelRow:
        """An axial slice, from the feet at 0; where None, that which shows the organ, or all organs, best."""
        image, truth = self.labelled.volume.reorient("LAS"), self.labelled.mask.reorient("LAS")
        index = telling_slice(truth.array, self.labelled.organs, organ) if index is None else index
        require_slice(index, truth.shape[2])
        masks = {method: mask.reorient("LAS") for method, mask in self.masks.items()}
        return PanelRow(
            name=f"{self.name}, slice {index}",
            truth=section(image, truth, "axial", index),
            masks={method: section(image, mask, "axial", index).mask for method, mask in masks.items()},
            window=grey_window(image, self.labelled.scan.modality),
        )

    def surface(self) -> SurfaceRow:
        return SurfaceRow(self.name, self.labelled.mask, self.masks)


def figure_cases(
    bench: PaperBench,
    output: Path,
    title: str,
    methods: Sequence[str],
    *,
    organs: tuple[str, ...],
    named: str | None,
    modality: Modality | None,
    progress: ShowProgress,
) -> Iterator[FigureCase]:
    """The test cases of a setting that are drawn: the one that is named, or the first of the modality.

    Parameters
    ----------
    organs
        Behind the ids of all masks. Those that the setting's dataset has no labels of are in no mask.
    """
    _, _, tested = open_setting(bench, title, output, progress)
    of_modality = [case for case in tested if modality in (None, case.modality)]
    chosen = of_modality[:CASES] if named is None else [case for case in of_modality if case.name == named]
    known = read_manifest(bench.datasets[bench.settings[title].dataset].store).organs
    for case in chosen:
        labelled = read_case(case, organs)
        masks = {}
        for method in methods:
            path = trial_folder(output, title, method) / "masks" / f"{case.name}.nii.gz"
            if path.is_file():
                ids = LabelIds.read(path.with_name("labels.json")).one_each()
                names = {index: name if name in known else "" for name, index in ids.items()}
                mask = read_volume(path)
                masks[method] = Volume(renumber(mask.array.astype(np.uint8), names, organs), labelled.mask.affine)
        yield FigureCase(title, labelled, masks)


def organs_of(bench: PaperBench, titles: Sequence[str]) -> tuple[str, ...]:
    """The organs of the settings' datasets, as far as they are at hand."""
    stores = [bench.datasets[bench.settings[title].dataset].store for title in titles]
    held = [read_manifest(store).organs for store in stores if (store / "cases.jsonl").is_file()]
    return tuple(dict.fromkeys(organ for organs in held for organ in organs))


def telling_slice(truth: NDArray[np.uint8], organs: tuple[str, ...], organ: str | None) -> int:
    """The slice (along the last axis) that shows the organ best; all organs where None."""
    shown = truth if organ is None else truth * (truth == organ_id(organs, organ))
    return telling_slices(shown, 2, 1)[0]


def organ_id(organs: tuple[str, ...], organ: str) -> int:
    """The id of an organ, 1..L of `organs`.

    Raises
    ------
    InputRefusedError
        If it is none of them.
    """
    if organ not in organs:
        raise InputRefusedError(f"{organ}: expected one of {', '.join(organs)}", "unknown_organ", parameter="organ")
    return organ_ids(organs)[organ]


def require_slice(index: int, count: int) -> None:
    """Refuse a slice that a scan of so many does not have."""
    if not 0 <= index < count:
        raise InputRefusedError(f"slice {index}; expected 0 to {count - 1}", parameter="slice")
