"""The slices of a DICOM series as their headers describe them, each checked by itself, in no order yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from meddelinea.errors import InputRefusedError
from meddelinea.findings import Finding
from meddelinea.io.dicom_copies import pass_over_copies
from meddelinea.io.dicom_files import decoding, files_below, read_header
from meddelinea.io.dicom_numbers import describe_mended, mend_numbers, require_readable
from meddelinea.scan import Frame, Modality
from meddelinea.volume import FURTHEST_MM

# The functional groups of a multi-frame object that say where a frame lies and what its values mean.
_MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)
_KEYWORDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "PatientName",
    "PatientPosition",
    "GantryDetectorTilt",
    "SeriesDescription",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "ImageType",
    "AnatomicalOrientationType",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
# Storage classes: CT and MR images, their enhanced and legacy converted forms; and secondary captures (a prefix).
_IMAGE_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "2.1", "2.2", "4", "4.1", "4.4"))
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Units of rescaled values that the standard defines beside HU and "unspecified", all of them of derived images:
# effective atomic number, electron densities, percentages, concentrations and optical density.
_OTHER_UNITS = ("Z_EFF", "ED", "EDW", "PCT", "MGML", "OD")


def find_headers(path: Path) -> tuple[Modality, dict[Path, Any], list[Finding]]:
    """Modality and headers, by their files, of the one CT or MR series in a folder or file, and remarks on them.

    Copies of an image are left out, and numbers that are written oddly are mended in the headers.

    Raises
    ------
    InputRefusedError
        If there is not exactly one series, it is neither CT nor MR, or a header is broken.
    """
    headers: list[Any] = []
    scans: list[tuple[Path, Any]] = []
    mended: dict[Path, dict[str, str]] = {}
    for file in files_below(path) if path.is_dir() else [path]:
        try:
            header = read_header(file)
        except InvalidDicomError as error:
            # A slice lost at either end of a series leaves no gap, so a broken one must not pass as foreign.
            if path == file or file.suffix.lower() == ".dcm":
                raise InputRefusedError(
                    f"{file}: does not begin as DICOM does; expected a whole DICOM file; export it again, or remove it",
                    "unreadable",
                ) from error
            continue
        with decoding(file):
            mended[file] = mend_numbers(file, header)
            require_readable(file, header, _KEYWORDS)
            if _is_scan(file, header):
                scans.append((file, header))
        headers.append(header)
    scans, copies = pass_over_copies(scans, _KEYWORDS)
    modality, series = _one_series(path, scans, headers)
    found = dict(series)
    odd = {file: numbers for file, numbers in mended.items() if file in found}
    return modality, found, [*copies, *describe_mended(odd)]


def _one_series(
    path: Path, scans: list[tuple[Path, Any]], headers: list[Any]
) -> tuple[Modality, list[tuple[Path, Any]]]:
    """The modality and the files of the only series among `scans`, which are those of `headers` that are images."""
    series: dict[str, list[tuple[Path, Any]]] = {}
    for file, header in scans:
        series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
    if not series:
        found = ", ".join(sorted({str(header.get("Modality") or "no modality") for header in headers}))
        raise InputRefusedError(
            f"{path}: no CT or MR scan here; DICOM objects found: {found or 'none'} (segmentations, doses, reports and "
            "secondary captures are no scans); expected the slices of one; give their folder",
            "no_scan",
        )
    if len(series) > 2 and all(len(files) == 1 for files in series.values()):
        # Some anonymisers give each slice a series of its own; whether they are one scan, its grid tells.
        series = {"": [files[0] for files in series.values()]}
    if len(series) > 1:
        listed = "; ".join(
            f"{uid or 'no UID'} '{files[0][1].get('SeriesDescription', '')}' ({_count_slices(files)} "
            f"{'localizer' if _is_localizer(files[0][1]) else 'slices'})"
            for uid, files in series.items()
        )
        raise InputRefusedError(
            f"{path}: {len(series)} image series; expected one; move the wanted one to a folder of its own: {listed}",
            "several_series",
        )
    files = next(iter(series.values()))
    _check_kind(files)
    for modality in get_args(Modality):
        if files[0][1].get("Modality") == modality:
            return modality, files
    raise InputRefusedError(
        f"{path}: modality {files[0][1].get('Modality')!s}; expected CT or MR; give such a scan", "modality"
    )


def _check_kind(files: list[tuple[Path, Any]]) -> None:
    """No file of a series is a localizer or of an animal."""
    for path, header in files:
        if _is_localizer(header):
            raise InputRefusedError(
                f"{path}: a localizer (scout) image; expected the slices of a scan; move localizers elsewhere",
                "localizer",
            )
        if header.get("AnatomicalOrientationType") == "QUADRUPED":
            raise InputRefusedError(
                f"{path}: anatomical orientation type QUADRUPED; expected a person; correct the header if it is wrong",
                "quadruped",
            )


def _is_localizer(header: Any) -> bool:
    """Whether the scanner calls an image one that other scans are planned on."""
    kind = header.get("ImageType") or ()
    return "LOCALIZER" in ([kind] if isinstance(kind, str) else list(kind))


def _is_scan(path: Path, header: Any) -> bool:
    """Whether a DICOM object is an image as a scanner made it, not one derived from it or without pixels."""
    kinds = [str(header.get("SOPClassUID") or ""), str(header.file_meta.get("MediaStorageSOPClassUID") or "")]
    kind = next(filter(None, kinds), "")
    # A file may be cut in the middle of this very UID.
    image = any(complete.startswith(said) for said in filter(None, kinds) for complete in _IMAGE_CLASSES)
    if not header.get("Rows") and (image or not kind):
        raise InputRefusedError(
            f"{path}: the header ends before the image's size; expected a whole file; copy it again", "unreadable"
        )
    derived = header.get("Modality") in ("SEG", "RTDOSE") or kind.startswith(_SECONDARY_CAPTURE)
    return bool(header.get("Rows")) and not derived


def _count_slices(files: list[tuple[Path, Any]]) -> int:
    return sum(int(header.get("NumberOfFrames") or 1) for _, header in files)


def list_frames(path: Path, header: Any) -> list[Frame]:
    """The slices that one file holds: one, or one for each item of the per-frame functional groups.

    Raises
    ------
    InputRefusedError
        If its values are not grey, or the header does not say where a slice lies and what its values mean.
    """
    photometric = header.get("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputRefusedError(
            f"{path}: photometric interpretation {photometric}; expected grey (MONOCHROME1 or 2); give the original",
            "not_grey",
        )
    if header.get("ModalityLUTSequence"):
        raise InputRefusedError(
            f"{path}: values are given by a modality lookup table; expected a rescale slope; export it with one",
            "not_grey",
        )
    if header.get("SamplesPerPixel", 1) != 1:
        raise InputRefusedError(
            f"{path}: {header.SamplesPerPixel} samples per pixel; expected 1, a grey value; give the original",
            "not_grey",
        )
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    with decoding(path):
        require_frame_count(path, header)
        if per_frame:
            groups = [(own, *shared) for own in per_frame]
            items = [[g.get(macro)[0] for g in group for macro in _MACROS if g.get(macro)] for group in groups]
            return [_read_frame(path, index, header, sources) for index, sources in enumerate(items)]
        if _count_slices([(path, header)]) > 1:
            raise InputRefusedError(
                f"{path}: several frames without a position each; expected enhanced CT or MR; export single slices",
                "broken_header",
            )
        return [_read_frame(path, 0, header, [header])]


def _read_frame(path: Path, index: int, header: Any, sources: list[Any]) -> Frame:
    """One slice, each of its values taken from the first of `sources` that has it."""

    def first(keyword: str) -> Any:
        return next((source.get(keyword) for source in sources if source.get(keyword) is not None), None)

    def numbers(keyword: str, count: int) -> NDArray[np.float64]:
        value = first(keyword)
        found = np.atleast_1d(np.asarray([] if value is None else value, np.float64))
        if found.shape != (count,) or not np.isfinite(found).all():
            raise InputRefusedError(
                f"{path}: {keyword} of frame {index + 1} is {value}; expected {count} number(s); repair the header",
                "broken_header",
            )
        return found

    orientation = numbers("ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(orientation, axis=1)
    if abs(lengths - 1).max() > 1e-2 or abs(orientation[0] @ orientation[1]) > 1e-2:
        raise InputRefusedError(
            f"{path}: image orientation {orientation.ravel().tolist()}; expected two perpendicular unit vectors; "
            "repair the header",
            "broken_header",
        )
    spacing_mm = numbers("PixelSpacing", 2)
    if spacing_mm.min() <= 0:
        raise InputRefusedError(
            f"{path}: pixel spacing {spacing_mm.tolist()} mm; expected two positive numbers; repair the header",
            "broken_header",
        )
    position_mm = numbers("ImagePositionPatient", 3)
    require_near(path, index, position_mm)
    slope, intercept = (
        None if first(keyword) is None else float(numbers(keyword, 1)[0])
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if slope == 0:
        raise InputRefusedError(
            f"{path}: RescaleSlope of frame {index + 1} is 0, which makes all values one; expected 1, or another "
            "number; repair the header",
            "broken_header",
        )
    is_ct = header.get("Modality") == "CT"
    # The standard asks for the unit of a CT only where it is not this one.
    unit = str(first("RescaleType") or ("HU" if is_ct else "US")).strip().upper()
    if is_ct and unit in _OTHER_UNITS:
        raise InputRefusedError(
            f"{path}: the values are {unit}, of a derived map; expected Hounsfield units (HU); give the CT itself",
            "not_hounsfield",
        )
    thickness_mm = first("SliceThickness")
    return Frame(
        path=path,
        index=index,
        position_mm=position_mm,
        orientation=(orientation / lengths[:, None]).ravel(),
        pixel_spacing_mm=spacing_mm,
        shape=np.array([header.Rows, header.Columns], np.int64),
        slope=slope,
        intercept=intercept,
        unit=unit,
        thickness_mm=float(thickness_mm) if thickness_mm and thickness_mm > 0 else None,
    )


def require_frame_count(path: Path, header: Any) -> None:
    """Refuse a multi-frame header that does not describe as many frames as it says that there are.

    Raises
    ------
    InputRefusedError
        If it does not.
    """
    described = len(header.get("PerFrameFunctionalGroupsSequence") or ())
    said = header.get("NumberOfFrames")
    if described and int(said or 1) != described:
        raise InputRefusedError(
            f"{path}: NumberOfFrames is {said}, but {described} frames are described; expected as many; export it "
            "again",
            "broken_header",
        )


def require_near(path: Path, index: int, position_mm: NDArray[np.float64]) -> None:
    """Refuse a frame that lies where no patient can: so far out, positions lose their digits.

    Raises
    ------
    InputRefusedError
        If it lies further from the origin than `FURTHEST_MM` along an axis.
    """
    if abs(position_mm).max() > FURTHEST_MM:
        raise InputRefusedError(
            f"{path}: ImagePositionPatient of frame {index + 1} is {position_mm.tolist()} mm; expected at most "
            f"{FURTHEST_MM:.0e} mm from the origin; repair the header",
            "broken_header",
        )
