"""Findings about a scan before it is segmented, and about its mask afterwards: reasons with stable names.

docs/checks.md explains each reason and its remedy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Reasons to refuse a scan; the last six concern the rest of a request.
Refusal = Literal[
    # the file
    "not_found",
    "unknown_kind",
    "unreadable",
    "unsafe_archive",
    "too_large",
    "not_3d",
    "not_grey",
    "bad_affine",
    "no_orientation",
    "unknown_units",
    "orientation_conflict",
    # the DICOM series
    "no_scan",
    "several_series",
    "several_volumes",
    "localizer",
    "quadruped",
    "broken_header",
    "mixed_slices",
    "mixed_values",
    "duplicate_slices",
    "overlapping_slices",
    "missing_slices",
    "uneven_slices",
    # the grid
    "too_few_slices",
    "spacing",
    "small_extent",
    "large_extent",
    "sheared",
    # the grey values
    "modality",
    "modality_unknown",
    "not_numbers",
    "not_finite",
    "constant",
    "label_mask",
    "rescaled",
    "stored_offset",
    "offset_twice",
    "unsigned_wrap",
    "inverted",
    "narrow_window",
    "not_hounsfield",
    "looks_like_ct",
    # not the scan
    "unknown_organ",
    "output",
    "output_clash",
    "output_exists",
    "output_locked",
    "refused",
]

#: Reasons for caution with a scan that is segmented nevertheless; the last three concern its result.
Caution = Literal[
    "no_geometry",
    "spacing_conflict",
    "forms_differ",
    "copied_files",
    "odd_numbers",
    "no_rescale",
    "mixed_coding",
    "slice_gaps",
    "gantry_tilt",
    "thick_slices",
    "not_axial",
    "other_plane",
    "short_scan",
    "cropped",
    "windowed",
    "air_outside_range",
    "metal",
    "left_out",
    "empty_mask",
    "unlikely_sizes",
]


@dataclass(frozen=True)
class Finding:
    """A fact that the user of a scan or of its mask should know.

    Parameters
    ----------
    code
        Stable name of the reason, for programs.
    level
        `"refuse"` if a mask would be wrong; `"warn"` if it is made, but calls for caution.
    message
        One sentence for people: the value found, the expected one, and the remedy.
    """

    code: Refusal | Caution
    level: Literal["refuse", "warn"]
    message: str


def refuse(code: Refusal, message: str) -> Finding:
    """A reason not to segment a scan."""
    return Finding(code, "refuse", message)


def warn(code: Caution, message: str) -> Finding:
    """A reason to look twice at a scan or its mask."""
    return Finding(code, "warn", message)
