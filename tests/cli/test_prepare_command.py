"""`meddelinea prepare`: a dataset -> a slice store."""

from pathlib import Path

import nibabel as nib
import numpy as np

from meddelinea.data.store import read_manifest
from support.cli import Run, save


def test_prepare_makes_a_store_and_leaves_it_alone_afterwards(run: Run, data: Path, tmp_path: Path) -> None:
    for kind, name in (("img", "img0027.nii.gz"), ("label", "label0027.nii.gz")):
        (tmp_path / "in" / kind).mkdir(parents=True)
        nib.save(nib.load(data / "btcv" / kind / name).slicer[:, :, 40:46], tmp_path / "in" / kind / name)
    words = ("prepare", "--format", "btcv", tmp_path / "in", tmp_path / "store")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert "1 cases stored, 0 already there, 0 failed" in out
    assert "0 cases stored, 1 already there, 0 failed" in run(*words)[1]


def test_prepare_of_an_unknown_format_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    code, _, err = run("prepare", "--format", "magic", tmp_path, tmp_path / "store")
    assert code == 2
    assert "btcv" in err


def test_prepare_takes_the_scans_of_one_modality(run: Run, tmp_path: Path) -> None:
    """AMOS keeps both in one folder: ids up to 500 are CT."""
    for name in ("amos_0001", "amos_0501", "amos_0502"):
        for folder, top in (("imagesTr", 300), ("labelsTr", 3)):
            (tmp_path / "AMOS" / folder).mkdir(parents=True, exist_ok=True)
            voxels = np.random.default_rng(0).integers(0, top, (32, 32, 4), dtype=np.int16)
            save(voxels, tmp_path / "AMOS" / folder / f"{name}.nii.gz")
    words = ("prepare", "--format", "amos", tmp_path / "AMOS", tmp_path / "store", "--size", 64)
    assert run(*words, "--modality", "MR")[0] == 0
    stored = {case.name: case.modality for case in read_manifest(tmp_path / "store").cases}
    assert stored == {"amos_0501": "MR", "amos_0502": "MR"}
    for name in ("amos_0501", "amos_0502"):
        (tmp_path / "AMOS" / "imagesTr" / f"{name}.nii.gz").unlink()
        (tmp_path / "AMOS" / "labelsTr" / f"{name}.nii.gz").unlink()
    code, _, err = run(*words[:-3], tmp_path / "other", "--modality", "MR")
    assert code == 3
    assert "no scan is MR" in err
