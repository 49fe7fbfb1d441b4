"""Uploads: their kind comes from their bytes, and what would cost too much or reach elsewhere is refused unread."""

import bz2
import gzip
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest

from meddelinea.errors import InputRefusedError
from meddelinea.serving.uploads import ZIP_MEMBERS, recognise, screen

MIB = 1 << 20
SMALL = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def nifti(path: Path, version: int = 1, order: str = "<") -> Path:
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    header = kind.header_class(endianness=order)
    nib.save(kind(SMALL, np.eye(4), header), path)
    return path


RAW = "encoding: raw"


def nrrd_file(path: Path, *lines: str, sizes: str = "3 4 5", blank: str = "\n", voxels: bytes = b"") -> Path:
    head = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nendian: little\n" + "".join(f"{a}\n" for a in lines)
    path.write_bytes(head.encode() + blank.encode() + voxels)
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_is_known_by_its_bytes_and_accepted(tmp_path: Path, suffix: str, version: int, order: str) -> None:
    path = nifti(tmp_path / f"scan{suffix}", version, order)
    assert recognise(path) == suffix
    screen(path, SMALL.nbytes + 1000)


def test_other_kinds_are_known_by_their_bytes(tmp_path: Path) -> None:
    scan = tmp_path / "a"
    nrrd.write(str(scan) + ".nrrd", SMALL)
    assert recognise(Path(f"{scan}.nrrd")) == ".nrrd"
    screen(Path(f"{scan}.nrrd"), MIB)
    archive = zipped(tmp_path / "b.zip", {"1.dcm": b"x"})
    assert recognise(archive) == ".zip"
    screen(archive, MIB)
    (tmp_path / "c").write_bytes(bytes(128) + b"DICM" + bytes(10))
    assert recognise(tmp_path / "c") == ".dcm"


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n", b"<html>", gzip.compress(b"a letter"), b"\x1f\x8b broken", bytes(600), b"\x7fELF"],
    ids=["empty", "PNG", "HTML", "gzip of a letter", "broken gzip", "zeros", "ELF"],
)
def test_wrong_types_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(InputRefusedError, match=r"empty|not a NIfTI"):
        recognise(tmp_path / "x")


def huge_nifti1(path: Path) -> Path:
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    path.write_bytes(header.binaryblock + bytes(100))
    return path


def huge_nifti2(path: Path) -> Path:
    header = nib.Nifti2Header()
    header.set_data_shape((1 << 40, 1 << 20, 4))
    path.write_bytes(gzip.compress(header.binaryblock + bytes(100)))
    return path


def long_gzip(path: Path) -> Path:
    header = nib.Nifti1Header()
    header.set_data_shape((3, 4, 5))
    path.write_bytes(gzip.compress(header.binaryblock + bytes(3 * MIB)))
    return path


def long_nrrd(pack: Callable[[bytes], bytes], encoding: str) -> Callable[[Path], Path]:
    return lambda path: nrrd_file(path, f"encoding: {encoding}", voxels=pack(bytes(3 * MIB)))


def hidden_bomb(path: Path) -> Path:
    """pynrrd ends a header at a line of blanks too; the bomb stands behind that and harmless voxels behind it."""
    harmless = b"\n\n" + gzip.compress(SMALL.tobytes())
    return nrrd_file(path, "encoding: gzip", blank=" \x1c\n", voxels=gzip.compress(bytes(3 * MIB)) + harmless)


def many_members(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(ZIP_MEMBERS + 1):
            archive.writestr(str(number), b"")
    return path


BAD = {
    "claims too many voxels": ("x.nii", huge_nifti1, "claims 30000 x 30000 x 30000 voxels"),
    "claims too many voxels, NIfTI-2": ("x.nii.gz", huge_nifti2, "claims 1099511627776"),
    "gzip bomb": ("x.nii.gz", long_gzip, "unpacks to more than 2 MiB"),
    "NRRD gzip bomb": ("x.nrrd", long_nrrd(gzip.compress, "gzip"), "unpacks to more than 2 MiB"),
    "NRRD gz bomb in capitals": ("x.nrrd", long_nrrd(gzip.compress, "GZ"), "unpacks to more than 2 MiB"),
    "NRRD bzip2 bomb": ("x.nrrd", long_nrrd(bz2.compress, "bzip2"), "unpacks to more than 2 MiB"),
    "NRRD bomb behind blanks": ("x.nrrd", hidden_bomb, "unpacks to more than 2 MiB"),
    "NRRD of another file": (
        "x.nrrd",
        lambda p: nrrd_file(p, RAW, "data file: /etc/passwd"),
        "do not follow its header",
    ),
    "NRRD of a list": ("x.nrrd", lambda p: nrrd_file(p, RAW, "datafile: LIST\nx.raw"), "do not follow its header"),
    "NRRD with a skip": ("x.nrrd", lambda p: nrrd_file(p, RAW, "byte skip: 9"), "do not follow its header"),
    "NRRD bomb beside a raw": (
        "x.nrrd",
        lambda p: nrrd_file(p, RAW, "ENCODING: gzip", voxels=gzip.compress(bytes(3 * MIB))),
        "'encoding' twice",
    ),
    "NRRD of two sizes": ("x.nrrd", lambda p: nrrd_file(p, RAW, "Sizes: 9000 9000 9000"), "'sizes' twice"),
    "NRRD claims": ("x.nrrd", lambda p: nrrd_file(p, RAW, sizes="90000 90000 90000"), "claims 90000"),
    "NRRD without sizes": ("x.nrrd", lambda p: nrrd_file(p, RAW, sizes="a b c"), "not a readable NRRD"),
    "NRRD header without end": ("x.nrrd", lambda p: nrrd_file(p, "a: " + "b" * (1 << 20)), "does not end"),
    "zip bomb": ("x.zip", lambda p: zipped(p, {"a": bytes(3 * MIB)}), "unpacks to 3 MiB"),
    "zip of too many": ("x.zip", many_members, f"{ZIP_MEMBERS + 1} members"),
    "zip cut short": ("x.zip", lambda p: p.write_bytes(b"PK\x03\x04" + bytes(40)) and p, "cannot be opened"),
}


@pytest.mark.parametrize("case", BAD)
def test_costly_or_reaching_uploads_are_refused(tmp_path: Path, case: str) -> None:
    name, make, reason = BAD[case]
    with pytest.raises(InputRefusedError, match=reason):
        screen(make(tmp_path / name), 2 * MIB)


def test_the_hidden_bomb_is_one_that_pynrrd_would_unpack(tmp_path: Path) -> None:
    path = hidden_bomb(tmp_path / "x.nrrd")
    with path.open("rb") as stream:
        nrrd.read_header(stream)
        rest = stream.read()
    assert len(gzip.GzipFile(fileobj=io.BytesIO(rest)).read(2 * MIB)) == 2 * MIB


def test_a_zip_that_lies_about_its_members_unpacks_to_no_more_than_it_says(tmp_path: Path) -> None:
    path = zipped(tmp_path / "x.zip", {"a": bytes(3 * MIB)})
    content = bytearray(path.read_bytes())
    true = struct.pack("<I", 3 * MIB)
    for _ in range(2):
        place = content.index(true)
        content[place : place + 4] = struct.pack("<I", 10)
    path.write_bytes(content)
    screen(path, 2 * MIB)
    with zipfile.ZipFile(path) as archive, pytest.raises(zipfile.BadZipFile):
        archive.extractall(tmp_path / "out")
    assert sum(file.stat().st_size for file in (tmp_path / "out").glob("*")) <= 10
