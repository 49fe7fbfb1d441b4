"""Results as files: the mask with the sidecar that names its labels, and the statistics.

Every file is complete or absent: it is written under a temporary name in its own folder and then renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meddelinea.errors import UsageError
from meddelinea.inference.confidence import OrganConfidence
from meddelinea.inference.statistics import OrganStatistics
from meddelinea.io import VOLUME_SUFFIXES, whole, write_volume

if TYPE_CHECKING:
    from meddelinea.inference.predict import Segmentation

#: Endings that the name of a mask may have.
MASK_SUFFIXES = VOLUME_SUFFIXES


def sidecar_path(mask: Path) -> Path:
    """Where the sidecar of a mask stands: `mask.nii.gz` -> `mask.json`.

    Raises
    ------
    UsageError
        If `mask` has no ending that a mask can be written with.
    """
    for suffix in MASK_SUFFIXES:
        if mask.name.lower().endswith(suffix) and len(mask.name) > len(suffix):
            return mask.with_name(mask.name[: -len(suffix)] + ".json")
    raise UsageError(f"{mask}: a mask is written as {', '.join(MASK_SUFFIXES)}; rename the output")


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write `document` as indented UTF-8 JSON, atomically. NaN and infinity raise ValueError: JSON has neither."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with whole(path, ".json") as part:
        part.write_text(text, encoding="utf-8")


def write_segmentation(
    segmentation: Segmentation, path: Path, source: Path, remarks: Mapping[str, Any] | None = None
) -> None:
    """Write the sidecar and then the mask, so that a mask never stands without the names of its labels.

    Parameters
    ----------
    segmentation
        The mask and how it was made.
    path
        Where the mask goes; the sidecar goes to `sidecar_path(path)`.
    source
        The scan. Only its name is recorded: folders often hold patients' names.
    remarks
        What else the sidecar is to say, as plain JSON types.
    """
    sidecar = {
        "labels": segmentation.labels,
        "model": segmentation.model,
        "version": segmentation.version,
        "steps": segmentation.steps,
        "scheduler": segmentation.scheduler,
        "samples": segmentation.samples,
        "seed": segmentation.seed,
        "input": source.name,
        **(remarks or {}),
    }
    write_json(sidecar, sidecar_path(path))
    write_volume(segmentation.mask, path)


def statistics_document(
    statistics: Mapping[str, OrganStatistics], modality: str | None, confidence: Mapping[str, OrganConfidence]
) -> dict[str, Any]:
    """The measurements as plain JSON types.

    `intensity_unit` and, by organ name, every field of `OrganStatistics`; `truncated`, whether the organ may go on
    beyond the scan; and `confidence` with the fields of `OrganConfidence`, null for a mask that no model made.
    """
    organs = {
        name: {
            **asdict(organ),
            "truncated": bool(organ.touches_edge),
            "confidence": asdict(confidence[name]) if name in confidence else None,
        }
        for name, organ in statistics.items()
    }
    return {"intensity_unit": "arbitrary" if modality == "MR" else "HU", "organs": organs}
