"""What is no dataset of a format is refused, and what is found twice."""

from pathlib import Path

import pytest

from meddelinea.data.datasets import FORMATS, find_cases
from meddelinea.errors import InputRefusedError, UsageError
from support.dataset_folders import Subject, describe, put, put_atlas_case, put_pair


@pytest.mark.parametrize("layout", sorted(FORMATS))
def test_sources_that_are_not_that_dataset_are_refused(tmp_path: Path, layout: str) -> None:
    with pytest.raises(InputRefusedError, match=f"absent: no such folder; expected .* '{layout}'"):
        find_cases(layout, tmp_path / "absent")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.png").write_bytes(b"")
    with pytest.raises(InputRefusedError, match=r"no .*; expected ") as refusal:
        find_cases(layout, tmp_path)
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_unknown_layouts_and_names_that_occur_twice_are_refused(ct: Subject, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown dataset format 'magic'; known: abdomenatlas, amos"):
        find_cases("magic", tmp_path)
    for part in ("a", "b"):
        put_atlas_case(tmp_path / part / "BDMAP_00000001", ct, masks=False)
    with pytest.raises(InputRefusedError, match="two cases called BDMAP_00000001"):
        find_cases("abdomenatlas", tmp_path)
    put_pair(tmp_path, "images/one.nrrd", "labels/one.nii.gz", ct, {"liver": 1})
    put(ct.scan, tmp_path / "images" / "one.nii.gz")
    describe(tmp_path, labels={"liver": 1})
    with pytest.raises(InputRefusedError, match="two files of one name"):
        find_cases("pairs", tmp_path)
    (tmp_path / "images" / "one.nii.gz").rename(tmp_path / "images" / "one_0000.nii.gz")
    with pytest.raises(InputRefusedError, match="two images of one name"):
        find_cases("pairs", tmp_path)
