"""Volume files of any kind: what is written is read back here and elsewhere; what is no volume is refused."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the name that its manual uses)

from meddelinea.errors import InputRefusedError
from meddelinea.files import ensure_writable
from meddelinea.io.volumes import read_scan, read_volume, write_volume
from meddelinea.volume import Volume
from support.reading import LPS_TO_RAS, assert_same, from_simpleitk, refusal


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_what_is_written_is_read_back_here_and_by_simpleitk(
    tmp_path: Path, oblique: Volume, suffix: str, kind: type
) -> None:
    path = tmp_path / f"scan{suffix}"
    written = Volume(oblique.array.astype(kind), oblique.affine)
    write_volume(written, path)
    volume = read_volume(path)
    assert volume.array.dtype == kind
    assert read_scan(path).modality is None
    assert_same(volume, (written.array, written.affine))
    assert_same(volume, from_simpleitk(sitk.ReadImage(str(path))))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_what_simpleitk_writes_is_read(tmp_path: Path, oblique: Volume, suffix: str) -> None:
    image = sitk.GetImageFromArray(oblique.array.transpose(2, 1, 0))
    lps = LPS_TO_RAS @ oblique.affine
    image.SetSpacing(oblique.spacing_mm)
    image.SetOrigin(lps[:3, 3])
    image.SetDirection((lps[:3, :3] / oblique.spacing_mm).ravel())
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"))
    assert_same(read_volume(tmp_path / f"scan{suffix}"), (oblique.array, oblique.affine))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_sheared_affine_and_a_bool_mask_survive(tmp_path: Path, oblique: Volume, suffix: str) -> None:
    sheared = oblique.affine.copy()
    sheared[:3, 2] += 0.3 * sheared[:3, 1]
    write_volume(Volume(oblique.array > 0, sheared), tmp_path / f"mask{suffix}")
    volume = read_volume(tmp_path / f"mask{suffix}")
    assert volume.array.dtype == np.uint8
    assert_same(volume, (oblique.array > 0, sheared))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_promises_more_than_the_file_holds_takes_no_memory(
    tmp_path: Path, oblique: Volume, suffix: str
) -> None:
    write_volume(oblique, tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    raw[42:48] = np.array([32767] * 3, "<i2").tobytes()  # 70 TB
    (tmp_path / f"scan{suffix}").write_bytes(gzip.compress(raw) if suffix == ".nii.gz" else raw)
    assert f"expected {352 + 2 * 32767**3} for" in refusal(tmp_path / f"scan{suffix}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    for name in ("scan", "scan.nii", "scan.dcm"):
        os.mkfifo(tmp_path / name)
        assert "not a kind of file" in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.9])
def test_a_truncated_file_is_refused_when_it_is_read(tmp_path: Path, oblique: Volume, suffix: str, kept: float) -> None:
    path = tmp_path / f"scan{suffix}"
    write_volume(oblique, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "is it complete?" in refusal(path)


@pytest.mark.parametrize(
    "name",
    [
        "scan.nii",
        "scan.nii.gz",
        "scan.nrrd",
        "scan.nhdr",
        "scan.mha",
        "scan.mhd",
        "scan.hdr",
        "scan.img",
        "scan.dcm",
        "scan.zip",
        "scan",
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("patient,organ,volume\n" * 100)
    refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["none.nii.gz", "none.nrrd", "none.zip", "none.dcm", "none"])
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    assert "no such file" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    "name",
    ["scan.mnc", "scan", "missing/scan.nii.gz", "file.txt/scan.nii.gz", "folder.nii.gz", "/proc/scan.nii.gz"],
)
def test_an_output_that_cannot_be_written_is_refused_early_and_late(tmp_path: Path, oblique: Volume, name: str) -> None:
    (tmp_path / "file.txt").touch()
    (tmp_path / "folder.nii.gz").mkdir()
    if name.startswith("/") and not Path(name).parent.is_dir():
        pytest.skip("only Linux has a folder that not even an administrator can write")
    path = tmp_path / name
    for attempt in (lambda: ensure_writable(path), lambda: write_volume(oblique, path)):
        with pytest.raises(InputRefusedError) as caught:
            attempt()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file.txt", "folder.nii.gz"]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, oblique: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.nii"
    path.write_text("old")

    def full_disk(image: nib.Nifti1Image, unfinished: Path) -> None:
        unfinished.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(InputRefusedError, match="No space left"):
        write_volume(oblique, path)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii"]
