"""What is taken for a scan is the same for `predict` of a folder, which looks at its entries, and for `leak-check`."""

from pathlib import Path

import pytest

from meddelinea.errors import InputRefusedError
from meddelinea.folders.found import find_scans, scan_files


@pytest.fixture
def exported(data: Path, tmp_path: Path) -> Path:
    """FAKE: patients as exported from a PACS and by hand, a slice of a real series standing for each series."""
    slice_ = next((data / "totalsegmentator" / "ct_dicom").iterdir())
    for folder in ("one", "two/portal", "two/venous", "both/derived", "none"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("one", "two/portal", "two/venous", "both"):
        for name in ("1", "2"):
            (tmp_path / folder / name).symlink_to(slice_)
    (tmp_path / "DICOMDIR").symlink_to(slice_)
    for name in ("a.NII.GZ", "one/notes.txt", "both/b.nrrd", "both/derived/c.nii", "none/letter.pdf", ".hidden.nii"):
        (tmp_path / name).touch()
    return tmp_path


def below(paths: tuple[Path, ...], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_all_scans_of_a_folder_are_found_at_any_depth(exported: Path) -> None:
    found = scan_files(exported)
    assert below(found.scans, exported) == [
        *("a.NII.GZ", "both", "both/b.nrrd", "both/derived/c.nii", "one", "two/portal", "two/venous")
    ]
    assert below(found.others, exported) == ["DICOMDIR", "none/letter.pdf"]


def test_an_entry_of_a_folder_is_a_case_where_one_of_its_kind_is_found_in_it(exported: Path) -> None:
    found = find_scans(exported, exported / "masks")
    assert [case.name for case in found.cases] == ["a", "both", "one", "two"]
    assert [case.source for case in found.cases] == [exported / name for name in ("a.NII.GZ", "both", "one", "two")]
    assert below(found.others, exported) == ["DICOMDIR", "none"]


def test_a_series_is_one_scan_in_either_way(exported: Path) -> None:
    assert scan_files(exported / "one").scans == (exported / "one",)
    assert [case.source for case in find_scans(exported / "one", exported).cases] == [exported / "one"]
    assert scan_files(exported / "one" / "1").scans == (exported / "one" / "1",)  # what was named is looked at


@pytest.mark.parametrize("name", ["none", "absent"])
def test_where_there_is_no_scan_both_say_so(exported: Path, name: str) -> None:
    for found in (lambda: scan_files(exported / name), lambda: find_scans(exported / name, exported)):
        with pytest.raises(InputRefusedError, match=r"no scan in it|no such file or folder"):
            found()


@pytest.mark.parametrize(
    "content",
    [
        "input,output\nä 1.nii,m.nii\n".encode(),
        "\ufeffinput;output\r\nä 1.nii;m.nii\r\n".encode(),
        "input\toutput\r\nä 1.nii\tm.nii\r\n".encode("utf-16"),
        "sep=;\r\ninput;output\r\nä 1.nii;m.nii\r\n".encode(),
        '"Input", Output ,note\r\n"ä 1.nii", m.nii,"a, b"\r\n,\r\n\r\n,,\r\n'.encode(),
        "\n\noutput,input\nm.nii,ä 1.nii\n".encode(),
    ],
)
def test_a_list_is_read_as_spreadsheets_save_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    found = find_scans(tmp_path / "list.csv", tmp_path / "out")
    assert [(case.source, case.output) for case in found.cases] == [(tmp_path / "ä 1.nii", tmp_path / "out" / "m.nii")]
    assert found.listing == tmp_path / "list.csv"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("input,output\r\nä.nii,m.nii\r\n".encode("latin-1"), "save it as CSV in UTF-8"),
        (b"input;output\na.nii;m.nii\na.nii;m.nii\n", "give each line another output"),
        (b"sep=;\ninput;output\n\na.nii;\n", "line 4 reads 'a.nii',''"),
    ],
)
def test_a_list_that_cannot_be_meant_says_what_to_do(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(InputRefusedError, match=said):
        find_scans(tmp_path / "list.csv", tmp_path / "out")
