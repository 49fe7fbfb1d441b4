"""`meddelinea prepare`: a dataset -> a slice store."""

from pathlib import Path

import nibabel as nib

from support.cli import Run


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
