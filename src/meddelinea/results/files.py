"""Results as files: the mask with the sidecar that names its labels, and the statistics.

Every file is complete or absent: it is written under a temporary name in its own folder and then renamed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from meddelinea.endings import MASK_SUFFIXES, ending, stem
from meddelinea.errors import InputRefusedError, UsageError
from meddelinea.files import ensure_writable, whole_together, write_json
from meddelinea.io.volumes import Algorithm, SegmentationType, write_voxels
from meddelinea.json_files import read_object
from meddelinea.results.review import review_organs
from meddelinea.results.statistics import OrganStatistics
from meddelinea.scan import Modality, Scan

if TYPE_CHECKING:
    from meddelinea.segmentation.predict import Segmentation

OutputType = Literal["nifti", "nrrd", "mha", "dicom_seg", "rtstruct"]
#: Endings of each kind of output. By its ending alone a name means the first that has it.
OUTPUT_SUFFIXES: Mapping[OutputType, tuple[str, ...]] = MappingProxyType(
    {"nifti": (".nii.gz", ".nii"), "nrrd": (".nrrd",), "mha": (".mha",), "dicom_seg": (".dcm",), "rtstruct": (".dcm",)}
)
#: What the sidecar of every mask that this package wrote says among other things.
_OWN = {"labels", "model", "version"}
SEGMENTATION_TYPES: tuple[SegmentationType, ...] = get_args(SegmentationType)


def sidecar_path(mask: Path) -> Path:
    """Where the sidecar of a mask stands: `mask.nii.gz` -> `mask.json`.

    Raises
    ------
    UsageError
        If `mask` has no ending that a mask can be written with.
    """
    if ending(mask, MASK_SUFFIXES) is None:
        raise UsageError(f"{mask}: a mask is written as {', '.join(MASK_SUFFIXES)}; rename the output")
    return mask.with_name(stem(mask, MASK_SUFFIXES) + ".json")


def read_sidecar(mask: Path) -> dict[str, Any]:
    """What the sidecar of a mask says that this package wrote; nothing where there is none, or it is another's."""
    try:
        content = read_object(sidecar_path(mask), "a mask's sidecar")
    except InputRefusedError:
        return {}
    return content if content.keys() >= _OWN else {}


def require_own_sidecar(mask: Path) -> None:
    """Refuse a mask's name whose sidecar would take the place of a file that this package did not write.

    Raises
    ------
    InputRefusedError
        If it would.
    """
    sidecar = sidecar_path(mask)
    if os.path.lexists(sidecar) and not read_sidecar(mask):
        raise InputRefusedError(
            f"{sidecar}: exists, and was not written by MedDelinea; the names of the mask's labels would replace it; "
            "choose another name for the mask, or allow to overwrite it",
            "output_exists",
            parameter="overwrite",
        )


def output_type(mask: Path, wanted: str | None = None) -> OutputType:
    """What kind of file a mask's name and the user's wish make.

    Parameters
    ----------
    mask
        The file to come.
    wanted
        A key of `OUTPUT_SUFFIXES`; None where the ending is to decide.

    Raises
    ------
    UsageError
        If the kind is unknown, or the name has the ending of another or of none.
    """
    if wanted is not None and wanted not in OUTPUT_SUFFIXES:
        raise UsageError(f"unknown output type '{wanted}'; expected one of {', '.join(OUTPUT_SUFFIXES)}")
    sidecar_path(mask)
    for kind, suffixes in OUTPUT_SUFFIXES.items():
        if wanted in (None, kind) and ending(mask, suffixes):
            return kind
    suffixes = OUTPUT_SUFFIXES[cast("OutputType", wanted)]
    raise UsageError(f"{mask}: {wanted} is written as {' or '.join(suffixes)}; rename the output")


def require_referable(scan: Scan, kind: OutputType) -> Scan:
    """Refuse a scan whose images an output of this kind could not refer to; any scan does for nifti and nrrd.

    Returns
    -------
    Scan
        With a remark on what the headers say and the output cannot.

    Raises
    ------
    InputRefusedError
        If a DICOM output is asked for and the scan is no DICOM series, was stripped of its identifiers, or has headers
        that do not allow it, or, for dicom_seg, was acquired with a tilted gantry.
    """
    if kind not in ("dicom_seg", "rtstruct"):
        return scan
    from meddelinea.io.dicom_seg import rehearse_dicom_seg
    from meddelinea.io.dicom_source import require_identifiers, require_upright, series_of
    from meddelinea.io.rtstruct import rehearse_rtstruct

    series = series_of(scan)
    require_identifiers(series)
    if kind == "dicom_seg":
        require_upright(series)
    left_out = (rehearse_dicom_seg if kind == "dicom_seg" else rehearse_rtstruct)(series)
    return replace(scan, findings=(*scan.findings, *left_out))


