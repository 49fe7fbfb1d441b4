"""Outputs that would take the place of a file that is needed, by whatever name, or of each other."""

import os
from pathlib import Path

import pytest

from meddelinea.collisions import identities, require_apart
from meddelinea.errors import InputRefusedError, OutputClashError


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Scan é.nii").touch()
    (tmp_path / "in" / "other.nii").touch()
    (tmp_path / "linked").symlink_to("in")
    (tmp_path / "soft.nii").symlink_to("in/Scan é.nii")
    os.link(tmp_path / "in" / "Scan é.nii", tmp_path / "hard.nii")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    return tmp_path


NAMES = (
    *("in/Scan é.nii", "in/../in/Scan é.nii", "./in/Scan é.nii", "linked/Scan é.nii", "linked/../soft.nii"),
    *("soft.nii", "hard.nii", "in/SCAN É.NII", "in/Scan e\u0301.nii"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_needed_is_no_output_by_any_name(
    there: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(there)
    for output in (Path(name), there / name):
        with pytest.raises(OutputClashError, match="would overwrite the scan") as caught:
            require_apart([Path("m.nii"), output], {"the scan": [there / "in" / "Scan é.nii"]})
        assert (caught.value.code, caught.value.exit_code) == ("output_clash", 2)
        assert isinstance(caught.value, InputRefusedError)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_two_outputs_are_two_files(there: Path, name: str) -> None:
    with pytest.raises(OutputClashError, match="two outputs share a file"):
        require_apart([Path(there, "in", "Scan é.nii"), Path(there, name)], {})


def test_files_to_come_are_told_apart_before_their_folders_are_made(there: Path) -> None:
    with pytest.raises(OutputClashError):
        require_apart([there / "new" / "deep" / "a.nii", there / "new" / "x" / ".." / "deep" / "A.nii"], {})
    outputs = [
        there / name for name in ("new/deep/a.nii", "new/a.nii", "a.nii", "loop.nii", "in/m.nii", "linked/n.nii")
    ]
    require_apart(outputs, {"the scan": [there / "in" / "Scan é.nii", there / "in" / "other.nii"]}, there / "model")


@pytest.mark.parametrize("name", ["in/m.nii", "linked/m.nii", "in/new/m.nii", "in/../linked/m.nii"])
def test_nothing_is_written_into_a_models_folder(there: Path, name: str) -> None:
    with pytest.raises(OutputClashError, match="lies in the model's folder"):
        require_apart([there / name], {}, there / "linked")


def test_a_path_that_leads_nowhere_is_itself(there: Path) -> None:
    assert identities(there / "loop.nii") == identities(there / "in" / ".." / "LOOP.nii")
    assert not identities(there / "loop.nii") & identities(there / "in" / "loop.nii")
