"""Masks as RTSTRUCT: closed contours on each slice, in patient millimetres."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage
from scipy import ndimage

from meddelinea.errors import InputRefusedError
from meddelinea.files import whole
from meddelinea.findings import Finding
from meddelinea.io.contours import Polygon, fill, outlines
from meddelinea.io.dicom_codes import DESCRIPTION, MANUFACTURER, SERIES_NUMBER, precoordinated
from meddelinea.io.dicom_files import decoding
from meddelinea.io.dicom_source import from_planes, referring, require_identifiers, shortest, to_planes
from meddelinea.io.read_back import require_same
from meddelinea.io.volumes import Algorithm
from meddelinea.labels import colour_of
from meddelinea.scan import DicomSeries, Frame
from meddelinea.version import __version__
from meddelinea.volume import Volume

#: Digits of a coordinate behind the point: a tenth of a micrometre.
DECIMALS = 4

_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"


def write_rtstruct(
    mask: Volume,
    labels: Mapping[str, int],
    path: Path,
    series: DicomSeries,
    *,
    model: str = "",
    algorithm: Algorithm = "AUTOMATIC",
) -> None:
    """Write a mask as an RTSTRUCT, rasterise its contours again, and keep the file only if they give the mask.

    Contours run halfway between the pixels inside and those outside. A hole is joined to its outline by a channel of no
    width. Each contour lies in the plane of its slice, so a tilted gantry is no hindrance. Organs without voxels have
    no contour to draw and are left out.

    Parameters
    ----------
    mask
        Label ids on the grid of `series`, in any order of axes.
    labels
        Id of each organ by canonical name.
    path
        The file; it is written whole or not at all, and one already there is replaced.
    series
        The series that was segmented.
    model, algorithm
        What made the mask.

    Raises
    ------
    InputRefusedError
        If nothing can refer to the series, the mask lies on another grid, the headers do not allow an RTSTRUCT, the
        folder cannot be written, or what was written gives another mask.
    UsageError
        If the mask holds an id without a name.
    """
    require_identifiers(series)
    planes = to_planes(mask, labels, series)
    boxes = ndimage.find_objects(planes)
    found = {name: index for name, index in labels.items() if index <= len(boxes) and boxes[index - 1] is not None}
    with whole(path) as unfinished:
        with referring(series, "an RTSTRUCT"):
            _structure_set(planes, boxes, found, series, model, algorithm).save_as(unfinished, enforce_file_format=True)
        read, read_labels = read_rtstruct(unfinished, series)
        require_same(path, from_planes(planes, series), found, read, read_labels)


def rehearse_rtstruct(series: DicomSeries) -> list[Finding]:
    """Build the RTSTRUCT of one pixel, so that headers that do not allow one are known before the work.

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
    planes = np.zeros((len(few.frames), *few.shape[1::-1]), np.uint8)
    planes[0, 0, 0] = 1
    with referring(few, "an RTSTRUCT") as left_out:
        file = _structure_set(planes, ndimage.find_objects(planes), {"liver": 1}, few, MANUFACTURER)
        file.save_as(BytesIO(), enforce_file_format=True)
    return left_out


def read_rtstruct(path: Path, series: DicomSeries) -> tuple[Volume, dict[str, int]]:
    """The pixels whose centres lie inside the contours of an RTSTRUCT, on the grid of the series that it refers to.

    Returns
    -------
    Volume, dict
        Label ids, and the id of each organ by its name in the file.

    Raises
    ------
    InputRefusedError
        If the file is damaged, is no RTSTRUCT, or refers to other images.
    """
    places = {_image_key(_reference(frame, series)): k for k, frame in enumerate(series.frames)}
    columns, rows, slices = series.shape
    array = np.zeros((slices, rows, columns), np.uint8)
    labels: dict[str, int] = {}
    with decoding(path):
        file = pydicom.dcmread(path)
        if file.SOPClassUID != RTStructureSetStorage:
            raise InputRefusedError(f"{path}: {file.get('Modality')}, not an RTSTRUCT")
        names = {int(item.ROINumber): str(item.ROIName) for item in file.StructureSetROISequence}
        for item in file.ROIContourSequence:
            number = int(item.ReferencedROINumber)
            labels[names[number]] = number
            polygons: dict[int, list[Polygon]] = {}
            for contour in item.ContourSequence:
                k = places.get(_image_key(contour.ContourImageSequence[0]))
                if k is None:
                    raise InputRefusedError(f"{path}: a contour of {names[number]} is about an image of another series")
                polygons.setdefault(k, []).append(_to_pixels(contour.ContourData, series.frames[k]))
            for k, on_slice in polygons.items():
                array[k][fill(on_slice, (rows, columns))] = number
    return from_planes(array, series), labels