def write_segmentation(
    segmentation: Segmentation,
    path: Path,
    scan: Scan,
    *,
    kind: OutputType | None = None,
    segmentation_type: SegmentationType = "labelmap",
    remarks: Mapping[str, Any] | None = None,
    others: Mapping[Path, Callable[[Path], object]] = MappingProxyType({}),
) -> None:
    """Write the mask, the sidecar that says how it was made, and what else belongs to it.

    All of them are replaced together or not at all, so that no mask stands beside the names of another's labels.

    Parameters
    ----------
    segmentation
        The mask and how it was made.
    path
        Where the mask goes; the sidecar goes to `sidecar_path(path)`.
    scan
        What was segmented. Only its name is recorded: folders often hold patients' names. DICOM outputs refer to the
        images of its series.
    kind
        What to write; by default what the ending of `path` says.
    segmentation_type
        How a DICOM-SEG stores voxels.
    remarks
        What else the sidecar is to say, as plain JSON types.
    others
        Other files about the mask, each with what writes it to the path that it is given.

    Raises
    ------
    InputRefusedError
        If a file cannot be written, or as `write_dicom_seg` and `write_rtstruct`.
    UsageError
        If `path` has not the ending of its kind.
    """
    made = {
        "model": segmentation.model,
        "version": segmentation.version,
        "steps": segmentation.steps,
        "scheduler": segmentation.scheduler,
        "samples": segmentation.samples,
        "seed": segmentation.seed,
        "precision": segmentation.precision,
    }
    sidecar = {"labels": segmentation.labels, **made, "input": scan.name, **(remarks or {})}
    mask, labels, model = segmentation.mask, segmentation.labels, segmentation.model
    algorithm: Algorithm = "SEMIAUTOMATIC" if segmentation.corrected else "AUTOMATIC"
    wanted = output_type(path, kind)
    ensure_writable(path, MASK_SUFFIXES)
    with whole_together(path, sidecar_path(path), *others) as (mask_file, sidecar_file, *files):
        for write, file in zip(others.values(), files, strict=True):
            write(file)
        match wanted:
            case "dicom_seg":
                from meddelinea.io.dicom_seg import write_dicom_seg
                from meddelinea.io.dicom_source import series_of

                parameters = {name: str(value) for name, value in made.items() if value is not None}
                write_dicom_seg(
                    *(mask, labels, mask_file, series_of(scan)),
                    kind=segmentation_type,
                    model=model,
                    parameters=parameters,
                    algorithm=algorithm,
                )
            case "rtstruct":
                from meddelinea.io.dicom_source import series_of
                from meddelinea.io.rtstruct import write_rtstruct

                write_rtstruct(mask, labels, mask_file, series_of(scan), model=model, algorithm=algorithm)
            case _:
                write_voxels(mask, mask_file, scan.forms)
        write_json(sidecar, sidecar_file)


def statistics_document(
    statistics: Mapping[str, OrganStatistics], modality: Modality | None, segmentation: Segmentation
) -> dict[str, Any]:
    """The measurements as plain JSON types, as `statistics.schema.json` in this package describes them.

    By organ name every field of `OrganStatistics`; `truncated`, whether the organ may go on beyond the scan;
    `interval_ml`, `needs_review` and `review_reasons` as in `OrganReview`; and `confidence` with the fields of
    `OrganConfidence`, null for a mask that no model made.
    """
    confidence, calibration = segmentation.confidence, segmentation.calibration
    reviews = review_organs(statistics, confidence, calibration)
    organs = {
        name: {
            **asdict(organ),
            "truncated": bool(organ.touches_edge),
            "interval_ml": reviews[name].interval_ml,
            "needs_review": reviews[name].needs_review,
            "review_reasons": reviews[name].reasons,
            "confidence": asdict(confidence[name]) if name in confidence else None,
        }
        for name, organ in statistics.items()
    }
    return {
        "intensity_unit": "arbitrary" if modality == "MR" else "HU",
        "interval_level": None if calibration is None else calibration.level,
        "organs": organs,
    }
