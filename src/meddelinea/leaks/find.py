"""Test cases that a model was trained on, found by their fingerprints: no scan of the training set is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from meddelinea.data.fingerprint import fingerprint, read_sketch, sketch, sketch_shape
from meddelinea.data.likeness import LEAST_MARKS, likenesses
from meddelinea.data.store import read_manifest
from meddelinea.data.training_cases import SeenScan, TrainingCases, seen_scans
from meddelinea.errors import InputRefusedError
from meddelinea.folders.found import scan_files
from meddelinea.io.volumes import read_volume
from meddelinea.segmentation.model import model_folder

Role = Literal["train", "validation", "stored"]
#: Above this share of voxels that equal their neighbour, a volume shows labels: a scan's noise keeps it below a third.
LABEL_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class KnownScan(SeenScan):
    """A scan that a model has seen or a store holds, and where."""

    source: str  # the model or store, as the user named it
    role: Role  # `train` or `validation` for a model's cases; `stored` for a store's, whose use is not known


@dataclass(frozen=True)
class Leak:
    """A test case and the known scan that it is a copy of."""

    case: str  # path of the test case below the folder that was checked
    known: KnownScan  # the scan that it is a copy of
    #: `exact`: the same grey values; `robust`: the same scan, resampled, cropped, windowed or mirrored.
    kind: Literal["exact", "robust"]
    likeness: float  # 1.0 for an exact copy, else `data.likeness.likeness`


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """Which cases were tested, which of them are copies, and why the others were not tested (path -> reason)."""

    tested: tuple[str, ...]  # all test cases that could be read
    leaks: tuple[Leak, ...]  # in order of the cases; a case may copy more than one known scan
    exact_only: tuple[str, ...]  # cases too small or too even for a sketch: only exact copies of them were looked for
    skipped: Mapping[str, str]  # masks and files that are no scans
    failed: Mapping[str, str]  # files that could not be read

    def leaked(self, *roles: Role) -> int:
        """Number of test cases that copy a scan of one of these roles."""
        return len({leak.case for leak in self.leaks if leak.known.role in roles})


def known_scans(against: str) -> tuple[KnownScan, ...]:
    """The scans of a slice store's folder, a model's folder, or a shipped model by its name.

    Raises
    ------
    InputRefusedError
        If the store cannot be read or a sketch in it or in the model is damaged.
    WeightsMissingError
        If it is neither a store nor a model, or the model does not name its training cases.
    """
    if (Path(against) / "store.json").is_file():
        seen: dict[Role, tuple[SeenScan, ...]] = {"stored": seen_scans(map(vars, read_manifest(Path(against)).cases))}
    else:
        cases = TrainingCases.read(model_folder(against))
        seen = {"train": cases.train, "validation": cases.validation}
    scans = tuple(KnownScan(**vars(scan), source=against, role=role) for role, part in seen.items() for scan in part)
    for scan in scans:
        try:
            sketch_shape(scan.sketch or "1:1x1x1:")
        except ValueError as error:
            raise InputRefusedError(f"{against}: case {scan.name}: {error}; prepare or train it again") from error
    return scans


def find_leaks(source: Path, known: Sequence[KnownScan]) -> LeakReport:
    """Compare the scans of a folder with known ones.

    Parameters
    ----------
    source
        A scan, or a folder of scans: NIfTI, NRRD, zips and DICOM folders, also in folders of it; masks are skipped.
    known
        The scans to compare with, from `known_scans`.

    Raises
    ------
    InputRefusedError
        If no scan is found in `source`.
    """
    files = scan_files(source)
    skipped = {_below(path, source): "not a volume file" for path in files.others}
    tested, leaks, exact_only, failed = [], [], [], {}
    for path in files.scans:
        case = _below(path, source)
        try:
            volume = read_volume(path)
        except InputRefusedError as error:
            if error.code == "no_scan":
                skipped[case] = "DICOM files without a scan"
            else:
                failed[case] = str(error)
            continue
        if is_label_map(volume.array):
            skipped[case] = "a mask, not a scan"
            continue
        tested.append(case)
        print_ = fingerprint(volume)
        exact = [Leak(case, scan, "exact", 1.0) for scan in known if scan.fingerprint == print_]
        if exact:
            leaks.extend(exact)
            continue
        drawn = sketch(volume)
        if np.count_nonzero(read_sketch(drawn)) < LEAST_MARKS:
            exact_only.append(case)
        leaks.extend(_robust_leaks(case, drawn, known))
    return LeakReport(
        tested=tuple(tested), leaks=tuple(leaks), exact_only=tuple(exact_only), skipped=skipped, failed=failed
    )


def _robust_leaks(case: str, drawn: str, known: Sequence[KnownScan]) -> list[Leak]:
    """Known scans that a sketch is a copy of, the most alike first."""
    sketched = [scan for scan in known if scan.sketch]
    alike = likenesses(drawn, [scan.sketch or "" for scan in sketched])
    leaks = [Leak(case, scan, "robust", float(s)) for scan, s in zip(sketched, alike, strict=True) if s > 0]
    return sorted(leaks, key=lambda leak: -leak.likeness)


def _below(path: Path, source: Path) -> str:
    return path.name if path == source else path.relative_to(source).as_posix()


def is_label_map(array: NDArray[np.generic]) -> bool:
    """Whether a volume shows labels and not grey values.

    Labels are at most 256 whole numbers from 0 up that mostly equal their neighbour; the commonest value is left out,
    as a scan's air may be as even as a mask's background. A volume of one value counts as an empty mask.
    """
    values = np.asarray(array[:, ::2, ::2])
    if not np.array_equal(values, np.rint(values)) or values.min() < 0:  # also where values are not finite
        return False
    names, counts = np.unique(values, return_counts=True)
    if len(names) == 1:
        return True
    first, second = values[:-1], values[1:]
    looked_at = first != names[counts.argmax()]
    same = np.count_nonzero((first == second) & looked_at)
    return bool(len(names) <= 256 and same > LABEL_SHARE * np.count_nonzero(looked_at))
