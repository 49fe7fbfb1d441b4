"""MetaImage: read as ITK reads it, written for ITK, and refused where its header contradicts itself or its data."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea.io.volumes import read_volume, write_volume
from meddelinea.volume import Volume
from support.reading import LPS_TO_RAS, assert_same, from_simpleitk, refusal, remarks

BYTES = 2 * 6 * 7 * 8


def in_simpleitk(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(volume.array.transpose(2, 1, 0))
    lps = LPS_TO_RAS @ volume.affine
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(lps[:3, 3])
    image.SetDirection((lps[:3, :3] / volume.spacing_mm).ravel())
    return image


def written(
    path: Path, volume: Volume, changes: dict[str, str | None] | None = None, voxels: bytes | None = None
) -> Path:
    """A MetaImage as another program might write it, with `changes` of its header; None leaves a line out."""
    lps = LPS_TO_RAS @ volume.affine
    fields: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": " ".join(map(str, (lps[:3, :3] / volume.spacing_mm).T.ravel())),
        "Offset": " ".join(map(str, lps[:3, 3])),
        "ElementSpacing": " ".join(map(str, volume.spacing_mm)),
        "DimSize": "6 7 8",
        "ElementType": "MET_SHORT",
    } | (changes or {})
    fields = {"ElementDataFile": "LOCAL"} | fields
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last line of all
    head = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    local = fields["ElementDataFile"] == "LOCAL"
    path.write_bytes(
        head.encode() + ((volume.array.tobytes(order="F") if voxels is None else voxels) if local else b"")
    )
    return path


@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_what_simpleitk_writes_is_read(tmp_path: Path, oblique: Volume, name: str, packed: bool, kind: type) -> None:
    volume = Volume(oblique.array.astype(kind), oblique.affine)
    sitk.WriteImage(in_simpleitk(volume), str(tmp_path / name), useCompression=packed)
    read = read_volume(tmp_path / name)
    assert read.array.dtype == kind
    assert_same(read, (volume.array, volume.affine))


def test_the_headers_of_other_programs_are_read_as_simpleitk_reads_them(tmp_path: Path, oblique: Volume) -> None:
    (tmp_path / "scan.raw").write_bytes(b"x" * 77 + oblique.array.tobytes(order="F"))
    for k in range(8):
        (tmp_path / f"s{k}.raw").write_bytes(oblique.array[:, :, k].tobytes(order="F"))
    packed = zlib.compress(oblique.array.tobytes(order="F"))
    listed = "LIST\n" + "\n".join(f"s{k}.raw" for k in range(8))
    swapped = oblique.array.astype(">i2").tobytes(order="F")
    for number, (changes, voxels) in enumerate(
        (
            ({}, None),
            ({"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "True"}, swapped),
            ({"ElementDataFile": "scan.raw", "HeaderSize": "77"}, None),
            ({"ElementDataFile": "scan.raw", "HeaderSize": "-1"}, None),
            ({"ElementDataFile": listed}, None),
            ({"ElementDataFile": "s%d.raw 0 7 1"}, None),
            ({"CompressedData": "True", "CompressedDataSize": str(len(packed))}, packed),
            ({"Offset": None, "Position": "1 2 3", "TransformMatrix": None, "Orientation": "0 1 0 1 0 0 0 0 -1"}, None),
            ({"ElementSpacing": None, "ElementSize": "2 3 4"}, None),
        )
    ):
        path = written(tmp_path / f"{number}.mha", oblique, changes, voxels)
        assert_same(read_volume(path), from_simpleitk(sitk.ReadImage(str(path))))


def test_numbers_that_are_written_out_are_read(tmp_path: Path, oblique: Volume) -> None:
    text = "\n".join(map(str, oblique.array.ravel(order="F"))).encode()
    path = written(tmp_path / "scan.mha", oblique, {"BinaryData": "False"}, text)
    assert_same(read_volume(path), (oblique.array, oblique.affine))
    assert "has 335 numbers; expected 336" in refusal(
        written(tmp_path / "scan.mha", oblique, {"BinaryData": "False"}, text.rpartition(b"\n")[0])
    )


def test_a_last_axis_of_one_is_left_out(tmp_path: Path, oblique: Volume) -> None:
    image = sitk.JoinSeries(in_simpleitk(oblique))
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    assert_same(read_volume(tmp_path / "scan.mha"), (oblique.array, oblique.affine))


def test_axes_that_are_not_stated_are_remarked_upon(tmp_path: Path, oblique: Volume) -> None:
    assert remarks(written(tmp_path / "scan.mha", oblique)) == []
    path = written(tmp_path / "scan.mha", oblique, {"TransformMatrix": None})
    assert remarks(path) == [("no_geometry", "warn")]
    assert_same(read_volume(path), from_simpleitk(sitk.ReadImage(str(path))))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dimsize": "6 7 9"}, "'dimsize' twice"),
        ({"Position": "0 0 0"}, "'offset' twice"),
        ({"DimSize": "6 7 7"}, f"holds {BYTES} bytes of voxels; expected {2 * 6 * 7 * 7}"),
        ({"DimSize": "6 7 9"}, f"holds {BYTES} bytes of voxels; expected {2 * 6 * 7 * 9}"),
        ({"DimSize": "6 7"}, "expected as many"),
        ({"DimSize": "6 7 -8"}, "expected as many"),
        ({"DimSize": "6 7 0"}, "expected as many"),
        ({"DimSize": "6 7 x"}, "not a readable MetaImage"),
        ({"DimSize": "999999 999999 999999"}, "expected 1999994000005999998"),
        ({"NDims": "2", "DimSize": "6 56"}, "2 dimensions"),
        ({"NDims": "4", "DimSize": "6 7 4 2"}, "4 dimensions"),
        ({"ElementType": "MET_FLOAT"}, f"expected {2 * BYTES}"),
        ({"ElementType": "MET_STRING"}, "MET_STRING"),
        ({"ElementNumberOfChannels": "3"}, "3 channels"),
        ({"ObjectType": "Mesh"}, "Mesh"),
        ({"BinaryData": "perhaps"}, "perhaps"),
        ({"BinaryData": "False"}, "is it complete?"),
        ({"CompressedData": "True"}, "not a readable MetaImage"),
        ({"ElementSpacing": None}, "elementsize is None"),
        ({"ElementSpacing": "1 1 0"}, "[1.0, 1.0, 0.0]"),
        ({"ElementSpacing": "1 1 -1"}, "[1.0, 1.0, -1.0]"),
        ({"ElementSpacing": "1 1 nan"}, "1 1 nan"),
        ({"ElementSpacing": "1 1 1e9"}, "7.7e+08"),
        ({"Offset": "1e12 0 0"}, "1e+12"),
        ({"Offset": "0 0"}, "expected 3 numbers"),
        ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "directions of length 1"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "singular"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0"}, "expected 9 numbers"),
        ({"DistanceUnits": "cm"}, "DistanceUnits cm"),
        ({"ElementToIntensityFunctionSlope": "2"}, "scaled by 2"),
        ({"HeaderSize": "-5"}, "HeaderSize is -5"),
        ({"HeaderSize": "99999999"}, "holds 0 bytes"),
        ({"ElementDataFile": None}, "expected `Name = value`"),
        ({"ElementDataFile": "../outside.raw"}, "outside its own folder"),
        ({"ElementDataFile": "/etc/hostname"}, "outside its own folder"),
        ({"ElementDataFile": "linked.raw"}, "outside its own folder"),
        ({"ElementDataFile": "missing.raw"}, "missing.raw"),
        ({"ElementDataFile": "LIST\nmissing.raw"}, "missing.raw"),
        ({"ElementDataFile": "LIST"}, "names no"),
        ({"ElementDataFile": "s%s.raw 0 7 1"}, "a pattern"),
    ],
)
def test_a_header_that_contradicts_itself_or_its_data_is_refused(
    tmp_path: Path, oblique: Volume, changes: dict[str, str | None], said: str
) -> None:
    (tmp_path / "outside.raw").write_bytes(oblique.array.tobytes(order="F"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked.raw").symlink_to(tmp_path / "outside.raw")
    assert said in refusal(written(tmp_path / "in" / "scan.mha", oblique, changes))


def test_damaged_compressed_voxels_are_refused(tmp_path: Path, oblique: Volume) -> None:
    write_volume(oblique, tmp_path / "scan.mha")
    whole = (tmp_path / "scan.mha").read_bytes()
    for spoiled in (whole[:-4], whole[:-60] + b"\xff" * 60, whole[:-1]):
        (tmp_path / "scan.mha").write_bytes(spoiled)
        assert "is it complete?" in refusal(tmp_path / "scan.mha")
