"""Masks as DICOM-SEG: written with highdicom, and read whatever program wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError
from pydicom.sr.codedict import codes

from meddelinea.errors import InputRefusedError
from meddelinea.files import whole
from meddelinea.findings import Finding
from meddelinea.io.dicom import LPS_TO_RAS
from meddelinea.io.dicom_codes import ANATOMICAL_STRUCTURE, DESCRIPTION, MANUFACTURER, SERIES_NUMBER, code_of, organ_of
from meddelinea.io.dicom_files import decoding, opened, read_header, require_sizes
from meddelinea.io.dicom_seg_checks import require_described, require_places, require_whole
from meddelinea.io.dicom_source import from_planes, referring, require_identifiers, require_upright, shortest, to_planes
from meddelinea.io.dicom_stack import PLACE_TOLERANCE
from meddelinea.io.read_back import require_same
from meddelinea.io.volumes import Algorithm, SegmentationType
from meddelinea.labels import ORGANS
from meddelinea.scan import DicomSeries
from meddelinea.version import __version__
from meddelinea.volume import Volume

#: Fractional segments hold an organ from this share on.
FRACTIONAL_THRESHOLD = 0.5

_SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


def write_dicom_seg(
    mask: Volume,
    labels: Mapping[str, int],
    path: Path,
    series: DicomSeries,
    *,
    kind: SegmentationType = "labelmap",
    model: str = "",
    parameters: Mapping[str, str] | None = None,
    algorithm: Algorithm = "AUTOMATIC",
) -> None:
    """Write a mask as a DICOM-SEG that refers to the images of its scan, read it back, and keep it only if it is equal.

    Segments are numbered 1..L in the order of their ids and coded with SNOMED CT. A labelmap holds every slice; the
    other kinds hold the slices that an organ occurs in. A fractional file holds shares of 0 and 1: how much of a voxel
    the organ occupies, not how probable it is.

    Parameters
    ----------
    mask
        Label ids on the grid of `series`, in any order of axes.
    labels
        Id of each organ by canonical name; organs without voxels are described too.
    path
        The file; it is written whole or not at all, and one already there is replaced.
    series
        The series that was segmented.
    kind
        How voxels are stored.
    model, parameters, algorithm
        What made the mask, recorded with each segment.

    Raises
    ------
    InputRefusedError
        If nothing can refer to the series, the gantry was tilted, the mask lies on another grid, the headers do not
        allow a DICOM-SEG, the folder cannot be written, or what was written reads back differently.
    UsageError
        If the mask holds an id without a name.
    """
    require_identifiers(series)
    require_upright(series)
    ordered = dict(sorted(labels.items(), key=lambda item: item[1]))
    table = np.zeros(max(ordered.values()) + 1, np.min_scalar_type(len(ordered)))
    table[list(ordered.values())] = np.arange(1, len(ordered) + 1)
    numbers = table[to_planes(mask, labels, series)]  # consecutive, as binary and fractional files ask
    segments = [
        _segment(number, name, model, parameters or {}, algorithm) for number, name in enumerate(ordered, start=1)
    ]
    with whole(path) as unfinished:
        with referring(series, "a DICOM-SEG"):
            _segmentation(numbers, segments, series, kind, model).save_as(unfinished)
        read, read_labels = read_dicom_seg(unfinished)
        written_labels = {name: number for number, name in enumerate(ordered, start=1)}
        require_same(path, from_planes(numbers, series), written_labels, read, read_labels)


def rehearse_dicom_seg(series: DicomSeries) -> list[Finding]:
    """Build the DICOM-SEG of one voxel, so that headers that do not allow one are known before the work.

    Returns
    -------
    list of Finding
        A remark on what they have and the file cannot.

    Raises
    ------
    InputRefusedError
        If they do not.
    """
    few = shortest(series)
    numbers = np.zeros((len(few.frames), *few.shape[1::-1]), np.uint8)
    numbers[0, 0, 0] = 1
    with referring(few, "a DICOM-SEG") as left_out:
        _segmentation(numbers, [_segment(1, "liver", "", {}, "AUTOMATIC")], few, "labelmap", MANUFACTURER).save_as(
            BytesIO()
        )
    return left_out


def read_dicom_seg(path: Path) -> tuple[Volume, dict[str, int]]:
    """Read the organs of a DICOM-SEG: labelmap, binary, or fractional from `FRACTIONAL_THRESHOLD` on.

    Voxel axes run as `read_dicom` has them for the scan, and the volume reaches as far as the file has frames.

    Returns
    -------
    Volume, dict
        Segment numbers (uint8, or uint16 past 255), and the number of each organ by its name (`dicom_codes.organ_of`).

    Raises
    ------
    InputRefusedError
        If the file is no DICOM-SEG of a patient's scan, is damaged, its frames are no even stack, two segments have one
        name, or two overlap, which ids cannot say.
    """
    labels = segment_numbers(path)
    with decoding(path), opened(path) as stream:
        header = read_header(path)
        require_sizes(path, stream, header)
        file = hd.seg.segread(stream)
        if file.SegmentationType == "LABELMAP":
            require_described(path, header)
            numbers = list(labels.values())
            read = file.get_volume(segment_numbers=numbers, combine_segments=True, rtol=PLACE_TOLERANCE)
            array, affine = read.array, read.affine
        else:
            array, affine = _combined(path, file, labels)
        require_places(path, header, affine)
    return _as_read_dicom(array, affine), labels


def segment_numbers(path: Path) -> dict[str, int]:
    """Number of each segment of a DICOM-SEG by the canonical name of its organ; its pixels are not read.

    Raises
    ------
    InputRefusedError
        If the file is no DICOM-SEG, contradicts itself (`dicom_seg_checks`), or two segments have one name.
    """
    with decoding(path):
        header = _header(path)
        if header.get("SOPClassUID") not in _SEGMENTATION_CLASSES or "FrameOfReferenceUID" not in header:
            raise InputRefusedError(
                f"{path}: {header.get('Modality') or 'no modality'}, not a DICOM-SEG of a scan; expected a mask"
            )
        numbers = [int(segment.SegmentNumber) for segment in header.SegmentSequence]
        if len(set(numbers)) != len(numbers):
            raise InputRefusedError(
                f"{path}: SegmentNumbers {numbers}; expected each once; export the segmentation again", "broken_header"
            )
        require_whole(path, header, numbers)
        labels: dict[str, int] = {}
        for number, segment in zip(numbers, header.SegmentSequence, strict=True):
            if number in (0, header.get("PixelPaddingValue")):
                continue  # a labelmap may describe its background too
            try:
                name = organ_of(segment)
            except InputRefusedError as error:
                raise InputRefusedError(f"{path}: {error}") from error
            if name in labels:
                raise InputRefusedError(
                    f"{path}: segments {labels[name]} and {number} are both named '{name}'; give each organ one segment"
                )
            labels[name] = number
    if not labels:
        raise InputRefusedError(f"{path}: no segment; expected at least one organ")
    return labels


def _segmentation(
    numbers: NDArray[Any],
    segments: list[hd.seg.SegmentDescription],
    series: DicomSeries,
    kind: SegmentationType,
    model: str,
) -> hd.seg.Segmentation:
    """The DICOM-SEG of (slices, rows, columns) segment numbers."""
    images, order = _referred_images(series)
    stored = numbers if order is None else numbers[order]
    if kind == "fractional":
        stored = stored.copy()  # highdicom scales the shares of a single segment in the array that it is given
    return hd.seg.Segmentation(
        source_images=images,
        pixel_array=stored,
        segmentation_type=kind.upper(),
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=model[:64] or MANUFACTURER,
        software_versions=__version__,
        device_serial_number="0",
        fractional_type="OCCUPANCY",
        content_description=DESCRIPTION,
        series_description=DESCRIPTION,
        omit_empty_frames=kind != "labelmap",
    )


def _header(path: Path) -> Any:
    try:
        return read_header(path)
    except InvalidDicomError as error:
        raise InputRefusedError(
            f"{path}: not DICOM; expected a DICOM-SEG; give the file that holds the mask", "unreadable"
        ) from error


def _referred_images(series: DicomSeries) -> tuple[list[Any], list[int] | None]:
    """Images to refer to: slice by slice (None), or one multi-frame file with the slice that each frame of it is."""
    images = list(series.headers.values())
    if not any("PerFrameFunctionalGroupsSequence" in image for image in images):
        return images, None
    if len(images) > 1:
        raise InputRefusedError(
            f"{series.path}: {len(images)} multi-frame files; a DICOM-SEG refers to one, or to slices; write nifti"
        )
    return images, [int(k) for k in np.argsort([frame.index for frame in series.frames])]


def _segment(
    number: int, organ: str, model: str, parameters: Mapping[str, str], algorithm: Algorithm
) -> hd.seg.SegmentDescription:
    """The description of one organ."""
    kind, side = code_of(organ)
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=organ[:64],
        segmented_property_category=ANATOMICAL_STRUCTURE,
        segmented_property_type=kind,
        algorithm_type=algorithm,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=f"{MANUFACTURER} {model}".strip()[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=__version__,
            parameters=dict(parameters) or None,
        ),
        display_color=hd.color.CIELabColor.from_rgb(*ORGANS[organ].colour) if organ in ORGANS else None,
    )
    if side is not None:
        modifier = [hd.sr.CodedConcept.from_code(side)]
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifier
    return described


def _combined(
    path: Path, file: hd.seg.Segmentation, labels: Mapping[str, int]
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """(slices, rows, columns) segment numbers of a file that holds each segment by itself, and highdicom's affine."""
    array: NDArray[Any] | None = None
    for name, number in labels.items():  # one at a time: memory does not grow with their number
        segment = file.get_volume(segment_numbers=[number], rtol=PLACE_TOLERANCE)
        inside = segment.array[..., 0] >= FRACTIONAL_THRESHOLD
        if array is None:
            array = np.zeros(inside.shape, np.uint8 if max(labels.values()) < 256 else np.uint16)
        if array[inside].any():
            other = next(name for name, n in labels.items() if n == array[inside].max())
            raise InputRefusedError(f"{path}: segments '{other}' and '{name}' overlap; expected one organ a voxel")
        array[inside] = number
    assert array is not None  # `segment_numbers` has refused a file without segments
    return array, segment.affine


def _as_read_dicom(array: NDArray[Any], lps: NDArray[np.float64]) -> Volume:
    """(slices, rows, columns) voxels with the axes of `read_dicom`: column, row from the bottom, slice along normal."""
    slices, rows, _ = array.shape
    lps = lps.copy()
    if np.cross(lps[:3, 2], lps[:3, 1]) @ lps[:3, 0] < 0:
        array = array[::-1]
        lps[:, 3] += (slices - 1) * lps[:, 0]
        lps[:, 0] *= -1
    lps[:, 3] += (rows - 1) * lps[:, 1]
    lps[:, 1] *= -1
    return Volume.from_slices(array[:, ::-1], LPS_TO_RAS @ lps[:, [2, 1, 0, 3]])
