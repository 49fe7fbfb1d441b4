"""A mask that a person has corrected to a result of its own, in a worker's process."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meddelinea.data.fingerprint import fingerprint
from meddelinea.errors import InputRefusedError, MedDelineaError
from meddelinea.evaluation.metrics import dice
from meddelinea.io.room import at_most
from meddelinea.io.seg_nrrd import is_seg_nrrd, read_seg_nrrd, segment_numbers
from meddelinea.io.volumes import read_volume
from meddelinea.labels import LabelIds
from meddelinea.scan import Scan
from meddelinea.serving.corrected import CorrectedScans
from meddelinea.serving.job import JobOutcome, JobRequest, ResultFile, Trouble
from meddelinea.serving.limits import Limits
from meddelinea.serving.reading import answer_to, describe, read_upload
from meddelinea.serving.uploads import screen
from meddelinea.version import __version__
from meddelinea.volume import Volume

#: The largest id that a mask can hold.
LARGEST_ID = 255
#: Ending of a mask that is nothing but voxels, a byte each, in the order of DICOM: OHIF's.
RAW = ".bin"


@dataclass(frozen=True, kw_only=True)
class OrganCorrection:
    """What a person changed of an organ.

    Parameters
    ----------
    added_voxels, removed_voxels
        Voxels that it has now and had not before, and the reverse.
    added_ml, removed_ml
        Their volume in millilitres.
    dice
        Dice overlap of its mask before and now, 0 to 1; None if it was found in neither.
    """

    added_voxels: int
    removed_voxels: int
    added_ml: float
    removed_ml: float
    dice: float | None


def correct_mask(
    folder: Path, scan: Path, request: JobRequest, *, parent: Path, kept: CorrectedScans, limits: Limits
) -> JobOutcome | Trouble:
    """Read the mask that was sent, say what it changes, write it in every format, and keep it to learn from.

    Parameters
    ----------
    folder
        The job's folder, which holds the mask as `correction.*`.
    scan
        The scan as it was uploaded.
    request
        What its author says: the names of the ids, and a comment.
    parent
        Folder of the job whose mask was corrected; nothing in it is changed.
    kept
        Where corrected scans are kept.
    limits
        `unpacked_bytes` of them.

    Returns
    -------
    JobOutcome or Trouble
        `done`, or `refused` where the mask is none of this scan, or what the server lacks.
    """
    sent = next(folder.glob("correction.*"))
    try:
        return _correct(sent, scan, request, parent=parent, kept=kept, limits=limits)
    except (MedDelineaError, OSError) as error:
        return answer_to(error, sent)


def _correct(
    sent: Path, upload: Path, request: JobRequest, *, parent: Path, kept: CorrectedScans, limits: Limits
) -> JobOutcome:
    from meddelinea.results.result import Result
    from meddelinea.segmentation.predict import Segmentation
    from meddelinea.serving.segmenting import write_results

    # The scan, its modality as that of its segmentation, and both masks on its grid.
    scan = read_upload(upload, limits)
    scan = replace(scan, modality=scan.modality or request.modality)
    if not (parent / "mask.nii.gz").is_file():
        raise InputRefusedError("the result that was corrected has been deleted; segment the scan again")
    before, labels_before = read_volume(parent / "mask.nii.gz"), LabelIds.read(parent / "mask.json").one_each()
    mask, labels = read_correction(sent, scan, request, labels_before=labels_before, limits=limits)

    # What it is now, in every format, by a person and no model alone.
    changes = compare(mask, labels, before, labels_before)
    made = Segmentation(
        mask=mask,
        labels=labels,
        model=f"{request.model}, corrected by a person",
        version=__version__,
        steps=None,
        scheduler=None,
        samples=None,
        seed=0,
        seconds=0.0,
        corrected=True,
    )
    result, person = Result.of(scan, made), fingerprint(scan.volume)
    document = {"parent": request.parent, "comment": request.comment, "changes": changes}
    files = write_results(result, "", sent.parent, {"correction": document})
    if (parent / "uncertainty.nii.gz").is_file():  # which says where to look, before and after
        shutil.copy(parent / "uncertainty.nii.gz", sent.parent)
        files.append(ResultFile("uncertainty", "uncertainty.nii.gz", "Uncertainty of the model in per cent (NIfTI)"))
    kept.add(scan, mask, labels, fingerprint=person, job=sent.parent.name)
    sent.unlink()
    outcome = JobOutcome(
        state="done",
        warnings=tuple(finding.message for finding in result.findings),
        scan=person,
        files=tuple(files),
        changes=changes,
    )
    return describe(scan, outcome)


def read_correction(
    sent: Path, scan: Scan, request: JobRequest, *, labels_before: Mapping[str, int], limits: Limits
) -> tuple[Volume, dict[str, int]]:
    """A mask that was sent, as uint8 ids on the grid of its scan, and the names of the ids.

    Parameters
    ----------
    sent
        NIfTI, NRRD, MetaImage, a segmentation of Slicer's (`.seg.nrrd`), or raw bytes.
    request
        Names of the ids, if its sender gave any. A segmentation of Slicer's has its own.
    labels_before
        Organ name -> id in the mask before, for a mask without other names.

    Raises
    ------
    InputRefusedError
        If it lies on another grid, holds no whole numbers, an id without a name or one above `LARGEST_ID`.
    """
    own: Mapping[str, int] | None = None
    if sent.suffix == RAW:
        mask = _raw(sent, scan)
    else:
        screen(sent, limits.unpacked_bytes)
        with at_most(limits.unpacked_bytes):
            own = segment_numbers(sent) if is_seg_nrrd(sent) else None
            mask = read_volume(sent) if own is None else read_seg_nrrd(sent, own)
    placed = mask.onto(scan.volume.affine, scan.volume.shape)
    if placed is None:
        size, expected = (" x ".join(map(str, volume.shape)) for volume in (mask, scan.volume))
        raise InputRefusedError(
            f"the mask ({size} voxels) does not lie on the grid of its scan ({expected}); expected the same voxels; "
            "export it with the scan as reference"
        )
    ids = _whole_numbers(placed.array)
    present = set(np.unique(ids).tolist()) - {0}
    listed_names = names_in_order(request.label_info, present) if request.label_info and own is None else None
    names = LabelIds.of(dict(own or listed_names or request.labels or labels_before), "the labels").one_each()
    unknown = sorted(present - set(names.values()))
    if unknown:
        listed = ", ".join(map(str, unknown[:5]))
        raise InputRefusedError(f"the mask holds ids {listed} without a name; expected some of {_listed(names)}")
    if not all(0 < index <= LARGEST_ID for index in names.values()):
        raise InputRefusedError(f"the labels are {_listed(names)}; expected ids from 1 to {LARGEST_ID}")
    return Volume(ids.astype(np.uint8), scan.volume.affine), names


def names_in_order(entries: Sequence[Mapping[str, Any]], ids: set[int]) -> dict[str, int]:
    """Names of the ids of a mask by the list that clients of MONAI Label send, `[{"name": "liver", "idx": 1}, ...]`.

    Slicer counts `idx` over all segments and the ids of the mask over those that it sends, so that the two differ where
    it leaves one out. The ids that occur must leave one reading.

    Raises
    ------
    InputRefusedError
        If it is no such list, or allows two readings or none.
    """
    form = '[{"name": "liver", "idx": 1}, ...]'
    if not all(isinstance(each, dict) and "name" in each for each in entries):
        raise InputRefusedError(f"label_info is not a list of names; expected {form}")
    in_order = {str(each["name"]): number for number, each in enumerate(entries, start=1)}
    stated = {str(each["name"]): each.get("idx", number) for number, each in enumerate(entries, start=1)}
    if len(in_order) < len(entries) or not all(type(index) is int and index > 0 for index in stated.values()):
        raise InputRefusedError(f"label_info has a name twice or an idx that is no number; expected {form}")
    if sorted(stated.values()) == sorted(in_order.values()):
        return stated
    readings = [reading for reading in (in_order, stated) if ids <= set(reading.values())]
    if len(readings) != 1:
        raise InputRefusedError(
            f"label_info numbers its organs {_listed(stated)}, and the mask holds {sorted(ids)}; expected consecutive "
            "numbers from 1 on; send all segments"
        )
    return readings[0]


def compare(
    mask: Volume, labels: Mapping[str, int], before: Volume, labels_before: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """What is different of each organ that has a name now, by the fields of `OrganCorrection`; both on one grid."""
    changes = {}
    for name, index in labels.items():
        now, then = mask.array == index, before.array == labels_before.get(name, -1)
        added, removed = int(np.count_nonzero(now & ~then)), int(np.count_nonzero(then & ~now))
        changes[name] = asdict(
            OrganCorrection(
                added_voxels=added,
                removed_voxels=removed,
                added_ml=added * mask.voxel_ml,
                removed_ml=removed * mask.voxel_ml,
                dice=dice(now, then) if now.any() or then.any() else None,
            )
        )
    return changes


def dicom_order(orientation: str) -> str:
    """The orientation of a volume after its rows are flipped to run from top to bottom, as in DICOM."""
    opposite = {"A": "P", "P": "A", "L": "R", "R": "L", "S": "I", "I": "S"}
    return orientation[0] + opposite[orientation[1]] + orientation[2]


def _raw(sent: Path, scan: Scan) -> Volume:
    """A mask that is nothing but a byte for each voxel of a scan, in the order of DICOM."""
    grid = scan.volume.reorient(dicom_order(scan.volume.orientation))
    held = sent.stat().st_size
    if held != grid.array.size:
        size = " x ".join(map(str, grid.shape))
        raise InputRefusedError(f"the mask is {held} bytes; expected {grid.array.size}, one for each of {size} voxels")
    return Volume(np.fromfile(sent, np.uint8).reshape(grid.shape, order="F"), grid.affine)


def _whole_numbers(values: NDArray[Any]) -> NDArray[np.int64]:
    rounded = np.rint(values) if values.dtype.kind == "f" else values
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all() or not np.array_equal(values, rounded):
        raise InputRefusedError("the mask holds values that are no ids; expected whole numbers; was it resampled?")
    odd = [index for index in (int(rounded.min(initial=0)), int(rounded.max(initial=0))) if not 0 <= index < 1 << 16]
    if odd:
        raise InputRefusedError(f"the mask holds the id {odd[0]}; expected 0 to {LARGEST_ID}")
    ids: NDArray[np.int64] = rounded.astype(np.int64)
    return ids


def _listed(names: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {index}" for name, index in names.items())
