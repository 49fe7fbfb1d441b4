"""Which files belong to an input."""

import os
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK

from meddelinea.errors import InputRefusedError
from meddelinea.io.input_files import files_of


def names(source: Path) -> list[str]:
    return [path.relative_to(source.parent if source.is_file() else source).as_posix() for path in files_of(source)]


def test_headers_and_their_data_files_are_one_input(tmp_path: Path) -> None:
    """The files are written by the libraries of each format, so that these say what belongs together."""
    array = np.zeros((4, 5, 6), np.int16)
    nrrd.write(str(tmp_path / "n.nhdr"), array, detached_header=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), tmp_path / "m.mhd")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), tmp_path / "whole.mha")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), tmp_path / "whole.nrrd")
    nib.save(nib.Nifti1Pair(array, np.eye(4)), tmp_path / "p.img")
    for source, expected in {
        "n.nhdr": ["n.nhdr", "n.raw.gz"],
        "m.mhd": ["m.mhd", "m.raw"],
        "whole.mha": ["whole.mha"],
        "whole.nrrd": ["whole.nrrd"],
        "p.img": ["p.hdr", "p.img"],
        "p.hdr": ["p.hdr", "p.img"],
    }.items():
        assert names(tmp_path / source) == expected


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("a.nhdr", "NRRD0004\nsizes: 2 2 3\ndata file: s%03d.raw 1 3 1\n"),
        ("a.nhdr", "NRRD0004\nDATAFILE: LIST\ns001.raw\ns002.raw\r\ns003.raw\n"),
        ("a.nrrd", "NRRD0004\ndatafile: LIST 2\ns001.raw\ns002.raw\ns003.raw\n"),
        ("a.mhd", "NDims = 3\nElementDataFile = s%03d.raw 1 3 1\n"),
        ("a.mhd", "NDims = 3\nElementDataFile = s%03d.raw 3 1 -1\n"),
        ("A.MHD", "NDims = 3\r\nElementDataFile = LIST 2\r\ns001.raw\r\ns002.raw\r\ns003.raw\r\n"),
    ],
)
def test_lists_and_patterns_of_data_files(tmp_path: Path, header: str, text: str) -> None:
    for number in range(5):
        (tmp_path / f"s{number:03}.raw").touch()
    (tmp_path / header).write_bytes(text.encode())
    assert names(tmp_path / header) == [header, "s001.raw", "s002.raw", "s003.raw"]


@pytest.mark.parametrize("text", ["", "data file: %d%s 1 2 1", "data file: s%d 1 9 0", "ElementDataFile = ../gone.raw"])
def test_a_header_that_makes_no_sense_names_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.nhdr").write_text(text)
    assert names(tmp_path / "a.nhdr") == ["a.nhdr"]
    assert files_of(tmp_path / "absent.nii") == ()


def test_a_folder_is_all_that_lies_below_it(tmp_path: Path) -> None:
    source = tmp_path / "dcm"
    (source / "inner" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("dcm/1", "dcm/inner/2", "dcm/inner/deep/.3", "elsewhere/4"):
        (tmp_path / name).touch()
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "inner" / "round").symlink_to(source)
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "elsewhere")
    (source / "loop").symlink_to("loop")
    (source / "dangling").symlink_to("gone")
    os.mkfifo(source / "pipe")
    assert names(source) == ["1", "inner/2", "inner/deep/.3", "linked/4"]
    assert [path.name for path in files_of(source, without=source / "inner")] == ["1", "4"]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    there = Path.iterdir

    def closed(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return there(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(InputRefusedError, match=r"closed: cannot be opened \(Permission denied\)") as caught:
        files_of(tmp_path)
    assert caught.value.code == "unreadable"
