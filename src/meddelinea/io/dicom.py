"""DICOM series: a folder of slices, or one enhanced multi-frame file, as one volume.

DICOM measures in LPS (x to the left, y to the back, z to the head); everything else here is RAS. The change happens in
`series_affine` and nowhere else.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.pixels import iter_pixels

from meddelinea.errors import InputRefusedError
from meddelinea.volume import Affine, Modality, Volume

#: How far a slice may lie from its place on the regular grid, as a fraction of a voxel. Scanners round positions.
GRID_TOLERANCE = 0.1
#: Slices closer than this lie at the same place, in millimetres.
SAME_PLACE_MM = 1e-3

# The functional groups of a multi-frame object that say where a frame lies and what its values mean.
_MACROS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)
_KEYWORDS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesDescription",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
# Storage classes: CT and MR images, their enhanced and legacy converted forms; and secondary captures (a prefix).
_IMAGE_CLASSES = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "2.1", "2.2", "4", "4.1", "4.4"))
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice of a series: where its pixels are stored, where it lies (LPS), and what its values mean.

    Parameters
    ----------
    path, index
        The file, and the frame's number in it from 0 (0 where a file holds one slice).
    position_mm
        (3,) centre of the first pixel.
    orientation
        (6,) unit vectors along increasing column index (first three) and increasing row index.
    pixel_spacing_mm
        (2,) distance between rows, then between columns.
    shape
        (2,) number of rows, then of columns.
    slope, intercept
        Stored value times `slope` plus `intercept` is the value (Hounsfield units in a CT).
    """

    path: Path
    index: int
    position_mm: NDArray[np.float64]
    orientation: NDArray[np.float64]
    pixel_spacing_mm: NDArray[np.float64]
    shape: NDArray[np.int64]
    slope: float
    intercept: float

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector across the slice: column direction times row direction, right-handed."""
        return np.cross(self.orientation[:3], self.orientation[3:])


def read_dicom(path: Path) -> Volume:
    """Read the one CT or MR series of a folder (searched recursively), or one enhanced multi-frame file.

    Voxel axes are column, row counted from the image's bottom, and slice along the normal of the image plane: the order
    that dcm2niix converts to, so that masks lie voxel by voxel on files that it wrote. The rescale slope and intercept
    are applied to each slice. The array is int16 where that holds every value exactly, else float32.
    Pixels that the scanner marks as padding keep their value (far below air in a CT). A tilted gantry gives a sheared
    affine, which places every voxel where it was measured.

    Hidden files and files that are not DICOM (no `DICM` mark) are passed over, as are segmentations, reports, plans,
    doses and secondary captures that lie beside the series.

    Raises
    ------
    InputRefusedError
        If there is not exactly one series, it is neither CT nor MR, a file is broken, or the slices are not one
        complete regular grid.
    """
    modality, frames = read_frames(path)
    return Volume(_stack(frames), series_affine(frames), modality)


def read_frames(path: Path) -> tuple[Modality, list[Frame]]:
    """The slices of the one series in a folder or file, in the order of the volume's last axis, without their pixels.

    Raises
    ------
    InputRefusedError
        As `read_dicom`, except for pixels that cannot be decoded.
    """
    modality, headers = _one_series(path, _read_headers(path))
    frames = [frame for file, header in headers for frame in _frames(file, header)]
    if len(frames) == 1:
        raise InputRefusedError(f"{path}: one slice; expected a 3D volume; give the folder that holds the whole series")
    _check_same(frames, "orientation", lambda frame: frame.orientation, 1e-3)
    _check_same(frames, "size (rows, columns)", lambda frame: frame.shape, 0)
    _check_same(frames, "pixel spacing in mm", lambda frame: frame.pixel_spacing_mm, 1e-3)
    normal = frames[0].normal
    frames.sort(key=lambda frame: float(frame.position_mm @ normal))
    places_mm = np.array([frame.position_mm @ normal for frame in frames])
    for check in (_check_distinct, _check_complete, _check_regular):
        check(path, frames, places_mm)
    return modality, frames


def series_affine(frames: list[Frame]) -> Affine:
    """(4, 4) affine of sorted slices, (column, row from the bottom, slice) to RAS millimetres.

    The slice axis is the measured step from slice to slice, not the normal, so a gantry tilt is a shear of the affine.
    """
    first, last = frames[0], frames[-1]
    lps = np.eye(4)
    lps[:3, 0] = first.orientation[:3] * first.pixel_spacing_mm[1]
    down = first.orientation[3:] * first.pixel_spacing_mm[0]
    lps[:3, 1] = -down
    lps[:3, 2] = (last.position_mm - first.position_mm) / (len(frames) - 1)
    lps[:3, 3] = first.position_mm + down * (first.shape[0] - 1)
    return _LPS_TO_RAS @ lps


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever pydicom raises on a damaged file into a refusal, and keep its notes on odd values to itself.

    Scanners write many values that break the standard's form (over-long numbers, odd UIDs, excess padding); pydicom
    notes them as warnings and reads them all the same. What a volume needs is checked in this file.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pydicom")
        try:
            yield
        except InputRefusedError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputRefusedError(f"{path}: not a readable DICOM file ({reason}); copy it again") from error


def _read_headers(path: Path) -> list[tuple[Path, Any]]:
    """Files of `path` that are DICOM, each with the part of its header that `_KEYWORDS` names."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    headers = []
    for file in files:
        if file.name.startswith("."):
            continue
        with _reading(file):
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_KEYWORDS)
            except InvalidDicomError as error:
                # A slice lost at either end of a series leaves no gap, so a broken one must not pass as foreign.
                if file.suffix.lower() == ".dcm":
                    raise InputRefusedError(f"{file}: named .dcm but without DICOM's mark; export it again") from error
                continue
            deque(header.iterall(), maxlen=0)  # values are converted on first use: have the bad ones fail here
            headers.append((file, header))
    return headers


