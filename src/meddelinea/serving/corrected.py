"""Corrected scans, kept as raw datasets of nnU-Net, which `meddelinea adapt` and `evaluate` read as well.

    Dataset001_CT/dataset.json
    Dataset001_CT/imagesTr/SCAN-JOB_0000.nii.gz
    Dataset001_CT/labelsTr/SCAN-JOB.nii.gz

A dataset holds scans of one modality whose masks name the same organs: what one of them leaves out is no background in
another. Of a scan that is corrected again, the later mask replaces the earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meddelinea.errors import InputRefusedError
from meddelinea.files import write_json
from meddelinea.io.volumes import write_volume
from meddelinea.json_files import read_object
from meddelinea.labels import renumber
from meddelinea.scan import Scan
from meddelinea.volume import Volume

#: Characters of a scan's fingerprint and of a job's id in the name of a case.
NAME_CHARACTERS = 12


@dataclass(frozen=True, kw_only=True)
class CorrectedDataset:
    """Corrected scans of one modality with the same organs; `changed` is in seconds since 1970."""

    name: str
    modality: str
    organs: tuple[str, ...]
    cases: tuple[str, ...]
    changed: float


@dataclass(frozen=True)
class CorrectedScans:
    """The corrected scans of a server, in a folder."""

    folder: Path

    def add(self, scan: Scan, mask: Volume, labels: Mapping[str, int], *, fingerprint: str, job: str) -> None:
        """Keep a scan with its mask, in the place of an earlier one of the same scan.

        Parameters
        ----------
        scan
            The scan, its modality known.
        mask, labels
            Label ids on its grid, and organ name -> id.
        fingerprint
            Of the scan.
        job
            Id of the correction, by which `remove` finds it.
        """
        organs = tuple(sorted(labels, key=lambda name: labels[name]))
        dataset = self._dataset_for(str(scan.modality), organs)
        ids = renumber(mask.array, {index: name for name, index in labels.items()}, organs)
        person = fingerprint[:NAME_CHARACTERS]
        earlier = _files(dataset, f"{person}-*")
        name = f"{person}-{job[:NAME_CHARACTERS]}"
        write_volume(scan.volume, dataset / "imagesTr" / f"{name}_0000.nii.gz", scan.forms)
        write_volume(Volume(ids, mask.affine), dataset / "labelsTr" / f"{name}.nii.gz", scan.forms)
        for path in earlier:
            if not path.name.startswith(name):
                path.unlink()
        _describe(dataset, str(scan.modality), organs)

    def remove(self, job: str) -> None:
        """Forget what a correction gave, where a later one has not replaced it."""
        for dataset in self._folders():
            found = _files(dataset, f"*-{job[:NAME_CHARACTERS]}")
            for path in found:
                path.unlink(missing_ok=True)
            if found:
                content = read_object(dataset / "dataset.json", "a dataset's description")
                _describe(dataset, *_kind(content))

    def all(self) -> list[CorrectedDataset]:
        """The datasets, the one that was changed last first."""
        found = []
        for dataset in self._folders():
            description = dataset / "dataset.json"
            modality, organs = _kind(read_object(description, "a dataset's description"))
            cases = sorted(path.name.removesuffix(".nii.gz") for path in (dataset / "labelsTr").glob("*.nii.gz"))
            changed = description.stat().st_mtime
            found.append(
                CorrectedDataset(
                    name=dataset.name, modality=modality, organs=organs, cases=tuple(cases), changed=changed
                )
            )
        return sorted(found, key=lambda dataset: dataset.changed, reverse=True)

    def path(self, name: str) -> Path:
        """The folder of a dataset; the name is only compared, never part of a path.

        Raises
        ------
        InputRefusedError
            If there is none of this name.
        """
        for dataset in self._folders():
            if dataset.name == name:
                return dataset
        raise InputRefusedError("there is no such dataset of corrected scans")

    def _folders(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob("Dataset*/dataset.json"))

    def _dataset_for(self, modality: str, organs: tuple[str, ...]) -> Path:
        """The dataset of a modality and organs, made if there is none."""
        numbers = [0]
        for dataset in self._folders():
            if _kind(read_object(dataset / "dataset.json", "a dataset's description")) == (modality, organs):
                return dataset
            numbers.append(int(dataset.name.removeprefix("Dataset")[:3]))
        made = self.folder / f"Dataset{max(numbers) + 1:03d}_{modality}"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in ("imagesTr", "labelsTr"):
            (made / part).mkdir(parents=True, exist_ok=True)
        return made


def _files(dataset: Path, name: str) -> list[Path]:
    return [*(dataset / "imagesTr").glob(f"{name}_0000.nii.gz"), *(dataset / "labelsTr").glob(f"{name}.nii.gz")]


def _kind(content: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Modality and organs of a dataset."""
    return content["channel_names"]["0"], tuple(name for name in content["labels"] if name != "background")


def _describe(dataset: Path, modality: str, organs: tuple[str, ...]) -> None:
    write_json(
        {
            "channel_names": {"0": modality},
            "labels": {"background": 0, **{name: number for number, name in enumerate(organs, start=1)}},
            "numTraining": len(list((dataset / "labelsTr").glob("*.nii.gz"))),
            "file_ending": ".nii.gz",
        },
        dataset / "dataset.json",
    )
