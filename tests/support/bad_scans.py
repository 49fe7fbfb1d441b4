"""Bad scans, each with the code of the reason for which it is refused or warned about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import nibabel as nib
import numpy as np
from pydicom.uid import PositronEmissionTomographyImageStorage, SecondaryCaptureImageStorage

from meddelinea.findings import Refusal
from support.spoiled_scans import (
    AFFINE,
    SLICE_MM,
    Maker,
    at,
    body,
    compressed_larger,
    echoes,
    empty_folder,
    encrypted_zip,
    enhanced,
    forms,
    holding,
    in_hounsfield,
    link_to_nothing,
    localizer_beside,
    lost,
    metaimage,
    nhdr_alone,
    nifti,
    nrrd_file,
    odd_text,
    patched,
    phases,
    pipe,
    put,
    put_in,
    reworded,
    second_series,
    series,
    signed,
    slice_again,
    spoiled_file,
    tilted,
    truncated,
    with_header,
    wrong_checksum,
    zip_of,
)


@dataclass(frozen=True)
class BadScan:
    """A bad input: what writes it, the code of its reason, and what the message must name."""

    name: str
    make: Maker
    code: str
    says: str
    model: str = "CT"

    @property
    def level(self) -> str:
        """Whether it is refused or warned about."""
        return "refuse" if self.code in get_args(Refusal) else "warn"


def values(change: Callable[[np.ndarray], np.ndarray]) -> Maker:
    """A NIfTI whose Hounsfield units were changed as numbers."""
    return nifti(change(body().astype(np.float32)))


def unit(array: np.ndarray) -> np.ndarray:
    return (array - array.min()) / np.ptp(array)


def with_voxel(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[3, 3, 3] = value
        return array

    return change


def turned(*signs: float) -> np.ndarray:
    return np.diag([*signs, 1.0]) @ AFFINE


def sheared(degrees: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[1, 2] = SLICE_MM * np.tan(np.deg2rad(degrees))
    return affine


def colours() -> np.ndarray:
    return np.zeros((48, 48, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])


def microns(image: Any) -> None:
    image.header.set_xyzt_units("micron")


def not_finite(image: Any) -> None:
    image.header["srow_x"][0] = np.nan


def flat(image: Any) -> None:
    image.header["srow_z"] = image.header["srow_y"]


def raw_header(change: Callable[[Any], None]) -> Maker:
    """A NIfTI whose header was changed in a way that the writer would mend."""

    def make(folder: Path) -> Path:
        image = nib.Nifti1Image(body(), AFFINE)
        change(image)
        nib.Nifti1Image(body(), None, image.header).to_filename(folder / "scan.nii")
        return folder / "scan.nii"

    return make


plain = nifti(body(), change=forms(AFFINE, AFFINE), name="scan.nii")


def moved() -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += 30, -40, 25
    return affine


def longer(make: Maker, more: bytes) -> Maker:
    def lengthen(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes() + more)
        return path

    return lengthen


def noise() -> np.ndarray:
    return np.random.default_rng(2).normal(7000, 100, body().shape).astype(np.float32)


def overshot() -> np.ndarray:
    """The body with bone, in air that interpolation made lower than it is in places."""
    hounsfield, places = body().copy(), np.random.default_rng(1).random(body().shape)
    hounsfield[(hounsfield < -800) & (places < 0.1)] -= 150
    hounsfield[(hounsfield > 0) & (places < 0.1)] += 500
    return hounsfield


#: A NIfTI whose header promises 32767 voxels along each axis: 70 TB.
HUGE = patched(nifti(body(), name="scan.nii"), {42: np.array([32767] * 3, "<i2")})
MASK = (body() > 20).astype(np.uint8) * 3
LOST = [0.0, 5.0, 10.0, 20.0, 25.0, 30.0, 35.0]
UNEVEN = [0.0, 5.0, 10.0, 16.0, 20.0, 25.0, 30.0, 35.0]
MEETING = [0.0, 5.0, 10.0, 15.0, 17.0, 22.0, 27.0, 32.0]

REFUSALS = [
    # files
    BadScan("nothing there", lambda folder: folder / "scan.nii.gz", "not_found", "no such file"),
    BadScan("another format", holding(b"CDF\1" + b"\0" * 200, "scan.mnc"), "unknown_kind", "scan.mnc"),
    BadScan("a text", holding(b"patient,organ\n", "scan.txt"), "unknown_kind", "scan.txt"),
    BadScan("a file without an ending", holding(b"\0" * 500, "scan"), "unknown_kind", "not a kind of file"),
    BadScan("a pipe", pipe, "unknown_kind", "not a kind of file"),
    BadScan("an empty NIfTI", holding(b"", "scan.nii"), "unreadable", "NIfTI"),
    BadScan("an empty gzip", holding(b"", "scan.nii.gz"), "unreadable", "NIfTI"),
    BadScan("a web page called NIfTI", holding(b"<html>404</html>" * 50, "scan.nii.gz"), "unreadable", "<html>404"),
    BadScan("a truncated NIfTI", truncated(nifti(body(), name="scan.nii"), 0.7), "unreadable", "48 x 48 x 8 voxels"),
    BadScan("a NIfTI cut in its header", truncated(nifti(body(), name="scan.nii"), 0.005), "unreadable", "NIfTI"),
    BadScan("a truncated gzip", truncated(nifti(body()), 0.7), "unreadable", "end-of-stream"),
    BadScan("a gzip with a wrong checksum", wrong_checksum, "unreadable", "CRC"),
    BadScan("a header that promises 70 TB", HUGE, "unreadable", "32767 x 32767 x 32767"),
    BadScan("a NIfTI with a dimension too small", with_header(plain, dim3=7), "unreadable", "48 x 48 x 7 voxels"),
    BadScan("a NIfTI with something behind it", longer(plain, b"\0"), "unreadable", "holds more"),
    BadScan("a NIfTI of two kinds of voxels", with_header(plain, bitpix=8), "unreadable", "gives a voxel 8 bits"),
    BadScan("a NIfTI whose voxels begin in its header", with_header(plain, vox_offset=176), "unreadable", "176"),
    BadScan("a NIfTI scaled without end", with_header(plain, scl_slope=np.inf), "unreadable", "scaled by inf"),
    BadScan("a truncated NRRD", truncated(nrrd_file(body()), 0.7), "unreadable", "NRRD"),
    BadScan("a text called NRRD", holding(b"NRRD0000\nnothing\n", "scan.nrrd"), "unreadable", "NRRD"),
    BadScan("a NHDR without its data", nhdr_alone, "unreadable", "copy both"),
    BadScan(
        "a NRRD packed in two ways",
        reworded(nrrd_file(body()), b"encoding: gzip", b"encoding: gzip\nEncoding: raw"),
        "unreadable",
        "'encoding' twice",
    ),
    BadScan(
        "a NRRD with its voxels elsewhere",
        reworded(nrrd_file(body()), b"encoding: gzip", b"encoding: gzip\ndata file: ../../x.raw"),
        "unreadable",
        "outside its own folder",
    ),
    BadScan("a MetaImage of too few slices", reworded(metaimage, b"48 48 8", b"48 48 7"), "unreadable", "48 x 48 x 7"),
    BadScan(
        "a MetaImage of two sizes",
        reworded(metaimage, b"BinaryData =", b"DimSize = 9\nBinaryData ="),
        "unreadable",
        "'dimsize' twice",
    ),
    BadScan(
        "a MetaImage without sizes", reworded(metaimage, b"ElementSpacing", b"Spacing"), "bad_affine", "elementsize"
    ),
    BadScan(
        "a MetaImage in colours",
        reworded(metaimage, b"NDims", b"ElementNumberOfChannels = 3\nNDims"),
        "not_grey",
        "3 ch",
    ),
    BadScan("a zip of a zip", zip_of([("scan.zip", b"PK")]), "no_scan", "a zip in a zip"),
    BadScan("a zip of two scans", zip_of([("a.nii", b"x"), ("b.mha", b"x")]), "several_series", "2 scans in the zip"),
    BadScan("a damaged zip", holding(b"PK\x03\x04" + b"\0" * 80, "scan.zip"), "unreadable", "unpacked"),
    BadScan("a zip that writes elsewhere", zip_of([("../../0.dcm", b"x")]), "unsafe_archive", "'../../0.dcm'"),
    BadScan(
        "a zip with a link", zip_of([("0.dcm", b"/etc/hostname")], 0o120777), "unsafe_archive", "'0.dcm' is a link"
    ),
    BadScan("an encrypted zip", encrypted_zip, "unsafe_archive", "'0.dcm' is encrypted"),
    BadScan("a zip of photographs", zip_of([("a.jpg", b"\xff\xd8"), ("b.jpg", b"\xff\xd8")]), "no_scan", "none"),
    # the shape of NIfTI and NRRD
    BadScan("a picture", nifti(body()[:, :, 0]), "not_3d", "2 dimensions"),
    BadScan("a time series", nifti(np.stack([body(), body()], axis=-1)), "not_3d", "(48, 48, 8, 2)"),
    BadScan("an empty axis", nifti(body()[:, :, :0]), "not_3d", "shape (48, 48, 0)"),
    BadScan("colours", nifti(colours()), "not_grey", "RGB"),
    BadScan("complex numbers", nifti(body().astype(np.complex64)), "not_grey", "complex"),
    BadScan("a flat affine", raw_header(flat), "bad_affine", "singular"),
    BadScan("an affine that is not a number", raw_header(not_finite), "bad_affine", "nan"),
    BadScan("a NIfTI beyond the moon", with_header(plain, srow_x3=1e12), "bad_affine", "1e+12"),
    BadScan("a NIfTI of voxels without a size", with_header(plain, sform_code=0, pixdim2=0), "bad_affine", "4 x 0 x 5"),
    BadScan("a NIfTI with an unknown form", with_header(plain, qform_code=-7), "bad_affine", "qform_code is -7"),
    BadScan("mirrored forms", nifti(body(), change=forms(AFFINE, turned(-1, 1, 1))), "orientation_conflict", "RAS"),
    BadScan("forms upside down", nifti(body(), change=forms(AFFINE, turned(1, -1, -1))), "orientation_conflict", "LPI"),
    BadScan("a time series as NRRD", nrrd_file(np.stack([body(), body()]), space_directions=None), "not_3d", "4 dim"),
    BadScan("a NRRD without a space", nrrd_file(body(), space=None, space_dimension=3), "no_orientation", "none"),
    BadScan("a NRRD in a room", nrrd_file(body(), space="3D-left-handed"), "no_orientation", "3D-left-handed"),
    BadScan("a NRRD without directions", nrrd_file(body(), space_directions=None), "no_orientation", "[]"),
    BadScan("a NRRD in centimetres", nrrd_file(body(), space_units=["cm"] * 3), "unknown_units", "cm"),
    BadScan("a flat NRRD", nrrd_file(body(), space_directions=np.diag([1.0, 1, 0])), "bad_affine", "singular"),
    # DICOM series
    BadScan("an empty folder", empty_folder, "no_scan", "none"),
    BadScan("a folder of letters", holding(b"Dear colleague", "scan/letter.txt"), "no_scan", "none"),
    BadScan("one slice", series(lambda made: made[:1]), "too_few_slices", "one slice"),
    BadScan("two slices", series(lambda made: made[:2]), "too_few_slices", "48 x 48 x 2"),
    BadScan("a lost slice", series(at(LOST)), "missing_slices", "10.000 mm"),
    BadScan("a slice of two images", series(slice_again), "duplicate_slices", "15.000 mm"),
    BadScan("two phases", series(phases), "several_volumes", "2 slices at each of 8 positions"),
    BadScan("ranges that meet", series(at(MEETING)), "overlapping_slices", "2.000 mm apart"),
    BadScan("an uneven stack", series(at(UNEVEN)), "uneven_slices", "1.000 mm along"),
    BadScan("two series", series(second_series), "several_series", "2 image series"),
    BadScan("a localizer beside the scan", series(localizer_beside), "several_series", "(1 localizer)"),
    BadScan("localizers only", series(put(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])), "localizer", "scout"),
    BadScan(
        "another plane", series(put(3, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])), "mixed_slices", "orientation"
    ),
    BadScan("another size", series(put(3, Rows=40)), "mixed_slices", "[40, 48]"),
    BadScan("another pixel", series(put(3, PixelSpacing=[2, 2])), "mixed_slices", "[2.0, 2.0]"),
    BadScan(
        "a PET",
        series(put(Modality="PT", SOPClassUID=PositronEmissionTomographyImageStorage)),
        "modality",
        "modality PT",
    ),
    BadScan("an MR for a CT model", series(put(Modality="MR")), "modality", "the scan is MR"),
    BadScan("screenshots", series(put(SOPClassUID=SecondaryCaptureImageStorage)), "no_scan", "CT"),
    BadScan("a dose", series(put(Modality="RTDOSE")), "no_scan", "RTDOSE"),
    BadScan("colours in DICOM", series(put(PhotometricInterpretation="RGB")), "not_grey", "RGB"),
    BadScan("a horse", series(put(AnatomicalOrientationType="QUADRUPED")), "quadruped", "QUADRUPED"),
    BadScan("atomic numbers", series(put(RescaleType="Z_EFF")), "not_hounsfield", "Z_EFF"),
    BadScan("a slice without a place", series(put(3, ImagePositionPatient=None)), "broken_header", "None"),
    BadScan("no spacing", series(put(PixelSpacing=[0, 0])), "broken_header", "[0.0, 0.0] mm"),
    BadScan("axes that are one", series(put(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])), "broken_header", "1.0, 0.0"),
    BadScan("frames without places", series(put(NumberOfFrames=4)), "broken_header", "several frames"),
    BadScan("a slice of no bytes", spoiled_file(3, lambda raw: b""), "unreadable", "03.dcm"),
    BadScan("a truncated slice", spoiled_file(3, lambda raw: raw[:-900]), "unreadable", "03.dcm"),
    BadScan("a slice cut in its header", spoiled_file(3, lambda raw: raw[:400]), "unreadable", "03.dcm"),
    BadScan("an enhanced CT, a frame lost", enhanced("CT", [0, 1, 2, 4, 5, 6]), "missing_slices", "10.000 mm"),
    BadScan(
        "an enhanced CT of two phases", enhanced("CT", [0, 1, 2, 3] * 2), "several_volumes", "2 slices at each of 4"
    ),
    BadScan("an enhanced MR for a CT model", enhanced("MR", range(8)), "modality", "the scan is MR"),
    BadScan("a DICOM CT for an MR model", series(), "modality", "the scan is CT", "MR"),
    BadScan(
        "slices that lost their rescale",
        series(lost(2, 5, "RescaleSlope", "RescaleIntercept")),
        "mixed_values",
        "5 of 8",
    ),
    BadScan("slices with an empty intercept", series(put_in([3, 4], RescaleIntercept=None)), "mixed_values", "absent"),
    BadScan("slices with a default intercept", series(put_in([3, 4], RescaleIntercept=0)), "mixed_values", "1024 HU"),
    BadScan("slices with another slope", series(put_in([3, 4], RescaleSlope=3)), "mixed_values", "RescaleSlope"),
    BadScan("slices of no unit", series(put_in([3, 4], RescaleType="US")), "mixed_values", "US"),
    BadScan("negatives", series(put_in([0], PhotometricInterpretation="MONOCHROME1")), "mixed_values", "MONOCHROME1"),
    BadScan("slices with a sign", series(signed([3, 4])), "mixed_values", "PixelRepresentation 0 and 1"),
    BadScan("frames that lost their rescale", enhanced("CT", range(8), unscaled=2), "mixed_values", "frame 3"),
    BadScan("slices of another patient", series(put_in([6, 7], PatientID="2")), "mixed_slices", "PatientID differs"),
    BadScan("slices of another study", series(put_in([6, 7], StudyInstanceUID="1.2.4")), "mixed_slices", "Study"),
    BadScan("another space", series(put_in([6, 7], FrameOfReferenceUID="1.2.4")), "mixed_slices", "FrameOfReference"),
    BadScan("feet first within", series(put_in([6, 7], PatientPosition="FFS")), "mixed_slices", "FFS"),
    BadScan("two tilts", series(put_in([6, 7], GantryDetectorTilt=12)), "mixed_slices", "12 degrees"),
    BadScan("two slice distances", series(at([0, 2, 4, 6, 11, 16, 21, 26])), "uneven_slices", "2.000 mm apart"),
    BadScan("rows too few", series(put(Rows=40)), "broken_header", "4608 bytes of PixelData; expected 3840"),
    BadScan("columns too few", series(put(Columns=47)), "broken_header", "4608 bytes of PixelData; expected 4512"),
    BadScan("bits too few", series(put(BitsAllocated=8, BitsStored=8, HighBit=7)), "broken_header", "BitsAllocated 8"),
    BadScan("a slope of 0", series(put(RescaleSlope=0)), "broken_header", "RescaleSlope"),
    BadScan("an origin beyond the moon", series(at([1e12 + 5 * k for k in range(8)])), "broken_header", "1e+06 mm"),
    BadScan("more frames than described", enhanced("CT", range(8), said=7), "broken_header", "NumberOfFrames is 7"),
    BadScan("spacing in words", odd_text("PixelSpacing", "4 mm\\4 mm"), "broken_header", "PixelSpacing (0028,0030)"),
    BadScan("a link to nothing", link_to_nothing, "unreadable", "a link to"),
    BadScan("text called .dcm", spoiled_file(3, lambda raw: b"Dear colleague"), "unreadable", "03.dcm"),
    BadScan(
        "a compressed frame of another size", series(compressed_larger), "broken_header", "(48, 48) rows and columns"
    ),
    # the grid
    BadScan("one slice of a NIfTI", nifti(body()[:, :, 3:4]), "too_few_slices", "48 x 48 x 1"),
    BadScan("spacing in microns", nifti(body(), change=microns), "spacing", "0.004 x 0.004 x 0.005 mm"),
    BadScan("slices far apart", nifti(body(), np.diag([-4.0, 4, 25, 1])), "spacing", "25 mm"),
    BadScan("a mouse", nifti(body(), np.diag([-0.5, 0.5, 0.5, 1])), "small_extent", "24 x 24 x 4 mm"),
    BadScan("a giant", nifti(np.repeat(body(), 20, 2), np.diag([-4.0, 4, 18, 1])), "large_extent", "2880 mm"),
    BadScan("a shear", nifti(body(), sheared(55)), "sheared", "55 degrees"),
    # the grey values
    BadScan("one voxel that is not a number", values(with_voxel(np.nan)), "not_finite", "1 of 18432 voxels"),
    BadScan("one voxel without end", values(with_voxel(np.inf)), "not_finite", "1 of 18432 voxels"),
    BadScan("zeros", nifti(body() * 0), "constant", "every voxel is 0"),
    BadScan("air", nifti(body() * 0 - 1024), "constant", "every voxel is -1024"),
    BadScan("0 to 1", values(unit), "rescaled", "[0, 1]"),
    BadScan("-1 to 1", values(lambda array: 2 * unit(array) - 1), "rescaled", "[-1, 1]"),
    BadScan("0 to 255", nifti((255 * unit(body().astype(float))).astype(np.uint8)), "rescaled", "0 to 255"),
    BadScan("a window of 0 to 255", values(lambda array: 255 * unit(np.clip(array, -160, 240))), "rescaled", "255"),
    BadScan("mean 0, deviation 1", values(lambda array: (array - array.mean()) / array.std()), "rescaled", "mean 0"),
    BadScan("thousandths", values(lambda array: array / 1000), "rescaled", "1000"),
    BadScan("twice the slope", values(lambda array: 2 * array), "rescaled", "times 2"),
    BadScan("half the slope", values(lambda array: array / 2), "rescaled", "times 0.5"),
    BadScan("no intercept", series(put(RescaleIntercept=0)), "stored_offset", "subtract 1024"),
    BadScan("an offset of 32768", nifti((body() + 32768.0).astype(np.uint16)), "stored_offset", "subtract 32768"),
    BadScan("an offset of 1000 and overshoot", nifti(overshot() + 1000), "stored_offset", "subtract 1000 (estimated"),
    BadScan("an offset of 1024 and overshoot", nifti(overshot() + 1024), "stored_offset", "subtract 1024 (estimated"),
    BadScan("an offset of 1000, clipped", nifti(np.maximum(body() + 1000, 0)), "stored_offset", "subtract 1000"),
    BadScan("an offset of 8192", nifti(body() + 8192), "stored_offset", "subtract 8192"),
    BadScan("an offset of its own", nifti(body() + 500), "stored_offset", "without its rescale intercept"),
    BadScan("the intercept twice", nifti(body() - 1024), "offset_twice", "add 1024"),
    BadScan("densities", values(lambda array: array / 1000 + 1), "rescaled", "soft tissue near 1.0"),
    BadScan("a lost sign", nifti(body().astype(np.uint16)), "unsigned_wrap", "from 2 to 65"),
    BadScan("a lost sign of 12 bits", nifti(np.where(body() < 0, body() + 4096, body())), "unsigned_wrap", "12 bits"),
    BadScan("black for white", nifti(-body()), "inverted", "or multiply by -1"),
    BadScan("black for white, moved", nifti(-(overshot() + 1000)), "inverted", "pass the original CT"),
    BadScan("4095 less the value", nifti(4095 - (body() + 1024)), "inverted", "pass the original CT"),
    BadScan("a window without fat", nifti(np.clip(body(), -50, 60)), "narrow_window", "-50 to 60"),
    BadScan("a mask", nifti(MASK), "label_mask", "0 to 3"),
    BadScan("an MR called nothing", nifti(echoes()), "not_hounsfield", f"to {echoes().max()}"),
    BadScan("a CT in other steps", values(lambda array: 7000 + 300 * unit(array)), "rescaled", "7000 to 7300"),
    BadScan("noise", nifti(noise()), "not_hounsfield", "an MR, or another scale"),
    BadScan("a CT for an MR model", nifti(body()), "looks_like_ct", "air near", "MR"),
    BadScan("a mask for an MR model", nifti(MASK), "label_mask", "0 to 3", "MR"),
    BadScan("an MR for a model of both", nifti(echoes()), "modality_unknown", "CT or MR", "both"),
]

WARNINGS = [
    BadScan(
        "a MetaImage without directions", reworded(metaimage, b"TransformMatrix", b"Comment"), "no_geometry", "axes"
    ),
    BadScan(
        "an identity affine", nifti(np.kron(body(), np.ones((2, 2, 3), np.int16)), np.eye(4)), "no_geometry", "identity"
    ),
    BadScan("neither form", nifti(body(), change=forms(None, None)), "no_geometry", "neither sform nor qform"),
    BadScan("a sform of a registration", nifti(body(), change=forms(AFFINE, moved())), "forms_differ", "by the qform"),
    BadScan("two voxel sizes", nifti(body(), change=forms(turned(1, 1, 2), AFFINE)), "spacing_conflict", "4 x 4 x 10"),
    BadScan("a folder copied into itself", series(lambda made: made * 2), "copied_files", "8 file(s) repeat others"),
    BadScan("a copied slice", series(lambda made: [*made, made[3]]), "copied_files", "1 file(s) repeat others"),
    BadScan("decimal commas", odd_text("PixelSpacing", "4,0\\4,0", "DS"), "odd_numbers", "in 8 file(s)"),
    BadScan("numbers as text", odd_text("ImagePositionPatient", "-94\\-94\\0", "LT"), "odd_numbers", "ImagePosition"),
    BadScan("no rescale at all", series(in_hounsfield), "no_rescale", "RescaleSlope and RescaleIntercept"),
    BadScan("other bits", series(put_in([3], BitsStored=12, HighBit=11)), "mixed_coding", "BitsStored, HighBit"),
    BadScan("thin slices far apart", series(put(SliceThickness=1)), "slice_gaps", "slices 1 mm thick lie 5 mm apart"),
    BadScan("every second slice lost", series(lambda made: made[::2]), "slice_gaps", "10 mm apart"),
    BadScan("a tilted gantry", series(tilted(20)), "gantry_tilt", "20.0 degrees"),
    BadScan("thick slices", nifti(body(), np.diag([-4.0, 4, 15, 1])), "thick_slices", "15 mm"),
    BadScan("coronal slices", nifti(body().swapaxes(1, 2), np.diag([-4.0, 9, 4, 1])), "not_axial", "coronal"),
    BadScan("axial slices", nifti(body(), np.diag([-4.0, 4, 9, 1])), "other_plane", "coronal ones", "coronal"),
    BadScan("a short scan", nifti(body()[:, :, :3]), "short_scan", "15 mm high"),
    BadScan(
        "a cut-out",
        values(lambda array: array[15:33, 15:33] - 150 * (np.indices((18, 18, 8)).max(0) < 5)),
        "cropped",
        "94 % of",
    ),
    BadScan("a window", nifti(np.clip(body(), -125, 60)), "windowed", "-125 to 60"),
    BadScan("a lung window", nifti(np.clip(body(), -1350, 45)), "windowed", "45"),
    BadScan("air that is too dark", values(lambda array: array * 1.25), "air_outside_range", "air lies near -12"),
    BadScan("a hip of steel", nifti(np.where(np.indices(body().shape).max(0) < 6, 3071, body())), "metal", "ml are"),
]
