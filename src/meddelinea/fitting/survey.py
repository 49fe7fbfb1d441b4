"""What a dataset is like: a few numbers of each case, from one pass by workers that hold one scan at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from meddelinea.checks.limits import Plane, slice_plane
from meddelinea.checks.scan import traits
from meddelinea.data.case import Case, LabelledScan, read_case
from meddelinea.data.datasets import FORMATS, find_cases, organs_of
from meddelinea.data.fingerprint import fingerprint, sketch
from meddelinea.data.preprocess import ORIENTATION, Preprocessing, air_level, body_corners_mm
from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.findings import Finding
from meddelinea.pool.local import in_this_process
from meddelinea.pool.pool import Engine, Progress
from meddelinea.scan import Modality
from meddelinea.volume import Volume

#: Layouts by how particular they are: the first that finds complete cases in a folder is the folder's. `chaos-nifti`,
#: which takes images of any name, is the last.
BY_PARTICULARITY = (
    *("amos", "nnunet", "msd", "btcv", "pairs", "chaos", "totalsegmentator", "abdomenatlas", "pansegdata", "cirrmri"),
    "chaos-nifti",
)
#: Voxels of an organ whose grey values are looked at.
GREY_SAMPLE = 100_000

#: To the patient's left, to the back, to the head.
Along = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class OrganFacts:
    """An organ in a case."""

    ml: float  # volume
    surface_mm2: float  # of the faces of its voxels
    centre_mm: Along  # from the middle of the field of view
    slices: int  # axial slices that show it
    grey: tuple[float, float, float]  # 0.5th, 50th and 99.5th percentile of the grey values in it


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """A case that can be read, as far as a plan depends on it."""

    #: As of `data.case.Case`, and the robust and the exact fingerprint of `data.fingerprint`.
    name: str
    dataset: str
    patient: str
    modality: Modality
    fingerprint: str
    sketch: str
    #: Its grid, with axes to the left, to the back and to the head; and the plane of slices that lie far apart.
    shape: tuple[int, int, int]
    spacing_mm: Along
    plane: Plane | None
    body_mm: tuple[float, float]  # how far the largest thing that is not air reaches, to the left and to the back
    refusal: Finding | None  # why its grey values cannot be those of its modality
    remarks: tuple[str, ...]
    shown: int  # axial slices that show an organ
    organs: Mapping[str, OrganFacts]  # those that it shows, by canonical name

    @property
    def field_mm(self) -> Along:
        """How far its voxels' centres reach."""
        left, back, head = ((n - 1) * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True))
        return left, back, head


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A dataset: its cases, and what is wrong with those that cannot be read, name -> reason."""

    layout: str
    source: Path
    organs: tuple[str, ...]  # that its labels name, whether a case shows them or not
    cases: tuple[CaseFacts, ...]
    broken: Mapping[str, str]


def survey(
    layout: str,
    source: Path,
    *,
    engine: Engine[Case, CaseFacts] = in_this_process,
    progress: Callable[[int, int, str], None] | None = None,
) -> Survey:
    """Look at every case of a dataset once.

    Parameters
    ----------
    layout
        One of `data.datasets.FORMATS`.
    engine
        Where, as of `prepare_store`.
    progress
        Called with (cases done, cases in all, name of the last one).

    Raises
    ------
    UsageError
        If the layout is unknown.
    InputRefusedError
        If no case is found.
    """
    found = find_cases(layout, source)
    organs, broken, facts = organs_of(found.cases), dict(found.broken), []
    with closing(engine(partial(_Looker, organs=organs), found.cases, lambda *step: None)) as outcomes:
        for done, outcome in enumerate(outcomes, start=1):
            if outcome.answer is None:
                broken[outcome.item.name] = outcome.reason
            else:
                facts.append(outcome.answer)
            if progress is not None:
                progress(done, len(found.cases), outcome.item.name)
    cases = tuple(sorted(facts, key=lambda case: case.name))
    return Survey(layout=layout, source=source, organs=organs, cases=cases, broken=dict(sorted(broken.items())))


def layout_of(source: Path) -> str:
    """The layout of a dataset's folder: the most particular one in which it holds complete cases.

    Raises
    ------
    InputRefusedError
        If it is a folder of none.
    """
    if source.is_dir():
        for layout in BY_PARTICULARITY:
            try:
                if find_cases(layout, source).cases:
                    return layout
            except MedDelineaError:  # another one's
                continue
    raise InputRefusedError(
        f"{source}: no dataset in a known layout ({', '.join(sorted(FORMATS))}); put scans into images/ and masks of "
        'the same names into labels/, with labels.json, {"modality": "CT", "labels": {"liver": 1}}, beside them',
        parameter="layout",
    )


class _Looker:
    """What a worker does with a case; the one that is pending waits, or a worker would need the memory of two."""

    def __init__(self, threads: int | None, *, organs: tuple[str, ...]) -> None:
        self.writing = threading.Lock()  # nothing is written
        self._turn = threading.Lock()
        self._organs = organs

    def __call__(self, case: Case, progress: Progress) -> CaseFacts:
        with self._turn:
            return facts_of(case, read_case(case, self._organs))


def facts_of(case: Case, labelled: LabelledScan) -> CaseFacts:
    """What a plan depends on, of a case that is in memory."""
    scan = labelled.scan
    image, mask = (volume.reorient(ORIENTATION) for volume in (labelled.volume, labelled.mask))
    found = traits(scan, {})  # refuses what is no number, which the percentiles below would stumble over
    organs: dict[str, OrganFacts] = {}
    body_mm = image.array.shape[0] * image.spacing_mm[0], image.array.shape[1] * image.spacing_mm[1]
    if found.refusal is None or found.refusal.code not in ("not_numbers", "not_finite", "constant"):
        body = np.ptp(body_corners_mm(image, air_level(scan, Preprocessing())), axis=0)
        body_mm = float(body[0]), float(body[1])
        organs = _organs(image, mask, labelled.organs)
    return CaseFacts(
        name=case.name,
        dataset=case.dataset,
        patient=case.patient,
        modality=case.modality,
        fingerprint=fingerprint(scan.volume),
        sketch=sketch(scan.volume),
        shape=image.shape,
        spacing_mm=image.spacing_mm,
        plane=slice_plane(scan.volume),
        body_mm=body_mm,
        refusal=found.refusal,
        remarks=labelled.remarks,
        shown=int(np.count_nonzero(mask.array.any(axis=(0, 1)))),
        organs=organs,
    )


def _organs(image: Volume, mask: Volume, names: tuple[str, ...]) -> dict[str, OrganFacts]:
    """Of each organ that a mask shows, its axes to the left, to the back and to the head."""
    spacing = np.array(mask.spacing_mm)
    middle = (np.array(mask.shape) - 1) / 2
    facts = {}
    for name, box in zip(names, ndimage.find_objects(mask.array, len(names)), strict=True):
        if box is None:
            continue
        inside = mask.array[box] == names.index(name) + 1
        voxels = int(np.count_nonzero(inside))
        along = [inside.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]  # voxels of each plane, by axis
        centre = [s.start + float(n @ np.arange(len(n))) / voxels for s, n in zip(box, along, strict=True)]
        grey = image.array[box][inside]
        low, middle_grey, high = np.percentile(grey[:: max(1, len(grey) // GREY_SAMPLE)], (0.5, 50.0, 99.5))
        left, back, head = (float(mm) for mm in (np.array(centre) - middle) * spacing)
        facts[name] = OrganFacts(
            ml=voxels * mask.voxel_ml,
            surface_mm2=_surface_mm2(inside, spacing),
            centre_mm=(left, back, head),
            slices=int(np.count_nonzero(along[2])),
            grey=(float(low), float(middle_grey), float(high)),
        )
    return facts


def _surface_mm2(inside: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> float:
    """Area of the faces between voxels inside and outside."""
    around = np.pad(inside, 1)
    faces = [np.count_nonzero(np.diff(around, axis=axis)) for axis in range(3)]  # of bools: where two differ
    return float(np.dot(faces, np.prod(spacing_mm) / spacing_mm))