def _one_series(path: Path, headers: list[tuple[Path, Any]]) -> tuple[Modality, list[tuple[Path, Any]]]:
    """The modality and the files of the only image series among `headers`."""
    series: dict[str, list[tuple[Path, Any]]] = {}
    for file, header in headers:
        if _is_scan(file, header):
            series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
    if not series:
        found = ", ".join(sorted({str(header.get("Modality") or "no modality") for _, header in headers}))
        raise InputRefusedError(
            f"{path}: no CT or MR scan here; DICOM objects found: {found or 'none'} (segmentations, doses, reports and "
            "secondary captures are no scans); give the folder of the scan"
        )
    if len(series) > 1:
        listed = "; ".join(
            f"{uid or 'no UID'} '{files[0][1].get('SeriesDescription', '')}' ({_count_slices(files)} slices)"
            for uid, files in series.items()
        )
        raise InputRefusedError(
            f"{path}: {len(series)} image series; expected one; move the wanted one to a folder of its own: {listed}"
        )
    files = next(iter(series.values()))
    for modality in get_args(Modality):
        if files[0][1].get("Modality") == modality:
            return modality, files
    raise InputRefusedError(f"{path}: modality {files[0][1].get('Modality')!s}; expected CT or MR")


def _is_scan(path: Path, header: Any) -> bool:
    """Whether a DICOM object is an image as a scanner made it, not one derived from it or without pixels."""
    kind = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    if not header.get("Rows") and (kind in _IMAGE_CLASSES or not kind):
        raise InputRefusedError(
            f"{path}: the header ends before the image's size; the file is cut short, copy it again"
        )
    derived = header.get("Modality") in ("SEG", "RTDOSE") or kind.startswith(_SECONDARY_CAPTURE)
    return bool(header.get("Rows")) and not derived


def _count_slices(files: list[tuple[Path, Any]]) -> int:
    return sum(int(header.get("NumberOfFrames") or 1) for _, header in files)


