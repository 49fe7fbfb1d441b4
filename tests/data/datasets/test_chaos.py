"""CHAOS: DICOM scans and PNG masks, slice by slice."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meddelinea.data.case import read_case
from meddelinea.data.datasets import find_cases, organs_of
from meddelinea.errors import InputRefusedError
from support.dataset_folders import KIDNEYS, Subject, check, known, write_dicom

GREYS = {"liver": 63, "right kidney": 126, "left kidney": 189, "spleen": 252}


def write_pngs(folder: Path, subject: Subject, greys: Mapping[str, int], names: list[str]) -> None:
    """The subject's organs as one picture a slice."""
    folder.mkdir(parents=True)
    labels = subject.labels(greys).array
    for k, name in enumerate(names):
        Image.fromarray(np.ascontiguousarray(labels[:, ::-1, k].T)).save(folder / name)


@pytest.mark.parametrize("feet_first", [True, False], ids=["ascending", "descending"])
@pytest.mark.parametrize("below", ["", "Train_Sets", "CHAOS_Train_Sets/Train_Sets"])
def test_chaos(ct: Subject, mr: Subject, tmp_path: Path, below: str, feet_first: bool) -> None:
    ct = Subject(ct.scan.reorient("LAS"), {"liver": ct.organs["liver"][::-1]})

    def order(names: list[str]) -> list[str]:
        return names if feet_first else names[::-1]

    root, numbers = tmp_path / below, range(1, mr.scan.array.shape[2] + 1)
    folder = root / "MR" / "1"
    for where, names in (
        ("T2SPIR/DICOM_anon", [f"IMG-0002-{k:05d}" for k in numbers]),
        ("T1DUAL/DICOM_anon/InPhase", [f"IMG-0004-{2 * k:05d}" for k in numbers]),
        ("T1DUAL/DICOM_anon/OutPhase", [f"IMG-0004-{2 * k - 1:05d}" for k in numbers]),
    ):
        write_dicom(folder / where, mr, "MR", [f"{name}.dcm" for name in order(names)])
        if "Out" not in where:
            write_pngs(folder / where[:6] / "Ground", mr, GREYS, [f"{name}.png" for name in order(names)])
    (folder / "T2SPIR" / "Ground" / "._IMG-0002-00001.png").write_bytes(b"Mac OS X")
    slices = range(ct.scan.array.shape[2])
    folder = root / "CT" / "1"
    write_dicom(folder / "DICOM_anon", ct, "CT", order([f"i{k:04d},0000b.dcm" for k in slices]))
    write_pngs(folder / "Ground", ct, {"liver": 255}, order([f"liver_GT_{k:03d}.png" for k in slices]))
    (root / "MR" / "2" / "T1DUAL" / "DICOM_anon" / "InPhase").mkdir(parents=True)

    found = find_cases("chaos", tmp_path)
    assert known(found) == {
        "CT_1": ("CT_1", "CT"),
        "MR_1_T1DUAL_InPhase": ("MR_1", "MR"),
        "MR_1_T1DUAL_OutPhase": ("MR_1", "MR"),
        "MR_1_T2SPIR": ("MR_1", "MR"),
    }
    assert list(found.broken) == ["MR_2_T1DUAL_InPhase", "MR_2_T1DUAL_OutPhase", "MR_2_T2SPIR"]
    assert organs_of(found.cases[:1]) == ("liver",)
    assert organs_of(found.cases) == tuple(KIDNEYS)
    assert check(found.cases[0], ct, ("liver",)) == ()
    for case in found.cases[1:]:
        assert check(case, mr, tuple(KIDNEYS)) == ()


def test_pictures_that_do_not_fit_the_slices_are_refused(mr: Subject, tmp_path: Path) -> None:
    names = [f"IMG-1-{k}" for k in range(mr.scan.array.shape[2])]  # without leading zeros
    folder = tmp_path / "MR" / "10" / "T2SPIR"
    write_dicom(folder / "DICOM_anon", mr, "MR", [f"{name}.dcm" for name in names])
    write_pngs(folder / "Ground", mr, GREYS, [f"mask_{k:03d}.png" for k in range(len(names))])
    case = find_cases("chaos", tmp_path).cases[0]
    check(case, mr, tuple(KIDNEYS))

    picture = folder / "Ground" / "mask_003.png"
    greys = np.asarray(Image.open(picture)).copy()
    greys[0, :5] = 80
    Image.fromarray(greys).save(picture)
    assert check(case, mr, tuple(KIDNEYS)) == ("5 voxels of grey 80, which stands for no organ: background",)
    Image.fromarray(greys[:-1]).save(picture)
    with pytest.raises(InputRefusedError, match=r"mask_003\.png: .* rows and columns"):
        read_case(case, ("liver",))
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(InputRefusedError, match=r"mask_003\.png: not a readable picture"):
        read_case(case, ("liver",))
    picture.unlink()
    with pytest.raises(InputRefusedError, match="PNG masks, but"):
        read_case(case, ("liver",))
