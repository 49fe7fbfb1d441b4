"""The real scans that datasets are written from."""

import json
from pathlib import Path

import numpy as np
import pytest

from meddelinea.io.volumes import read_volume
from meddelinea.volume import Volume
from support.dataset_folders import KIDNEYS, TOTALSEGMENTATOR, Subject, every_other


@pytest.fixture(scope="session")
def ct(data: Path) -> Subject:
    """Abdomen and pelvis."""
    folder = data / "totalsegmentator"
    names = json.loads((folder / "label_names.json").read_text())["v1_total"]
    scan = every_other(read_volume(folder / "ct.nii.gz"), (2, 2, 2))
    labels = every_other(read_volume(folder / "ct_seg_v1.nii.gz"), (2, 2, 2)).array
    ids = {name: int(index) for index, name in names.items()}
    organs = {organ: labels == ids[name] for name, organ in TOTALSEGMENTATOR.items()}
    assert all(mask.any() for mask in organs.values())
    return Subject(Volume(scan.array.astype(np.int16), scan.affine), organs)


@pytest.fixture(scope="session")
def mr(data: Path) -> Subject:
    """Liver, kidneys and spleen in T2."""
    scan = every_other(read_volume(data / "chaos_mr" / "img" / "t2spir_01.nii.gz"), (2, 2, 2))
    labels = every_other(read_volume(data / "chaos_mr" / "label" / "t2spir_01.nii.gz"), (2, 2, 2)).array
    return Subject(scan, {organ: labels == index for organ, index in KIDNEYS.items()})