def _frames(path: Path, header: Any) -> list[Frame]:
    """The slices that one file holds: one, or one for each item of the per-frame functional groups."""
    photometric = header.get("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputRefusedError(f"{path}: photometric interpretation {photometric}; expected grey (MONOCHROME1 or 2)")
    if header.get("ModalityLUTSequence"):
        raise InputRefusedError(f"{path}: values are given by a modality lookup table; expected a rescale slope")
    per_frame = header.get("PerFrameFunctionalGroupsSequence")
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    with _reading(path):
        if per_frame:
            groups = [(own, *shared) for own in per_frame]
            items = [[g.get(macro)[0] for g in group for macro in _MACROS if g.get(macro)] for group in groups]
            return [_frame(path, index, header, sources) for index, sources in enumerate(items)]
        if _count_slices([(path, header)]) > 1:
            raise InputRefusedError(f"{path}: several frames without a position each; expected enhanced CT or MR")
        return [_frame(path, 0, header, [header])]


def _frame(path: Path, index: int, header: Any, sources: list[Any]) -> Frame:
    """One slice, each of its values taken from the first of `sources` that has it."""

    def numbers(keyword: str, count: int, default: float | None = None) -> NDArray[np.float64]:
        value = next((source.get(keyword) for source in sources if source.get(keyword) is not None), default)
        found = np.atleast_1d(np.asarray([] if value is None else value, np.float64))
        if found.shape != (count,) or not np.isfinite(found).all():
            raise InputRefusedError(
                f"{path}: {keyword} of frame {index + 1} is {value}; expected {count} number(s); repair the header"
            )
        return found

    orientation = numbers("ImageOrientationPatient", 6).reshape(2, 3)
    lengths = np.linalg.norm(orientation, axis=1)
    if abs(lengths - 1).max() > 1e-2 or abs(orientation[0] @ orientation[1]) > 1e-2:
        raise InputRefusedError(
            f"{path}: image orientation {orientation.ravel().tolist()}; expected two perpendicular unit vectors"
        )
    spacing_mm = numbers("PixelSpacing", 2)
    if spacing_mm.min() <= 0:
        raise InputRefusedError(f"{path}: pixel spacing {spacing_mm.tolist()} mm; expected two positive numbers")
    return Frame(
        path=path,
        index=index,
        position_mm=numbers("ImagePositionPatient", 3),
        orientation=(orientation / lengths[:, None]).ravel(),
        pixel_spacing_mm=spacing_mm,
        shape=np.array([header.Rows, header.Columns], np.int64),
        slope=float(numbers("RescaleSlope", 1, 1.0)[0]),
        intercept=float(numbers("RescaleIntercept", 1, 0.0)[0]),
    )


def _check_same(frames: list[Frame], what: str, of: Callable[[Frame], NDArray[Any]], tolerance: float) -> None:
    """All slices share `of(frame)` within `tolerance`."""
    expected = of(frames[0])
    for frame in frames:
        if abs(of(frame) - expected).max() > tolerance:
            raise InputRefusedError(
                f"{frame.path}: {what} {of(frame).tolist()}, but {expected.tolist()} in {frames[0].path.name}; "
                "expected one stack of alike slices; move other images (a localizer?) elsewhere"
            )


def _check_distinct(path: Path, frames: list[Frame], places_mm: NDArray[np.float64]) -> None:
    """No two sorted slices lie at the same place."""
    for k in np.flatnonzero(np.diff(places_mm) < SAME_PLACE_MM)[:1]:
        a, b = frames[k], frames[k + 1]
        raise InputRefusedError(
            f"{path}: two slices at {places_mm[k]:.3f} mm: {a.path.name} frame {a.index + 1} and {b.path.name} frame "
            f"{b.index + 1}; expected one slice at each position; remove copies, or split phases and echoes"
        )


def _check_complete(path: Path, frames: list[Frame], places_mm: NDArray[np.float64]) -> None:
    """No slice is missing between sorted slices: no gap is a multiple of the usual one."""
    gaps = np.diff(places_mm)
    usual = np.percentile(gaps, 50, method="lower")
    for k in np.flatnonzero(gaps > 1.5 * usual)[:1]:
        raise InputRefusedError(
            f"{path}: about {round(gaps[k] / usual) - 1:d} slice(s) missing between {places_mm[k]:.3f} and "
            f"{places_mm[k + 1]:.3f} mm: a gap of {gaps[k]:.3f} mm, elsewhere {usual:.3f} mm; fetch the whole series"
        )


def _check_regular(path: Path, frames: list[Frame], places_mm: NDArray[np.float64]) -> None:
    """Sorted slices lie evenly on one straight line, each within `GRID_TOLERANCE` of a voxel."""
    positions = np.array([frame.position_mm for frame in frames])
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    off = positions - positions[0] - np.arange(len(frames))[:, None] * step
    normal = frames[0].normal
    along = off @ normal
    aside = np.linalg.norm(off - along[:, None] * normal, axis=1)
    gap, pixel = float(step @ normal), float(frames[0].pixel_spacing_mm.min())
    for distances, voxel, what in ((abs(along), gap, "along"), (aside, pixel, "aside of")):
        worst = int(distances.argmax())
        if distances[worst] > GRID_TOLERANCE * voxel:
            raise InputRefusedError(
                f"{path}: the slice at {places_mm[worst]:.3f} mm ({frames[worst].path.name}) lies "
                f"{distances[worst]:.3f} mm {what} the line from its place on an even grid; expected at most "
                f"{GRID_TOLERANCE * voxel:.3f} mm (spacing {gap:.3f} mm); resample the series to even spacing first"
            )


def _stack(frames: list[Frame]) -> NDArray[Any]:
    """(columns, rows from the bottom, slices) values: int16, or float32 once a slice does not fit into int16."""
    rows, columns = frames[0].shape
    voxels: NDArray[Any] = np.empty((len(frames), rows, columns), np.int16)
    by_file: dict[Path, list[tuple[int, Frame]]] = {}
    for k, frame in enumerate(frames):
        by_file.setdefault(frame.path, []).append((k, frame))
    for path, members in by_file.items():
        with _reading(path):
            decoded = iter_pixels(path, indices=[frame.index for _, frame in members])
            for (k, frame), stored in zip(members, decoded, strict=True):
                values = _rescaled(stored, frame)
                if voxels.dtype == np.int16 and not _fits_int16(values):
                    voxels = voxels.astype(np.float32)
                voxels[k] = values
    return voxels[:, ::-1].transpose(2, 1, 0)


def _rescaled(stored: NDArray[Any], frame: Frame) -> NDArray[Any]:
    """Values of one slice: int64 where slope and intercept keep integers, else float32."""
    if stored.dtype.kind in "iu" and frame.slope == 1 and frame.intercept.is_integer():
        return stored.astype(np.int64) + int(frame.intercept)
    return stored.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept)


def _fits_int16(values: NDArray[Any]) -> bool:
    limits = np.iinfo(np.int16)
    return values.dtype.kind == "i" and bool(values.min() >= limits.min) and bool(values.max() <= limits.max)