def _structure_set(
    planes: NDArray[Any],
    boxes: list[tuple[slice, slice, slice]],
    found: Mapping[str, int],
    series: DicomSeries,
    model: str,
    algorithm: Algorithm = "AUTOMATIC",
) -> Dataset:
    """The whole RTSTRUCT: which images it is about, and for each organ a name, its contours and what it is."""
    image = next(iter(series.headers.values()))
    file = hd.SOPClass(
        study_instance_uid=image.StudyInstanceUID,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER + 1,
        sop_instance_uid=hd.UID(),
        sop_class_uid=RTStructureSetStorage,
        instance_number=1,
        modality="RTSTRUCT",
        manufacturer=MANUFACTURER,
        manufacturer_model_name=model[:64] or MANUFACTURER,
        software_versions=__version__,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=DESCRIPTION,
        patient_id=image.PatientID,
        patient_name=image.PatientName,
        patient_birth_date=image.PatientBirthDate,
        patient_sex=image.PatientSex,
        accession_number=image.AccessionNumber,
        study_id=image.StudyID,
        study_date=image.StudyDate,
        study_time=image.StudyTime,
        referring_physician_name=image.ReferringPhysicianName,
        specific_character_set=image.get("SpecificCharacterSet"),
    )
    file.copy_patient_and_study_information(image)
    now = datetime.datetime.now()
    file.OperatorsName = ""
    file.StructureSetLabel = MANUFACTURER
    file.StructureSetDescription = DESCRIPTION
    file.StructureSetDate, file.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    file.FrameOfReferenceUID = image.FrameOfReferenceUID
    file.PositionReferenceIndicator = image.get("PositionReferenceIndicator") or ""
    file.ReferencedFrameOfReferenceSequence = [_referred(series, image)]
    file.ApprovalStatus = "UNAPPROVED"
    file.StructureSetROISequence = []
    file.ROIContourSequence = []
    file.RTROIObservationsSequence = []
    for number, (name, index) in enumerate(found.items(), start=1):
        roi, contours, observation = Dataset(), Dataset(), Dataset()
        roi.ROINumber = contours.ReferencedROINumber = observation.ReferencedROINumber = number
        roi.ReferencedFrameOfReferenceUID = image.FrameOfReferenceUID
        roi.ROIName = name[:64]
        roi.ROIGenerationAlgorithm = algorithm
        roi.ROIGenerationDescription = f"{MANUFACTURER} {model}".strip()[:64]
        contours.ROIDisplayColor = list(colour_of(name))
        slices, rows, columns = boxes[index - 1]
        contours.ContourSequence = [
            _contour(polygon + np.array([columns.start, rows.start]), frame, series)
            for frame, plane in zip(series.frames[slices], planes[slices, rows, columns], strict=True)
            for polygon in outlines(plane == index)
        ]
        observation.ObservationNumber = number
        observation.RTROIIdentificationCodeSequence = [hd.sr.CodedConcept.from_code(precoordinated(name))]
        observation.RTROIInterpretedType = "ORGAN"
        observation.ROIInterpreter = ""
        file.StructureSetROISequence.append(roi)
        file.ROIContourSequence.append(contours)
        file.RTROIObservationsSequence.append(observation)
    return file


def _referred(series: DicomSeries, image: Any) -> Dataset:
    """The frame of reference, study, series and images that the contours are about."""
    images = Dataset()
    images.SeriesInstanceUID = image.SeriesInstanceUID
    images.ContourImageSequence = [_reference(frame, series) for frame in series.frames]
    study = Dataset()
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = image.StudyInstanceUID
    study.RTReferencedSeriesSequence = [images]
    frame_of_reference = Dataset()
    frame_of_reference.FrameOfReferenceUID = image.FrameOfReferenceUID
    frame_of_reference.RTReferencedStudySequence = [study]
    return frame_of_reference


def _reference(frame: Frame, series: DicomSeries) -> Dataset:
    """A reference to the image that a slice is of, with the frame's number in a multi-frame file."""
    image = series.headers[frame.path]
    reference = Dataset()
    reference.ReferencedSOPClassUID = image.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.SOPInstanceUID
    if "PerFrameFunctionalGroupsSequence" in image:
        reference.ReferencedFrameNumber = frame.index + 1
    return reference


def _image_key(reference: Any) -> tuple[str, int]:
    return str(reference.ReferencedSOPInstanceUID), int(reference.get("ReferencedFrameNumber") or 1)


def _contour(polygon: Polygon, frame: Frame, series: DicomSeries) -> Dataset:
    """One closed polygon, from (column, row) pixels to patient millimetres (LPS)."""
    along, down = _axes(frame)
    points = frame.position_mm + polygon[:, :1] * along + polygon[:, 1:] * down
    contour = Dataset()
    contour.ContourImageSequence = [_reference(frame, series)]
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points)
    contour.ContourData = points.round(DECIMALS).ravel().tolist()
    return contour


def _to_pixels(data: Sequence[Any], frame: Frame) -> Polygon:
    """(points, 2) column and row of contour points in patient millimetres."""
    along, down = _axes(frame)
    off = np.asarray(data, np.float64).reshape(-1, 3) - frame.position_mm
    return np.stack([off @ along / (along @ along), off @ down / (down @ down)], axis=1)


def _axes(frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3,) steps in millimetres from a pixel to the next in its row, and to that below it."""
    return frame.orientation[:3] * frame.pixel_spacing_mm[1], frame.orientation[3:] * frame.pixel_spacing_mm[0]
