"""One small sound CT, written as NIfTI, NRRD or DICOM, and ways to spoil it: what the bad scans are made from.

The scan is a cylinder of soft tissue with a rim of fat in air, 192 mm wide and 40 mm high, with the axes of a NIfTI
that dcm2niix writes (first axis to the left).
"""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from meddelinea.io.volumes import write_volume
from meddelinea.volume import Volume

Array = NDArray[Any]
Maker = Callable[[Path], Path]
Slices = list[Dataset]

SIDE, HEIGHT = 48, 8
PIXEL_MM, SLICE_MM = 4.0, 5.0
AFFINE = np.diag([-PIXEL_MM, PIXEL_MM, SLICE_MM, 1.0])
SERIES = generate_uid()


def body() -> Array:
    """(48, 48, 8) int16 Hounsfield units."""
    x, y, _ = np.meshgrid(*(np.linspace(-1, 1, n) for n in (SIDE, SIDE, HEIGHT)), indexing="ij")
    radius = np.hypot(x, y)
    hounsfield = np.select([radius < 0.6, radius < 0.8], [45.0, -100.0], -1000.0)
    return np.rint(hounsfield + np.random.default_rng(0).normal(0, 12, hounsfield.shape)).astype(np.int16)


def echoes() -> Array:
    """(48, 48, 8) int16 grey values as of an MR: the body of `body`, on a scale of its own."""
    return np.where(body() > -200, np.random.default_rng(1).gamma(3.0, 90.0, body().shape), 5.0).astype(np.int16)


# NIfTI and NRRD


def nifti(array: Array, affine: Array = AFFINE, name: str = "scan.nii.gz", change: Any = lambda image: None) -> Maker:
    """Writes `array`, after `change(image)`."""

    def make(folder: Path) -> Path:
        image = nib.Nifti1Image(array, affine)
        change(image)
        nib.save(image, folder / name)
        return folder / name

    return make


def forms(qform: Array | None, sform: Array | None) -> Any:
    """A change of a NIfTI's two affines; None unsets one."""

    def change(image: Any) -> None:
        image.set_sform(sform, code=int(sform is not None))
        image.set_qform(qform, code=int(qform is not None))

    return change


def patched(make: Maker, patches: dict[int, Array]) -> Maker:
    """The bytes from each offset on replaced, in a file that is not compressed."""

    def patch(folder: Path) -> Path:
        path = make(folder)
        raw = bytearray(path.read_bytes())
        for offset, values in patches.items():
            raw[offset : offset + values.nbytes] = values.tobytes()
        path.write_bytes(raw)
        return path

    return patch


def rewritten(path: Path, **fields: float) -> Path:
    """The fields of a NIfTI-1's header set in the file itself, as no writer would; `pixdim1` is that of the list."""
    raw = bytearray(path.read_bytes())
    header = np.frombuffer(raw, nib.Nifti1Header.template_dtype, count=1)[0]
    for name, value in fields.items():
        field = name.rstrip("0123456789")
        if name in header.dtype.names:
            header[name] = value
        else:
            header[field][int(name[len(field) :])] = value
    path.write_bytes(raw)
    return path


def with_header(make: Maker, **fields: float) -> Maker:
    """As `rewritten`, of a file that is not compressed."""
    return lambda folder: rewritten(make(folder), **fields)


