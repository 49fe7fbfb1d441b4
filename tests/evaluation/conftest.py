"""Folders to compare."""

import json

import pytest

from support.label_volumes import AFFINE, mask, save


@pytest.fixture
def folders(tmp_path):
    """Two measured cases, a reference without a prediction, a prediction without a reference, and a shifted grid."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    names = {"liver": 1, "spleen": 2}
    save(mask((1, 5), (6, 9)), predictions / "img0001.nii.gz", names)
    save(mask((1, 5), (6, 9)), references / "label0001.nii.gz")
    save(mask((1, 5), None), predictions / "img0002.nii.gz", names)
    save(mask((1, 5), (6, 9)), references / "label0002.nii.gz")
    save(mask((1, 5)), references / "label0003.nii.gz")
    save(mask((1, 5)), predictions / "img0004.nii.gz", names)
    shifted = AFFINE.copy()
    shifted[0, 3] = 5.0
    save(mask((1, 5), affine=shifted), predictions / "img0005.nii.gz", names)
    save(mask((1, 5)), references / "label0005.nii.gz")
    (references / "labels.json").write_text(json.dumps({"1": "Liver", "2": "spleen", "3": "pancreas"}))
    return predictions, references
