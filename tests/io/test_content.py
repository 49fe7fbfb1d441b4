"""A file is what its first bytes say: wrong, missing and foreign endings mislead nobody."""

import bz2
import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meddelinea.io.volumes import read_scan, read_volume, write_volume
from meddelinea.volume import Volume
from support.reading import assert_same, refusal, remarks


@pytest.mark.parametrize(
    ("pack", "name"),
    [
        (bytes, "scan.nii.gz"),
        (gzip.compress, "scan.nii"),
        (gzip.compress, "a3f0ba7b052af6f1"),
        (gzip.compress, "SCAN.NII.GZ"),
        (gzip.compress, "scan.nrrd"),
        (gzip.compress, "scan.dcm"),
        (bz2.compress, "scan.nii.bz2"),
        (lambda raw: gzip.compress(raw[:500]) + gzip.compress(raw[500:]), "scan.nii.gz"),
        (lambda raw: gzip.compress(raw) + bytes(512), "scan.nii.gz"),
    ],
)
def test_a_nifti_is_read_whatever_its_ending(tmp_path: Path, oblique: Volume, pack: object, name: str) -> None:
    write_volume(oblique, tmp_path / "plain.nii")
    (tmp_path / name).write_bytes(pack((tmp_path / "plain.nii").read_bytes()))
    assert_same(read_volume(tmp_path / name), (oblique.array, oblique.affine))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan", "scan.zip", "scan.dcm"])
def test_other_volume_files_are_read_whatever_their_ending(
    tmp_path: Path, oblique: Volume, suffix: str, name: str
) -> None:
    write_volume(oblique, tmp_path / f"plain{suffix}")
    (tmp_path / f"plain{suffix}").rename(tmp_path / name)
    assert_same(read_volume(tmp_path / name), (oblique.array, oblique.affine))


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("packed", [False, True])
def test_a_pair_is_read_by_either_of_its_files(tmp_path: Path, oblique: Volume, kind: type, packed: bool) -> None:
    nib.save(kind(oblique.array, oblique.affine), tmp_path / "scan.hdr")
    if packed:
        for part in ("hdr", "img"):
            with (tmp_path / f"scan.{part}").open("rb") as plain, gzip.open(tmp_path / f"scan.{part}.gz", "wb") as file:
                shutil.copyfileobj(plain, file)
            (tmp_path / f"scan.{part}").unlink()
    for path in sorted(tmp_path.iterdir()):
        scan = read_scan(path)
        assert_same(scan.volume, (oblique.array, oblique.affine))
        assert scan.forms is not None
    for path in sorted(tmp_path.iterdir()):
        kept = path.read_bytes()
        path.unlink()
        (other,) = tmp_path.iterdir()
        assert "beside it" in refusal(other)
        path.write_bytes(kept)


def test_a_pair_is_as_long_as_its_header_says(tmp_path: Path, oblique: Volume) -> None:
    nib.save(nib.Nifti1Pair(oblique.array, oblique.affine), tmp_path / "scan.hdr")
    whole = (tmp_path / "scan.img").read_bytes()
    for spoiled in (whole[:-2], whole + b"\0\0", b""):
        (tmp_path / "scan.img").write_bytes(spoiled)
        assert f"expected {len(whole)}" in refusal(tmp_path / "scan.hdr")


def test_an_analyze_file_is_read_with_a_remark_on_its_sides(tmp_path: Path, oblique: Volume) -> None:
    affine = np.diag([-0.7, 0.9, 3.0, 1.0])
    nib.save(nib.AnalyzeImage(oblique.array, affine), tmp_path / "scan.hdr")
    assert remarks(tmp_path / "scan.img") == [("no_geometry", "warn")]
    read = read_volume(tmp_path / "scan.hdr")
    np.testing.assert_array_equal(read.array, oblique.array)
    np.testing.assert_allclose(read.affine[:3, :3], affine[:3, :3], rtol=1e-6)
    raw = bytearray((tmp_path / "scan.hdr").read_bytes())
    raw[252] = 1  # coronal
    (tmp_path / "scan.hdr").write_bytes(raw)
    assert "orient" in refusal(tmp_path / "scan.hdr")