def truncated(make: Maker, share: float) -> Maker:
    def cut(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path

    return cut


def wrong_checksum(folder: Path) -> Path:
    """A voxel changed under a gzip that stores it uncompressed."""
    packed = bytearray(gzip.compress(nifti(body(), name="scan.nii")(folder).read_bytes(), compresslevel=0))
    (folder / "scan.nii").unlink()
    packed[-100] ^= 0xFF
    (folder / "scan.nii.gz").write_bytes(packed)
    return folder / "scan.nii.gz"


def nrrd_file(array: Array, **changes: Any) -> Maker:
    """Writes `array` with a header that is sound but for `changes`, whose underscores are blanks; None leaves out."""

    def make(folder: Path) -> Path:
        header = {"space": "RAS", "space directions": AFFINE[:3, :3], "space origin": np.zeros(3)}
        header |= {key.replace("_", " "): value for key, value in changes.items()}
        header = {key: value for key, value in header.items() if value is not None}
        nrrd.write(str(folder / "scan.nrrd"), array, header)
        return folder / "scan.nrrd"

    return make


def reworded(make: Maker, old: bytes, new: bytes) -> Maker:
    """Words of a text header replaced."""

    def reword(folder: Path) -> Path:
        path = make(folder)
        raw = path.read_bytes()
        assert old in raw
        path.write_bytes(raw.replace(old, new, 1))
        return path

    return reword


def metaimage(folder: Path) -> Path:
    """The body as a `.mha`."""
    write_volume(Volume(body(), AFFINE), folder / "scan.mha")
    return folder / "scan.mha"


def nhdr_alone(folder: Path) -> Path:
    nrrd.write(str(folder / "scan.nhdr"), body(), {"space": "RAS", "space directions": AFFINE[:3, :3]})
    next(folder.glob("*.raw*")).unlink()
    return folder / "scan.nhdr"


# Other files


def holding(content: bytes, name: str) -> Maker:
    """A file of that name and content; a name with a slash stands for its first folder."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return folder / Path(name).parts[0]

    return make


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def empty_folder(folder: Path) -> Path:
    (folder / "scan").mkdir()
    return folder / "scan"


def zip_of(members: Sequence[tuple[str, bytes]], mode: int = 0o100644) -> Maker:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "scan.zip", "w") as archive:
            for name, content in members:
                member = zipfile.ZipInfo(name)
                member.external_attr = mode << 16
                archive.writestr(member, content)
        return folder / "scan.zip"

    return make


def encrypted_zip(folder: Path) -> Path:
    """A zip whose only member says that it is encrypted."""
    path = zip_of([("0.dcm", b"secret")])(folder)
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    return path


# DICOM


def slices() -> Slices:
    """The body as a CT series, feet first in the list."""
    made = []
    for k in range(HEIGHT):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.SeriesInstanceUID, dataset.SeriesDescription, dataset.Modality = SERIES, "Abdomen", "CT"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient = [-94.0, -94.0, k * SLICE_MM]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [PIXEL_MM, PIXEL_MM], SLICE_MM
        dataset.Rows = dataset.Columns = SIDE
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
        pixels = np.clip(body()[:, ::-1, k].T.astype(np.int32) + 1024, 0, None)
        dataset.PixelData = pixels.astype(np.uint16).tobytes()
        made.append(dataset)
    return made


def series(change: Callable[[Slices], Slices | None] = lambda made: None, name: str = "scan") -> Maker:
    """Writes a folder of slices after `change`, which alters the list or returns another."""

    def make(folder: Path) -> Path:
        made = slices()
        changed = change(made)
        (folder / name).mkdir()
        for k, dataset in enumerate(made if changed is None else changed):
            dataset.save_as(folder / name / f"{k:02d}.dcm", enforce_file_format=True)
        return folder / name

    return make


def put(number: int | None = None, **values: Any) -> Callable[[Slices], None]:
    """Set elements of one slice or, by default, of all."""

    def change(made: Slices) -> None:
        for k, dataset in enumerate(made):
            if number in (None, k):
                for keyword, value in values.items():
                    setattr(dataset, keyword, value)

    return change


def put_in(numbers: Sequence[int], **values: Any) -> Callable[[Slices], None]:
    """Set elements of some slices; those of all others are as they were, or get the value that most scans have."""
    usual = {"PatientID": "1", "StudyInstanceUID": "1.2.3", "FrameOfReferenceUID": "1.2.3", "PatientPosition": "HFS"}

    def change(made: Slices) -> None:
        for k, dataset in enumerate(made):
            for keyword, value in values.items():
                if k in numbers:
                    setattr(dataset, keyword, value)
                elif keyword not in dataset:
                    setattr(dataset, keyword, usual.get(keyword, 0))

    return change


def lost(first: int, last: int, *keywords: str) -> Callable[[Slices], None]:
    """Elements removed from the slices from `first` up to, but not including `last`."""

    def change(made: Slices) -> None:
        for dataset in made[first:last]:
            for keyword in keywords:
                delattr(dataset, keyword)

    return change


def signed(numbers: Sequence[int]) -> Callable[[Slices], None]:
    """Slices whose stored values have the highest bit set, some of them said to have a sign."""

    def change(made: Slices) -> None:
        for dataset in made:
            dataset.PixelData = (dataset.pixel_array + 32768).astype(np.uint16).tobytes()
            dataset.RescaleIntercept = -1024 - 32768
        put_in(numbers, PixelRepresentation=1)(made)

    return change


def in_hounsfield(made: Slices) -> None:
    """Stored as signed Hounsfield units, by a program that does not say so."""
    for dataset in made:
        dataset.PixelData = (dataset.pixel_array.astype(np.int16) - 1024).tobytes()
        dataset.PixelRepresentation = 1
        del dataset.RescaleSlope, dataset.RescaleIntercept


def compressed_larger(made: Slices) -> None:
    """JPEG 2000 of 48 rows and columns under a header that says 40 rows."""
    for dataset in made:
        dataset.compress(pydicom.uid.JPEG2000Lossless, generate_instance_uid=False)
        dataset.Rows = 40


def at(places_mm: Sequence[float]) -> Callable[[Slices], Slices]:
    """As many slices as there are places, at those."""

    def change(made: Slices) -> Slices:
        for dataset, z in zip(made, places_mm, strict=False):
            dataset.ImagePositionPatient = [-94.0, -94.0, z]
        return made[: len(places_mm)]

    return change


def slice_again(made: Slices) -> Slices:
    """One slice twice, the second time as an image of its own."""
    return [*made, slices()[3]]


def phases(made: Slices) -> Slices:
    return [*made, *slices()]


def localizer_beside(made: Slices) -> Slices:
    scout = slices()[0]
    scout.SeriesInstanceUID, scout.SeriesDescription = generate_uid(), "Topogram"
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return [*made, scout]


def second_series(made: Slices) -> Slices:
    other = slices()
    put(SeriesInstanceUID=generate_uid(), SeriesDescription="Lung")(other)
    return [*made, *other]


def tilted(degrees: float) -> Callable[[Slices], None]:
    """Each slice further back than the one below it, as from a tilted gantry."""

    def change(made: Slices) -> None:
        for k, dataset in enumerate(made):
            dataset.ImagePositionPatient = [-94.0, -94.0 + k * SLICE_MM * np.tan(np.deg2rad(degrees)), k * SLICE_MM]

    return change


def enhanced(kind: str, order: Sequence[int], unscaled: int | None = None, said: int | None = None) -> Maker:
    """Writes one multi-frame CT or MR with the frames of `order`, in that order.

    `unscaled` is a frame without its rescale, `said` the number of frames that the header gives.
    """

    def make(folder: Path) -> Path:
        made = slices()
        dataset = made[0]
        dataset.Modality = kind
        storage = {"CT": pydicom.uid.EnhancedCTImageStorage, "MR": pydicom.uid.EnhancedMRImageStorage}[kind]
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = storage
        groups = [_group(made[k]) for k in order]
        dataset.PerFrameFunctionalGroupsSequence = Items(groups)
        if unscaled is not None:
            del groups[unscaled].PixelValueTransformationSequence
        dataset.NumberOfFrames = said or len(order)
        dataset.PixelData = b"".join(made[k].PixelData for k in order)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
            delattr(dataset, keyword)
        dataset.save_as(folder / "scan.dcm", enforce_file_format=True)
        return folder / "scan.dcm"

    return make


def _group(frame: Dataset) -> Dataset:
    """What the functional groups of a multi-frame object say of one frame."""
    group = Dataset()
    for sequence, keywords in {
        "PlanePositionSequence": ["ImagePositionPatient"],
        "PlaneOrientationSequence": ["ImageOrientationPatient"],
        "PixelMeasuresSequence": ["PixelSpacing", "SliceThickness"],
        "PixelValueTransformationSequence": ["RescaleSlope", "RescaleIntercept", "RescaleType"],
    }.items():
        item = Dataset()
        for keyword in keywords:
            setattr(item, keyword, getattr(frame, keyword))
        setattr(group, sequence, Items([item]))
    return group


def spoiled_file(number: int, content: Callable[[bytes], bytes]) -> Maker:
    """A series one of whose files is changed as bytes."""

    def make(folder: Path) -> Path:
        path = series()(folder) / f"{number:02d}.dcm"
        path.write_bytes(content(path.read_bytes()))
        return path.parent

    return make


def odd_text(keyword: str, text: str, vr: str = "LT") -> Maker:
    """A series with an element written as that text, under that value representation."""

    def change(made: Slices) -> None:
        for dataset in made:
            numbers = text
            if keyword == "ImagePositionPatient":
                numbers = "\\".join(str(mm) for mm in dataset.ImagePositionPatient)
            tag = pydicom.datadict.tag_for_keyword(keyword)
            # As raw bytes, since pydicom refuses to make a number of them.
            dataset[tag] = RawDataElement(
                tag, vr, len(numbers), numbers.encode() + b" " * (len(numbers) % 2), 0, False, True
            )

    return series(change)


def link_to_nothing(folder: Path) -> Path:
    path = series()(folder)
    (path / "08.dcm").symlink_to("elsewhere/08.dcm")
    return path
