"""Uploads that are small and stand for gigabytes, or for hundreds of thousands of files."""

import bz2
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from support.dicom_series import write_ct

MIB = 1 << 20
#: What each would take.
GIB = 1 << 30


def _zeros(size: int, packer: Callable[[bytes], bytes], end: Callable[[], bytes], head: bytes = b"") -> bytes:
    packed = [packer(head)]
    packed += [packer(bytes(4 * MIB)) for _ in range(size // (4 * MIB))]
    return b"".join([*packed, end()])


def gzipped(size: int, head: bytes = b"") -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return _zeros(size, packer.compress, packer.flush, head)


def zlibbed(size: int) -> bytes:
    packer = zlib.compressobj(9)
    return _zeros(size, packer.compress, packer.flush)


def bzipped(size: int) -> bytes:
    packer = bz2.BZ2Compressor()
    return _zeros(size, packer.compress, packer.flush)


def nifti(shape: tuple[int, ...], kind: type = np.int16, slope: float = 1.0) -> bytes:
    """The header of a NIfTI, to be followed by its voxels."""
    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(shape)
    header.set_zooms((1.0, 1.0, 1.0))
    header.set_sform(np.eye(4) + np.diag([1.0, 0, 0, 0]), 1)
    header.set_slope_inter(slope, 0.0)
    header["vox_offset"] = 352
    header["magic"] = b"n+1\0"
    return bytes(header.binaryblock) + bytes(4)


def scaled_nifti() -> bytes:
    shape = (512, 512, 480)  # 120 MiB as it is stored, 480 MiB as it is read
    return gzipped(int(np.prod(shape)), nifti(shape, np.uint8, slope=0.5))


def nifti_longer_than_it_says() -> bytes:
    return gzipped(GIB, nifti((64, 64, 64)))


def nrrd(*lines: str, sizes: str, voxels: bytes) -> bytes:
    head = [
        *("NRRD0004", "type: short", "dimension: 3", "space: left-posterior-superior"),
        *(f"sizes: {sizes}", "space directions: (1,0,0) (0,1,0) (0,0,1)", "endian: little", *lines),
    ]
    return "\n".join(head).encode() + b"\n\n" + voxels


def metaimage(sizes: str, voxels: bytes) -> bytes:
    head = f"ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\nDimSize = {sizes}\n"
    return (head + "ElementSpacing = 1 1 1\nElementType = MET_SHORT\nElementDataFile = LOCAL\n").encode() + voxels


def deflated_dicom(size: int = GIB) -> bytes:
    """A DICOM file whose data set inflates to so much: an element of zeros before its pixels."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    head = io.BytesIO()
    dataset = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    pydicom.dcmwrite(head, dataset, enforce_file_format=True)
    plain = io.BytesIO(head.getvalue())
    pydicom.filereader.read_preamble(plain, force=False)
    pydicom.filereader.read_dataset(plain, False, True, stop_when=lambda tag, *_: tag.group != 2)
    packer = zlib.compressobj(9, wbits=-15)
    element = struct.pack("<HH2sHI", 0x0009, 0x1001, b"OB", 0, size)
    return head.getvalue()[: plain.tell()] + _zeros(size, packer.compress, packer.flush, element)


def zipped(members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def deep_folders(count: int = 19_000, depth: int = 30) -> bytes:
    """Fewer members than are allowed, each in folders of its own."""
    return zipped({"/".join([str(number), *"a" * depth, "x"]): b"" for number in range(count)}, zipfile.ZIP_STORED)


def empty_folders(count: int = 100_000) -> bytes:
    return zipped({f"{number}/a/b/c/d/": b"" for number in range(count)}, zipfile.ZIP_STORED)


def lying_end(count: int = 200_000) -> bytes:
    """A zip that says it has one member."""
    content = bytearray(zipped({str(number): b"" for number in range(count)}, zipfile.ZIP_STORED))
    end = content.rfind(b"PK\x05\x06")
    content[end + 8 : end + 12] = struct.pack("<HH", 1, 1)
    zip64 = content.rfind(b"PK\x06\x06")
    if zip64 >= 0:
        content[zip64 + 24 : zip64 + 40] = struct.pack("<QQ", 1, 1)
    return bytes(content)


def series(folder: Path, change: Callable[[pydicom.Dataset], None]) -> bytes:
    """A small CT, each of its files changed, in a zip."""
    members = {}
    for file in sorted(write_ct(folder, spacing_mm=(6.0, 7.0, 9.0)).iterdir()):
        dataset = pydicom.dcmread(file)
        change(dataset)
        packed = io.BytesIO()
        dataset.save_as(packed)
        members[file.name] = packed.getvalue()
    return zipped(members)


def large_codestream(dataset: pydicom.Dataset) -> None:
    """JPEG 2000 that says it is 40,000 pixels wide and high."""
    pixels = np.kron(dataset.pixel_array, np.ones((16, 16), dataset.pixel_array.dtype))  # the encoder wants 32 or more
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelSpacing = [mm / 16 for mm in dataset.PixelSpacing]
    dataset.PixelData = pixels.tobytes()
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    content = bytearray(dataset.PixelData)
    size = content.index(b"\xff\x51") + 6
    for place in (size, size + 16):  # of the image, and of its one tile
        content[place : place + 8] = struct.pack(">II", 40_000, 40_000)
    dataset.PixelData = bytes(content)


def large_rows(dataset: pydicom.Dataset) -> None:
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.Rows = dataset.Columns = 60_000


def many_frames(dataset: pydicom.Dataset) -> None:
    dataset.NumberOfFrames = 2_000_000_000


def bombs(folder: Path) -> dict[str, Callable[[], bytes]]:
    """By name; `folder` is for files that some are made of."""
    long = "512 512 2000"  # 1 GB
    return {
        "a deflated DICOM": deflated_dicom,
        "a deflated DICOM in a zip": lambda: zipped({"1.dcm": deflated_dicom()}),
        "a hundred deflated DICOMs in a zip": lambda: zipped(
            dict.fromkeys(map(str, range(100)), deflated_dicom(GIB // 8))
        ),
        "NRRD, encoding twice": lambda: nrrd("encoding: gzip", "ENCODING: raw", sizes="8 8 8", voxels=gzipped(GIB)),
        "NRRD, sizes twice": lambda: nrrd("SIZES: 8 8 8", "encoding: gzip", sizes=long, voxels=gzipped(GIB)),
        "NRRD of gzip": lambda: nrrd("encoding: gzip", sizes="8 8 8", voxels=gzipped(GIB)),
        "NRRD of gzip that keeps its word": lambda: nrrd("encoding: gzip", sizes=long, voxels=gzipped(1000 * MIB)),
        "NRRD of bzip2": lambda: nrrd("encoding: bzip2", sizes="8 8 8", voxels=bzipped(300 * MIB)),
        "MetaImage": lambda: metaimage(long, zlibbed(1000 * MIB)),
        "MetaImage that is longer": lambda: metaimage("8 8 8", zlibbed(GIB)),
        "a scaled NIfTI": scaled_nifti,
        "a scaled NIfTI in a zip": lambda: zipped({"a.nii.gz": scaled_nifti()}),
        "a NIfTI that is longer": nifti_longer_than_it_says,
        "a NIfTI that is longer, in a zip": lambda: zipped({"a.nii.gz": nifti_longer_than_it_says()}),
        "a NIfTI in bzip2": lambda: zipped({"a.nii": bz2.compress(nifti((64, 64, 64))) + bzipped(300 * MIB)}),
        "a zip of zeros": lambda: zipped({"1.dcm": bytes(600 * MIB)}),
        "a zip in a zip": lambda: zipped({"1.zip": zipped({"1.zip": zipped({"1.dcm": bytes(300 * MIB)})})}),
        "a zip of deep folders": deep_folders,
        "a zip of empty folders": empty_folders,
        "a zip whose end lies": lying_end,
        "a codestream larger than its image": lambda: series(folder / "a", large_codestream),
        "more rows than pixels": lambda: series(folder / "b", large_rows),
        "more frames than pixels": lambda: series(folder / "c", many_frames),
        "a gzip in a gzip": lambda: gzip.compress(gzipped(GIB)),
    }
